"""How an epoch's time and memory grow with its images and its denoising steps.

    python benchmarks/growth.py

Epochs of the embedded model on this CPU, all steps of each image trained.
"""

import argparse
import json
from pathlib import Path

import cpu

IMAGES = (32, 64, 128)
STEPS = (5, 10, 20)
BATCH = 16  # images that a device samples at once
MICROBATCH = 20  # pairs of an image and a step that it learns from at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="of each run")
    parser.add_argument("--output", default="", help="JSON file")
    options = parser.parse_args()
    sizes = [(images, STEPS[0]) for images in IMAGES]
    sizes += [(IMAGES[0], steps) for steps in STEPS[1:]]
    rows = []
    for images, steps in sizes:
        batches = images // (2 * BATCH)  # on two devices
        flags = [f"--config.sample.batch_per_device={BATCH}"]
        flags += [f"--config.sample.batches={batches}"]
        flags += [f"--config.sample.num_steps={steps}"]
        flags += [f"--config.train.microbatch={MICROBATCH}"]
        flags += ["--config.train.skip_last_steps=0"]
        seconds, drawn = cpu.our_epochs(options.epochs, flags)
        assert drawn == images, (drawn, images)
        rows.append({"images": images, "steps": steps, **seconds})
    if options.output:
        Path(options.output).write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


def table(rows: list[dict[str, float]]) -> str:
    """A line of Markdown for each size, with its seconds per image and step."""
    lines = [
        "| images | steps | sample, s | update, s | epoch, s | of it per image and"
        " step, ms | peak memory, GB |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        each = 1e3 * row["epoch"] / (row["images"] * row["steps"])
        lines.append(
            f"| {row['images']} | {row['steps']} | {row['sample']:.2f}"
            f" | {row['update']:.2f} | {row['epoch']:.2f} | {each:.1f}"
            f" | {row['memory_gb']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
