"""Keeps what documents show of a run, small: `python benchmarks/keep.py RUN FOLDER`.

Writes the settings, the metrics, the first and the last grid of samples and the newest
evaluation of RUN to FOLDER (docs/results/NAME); a single file works as well. An image
gets a palette of its own, JSON loses its spaces. Only a file that would still be larger
than MOST_BYTES is thinned: numbers to DIGITS digits, and of a prompt the counts, whose
intervals follow. A metrics.jsonl that is small enough stays as it is.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

MOST_BYTES = 100_000
DIGITS = 7
COLOURS = (256, 192, 160, 128, 96, 64)
# Of a prompt in metrics.jsonl and in evaluation.json.
COUNTS = (
    *("eval_num_female", "eval_num_male", "eval_none"),
    *("num_female", "num_male", "num_none", "reward_mean"),
)
EVALUATED = (
    *("set", "images", "num_female", "num_male", "num_none", "q"),
    *("adherence", "p_female_histogram", "audit"),
)
AUDITED = ("num_female", "num_male", "num_none", "q")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a run, or one file")
    parser.add_argument("target", type=Path, help="folder or file to write")
    given = parser.parse_args()
    if given.source.is_dir() and (given.target / "checkpoints").exists():
        parser.error(f"{given.target} is a run itself, whose records would be replaced")
    try:
        for path in [given.source] if given.source.is_file() else chosen(given.source):
            keep(path, given.target / path.relative_to(given.source))
    except (OSError, ValueError, LookupError) as error:
        parser.error(f"{given.source} holds no run, or no file to keep ({error})")


def chosen(run: Path) -> list[Path]:
    """What is kept of a run's folder."""
    grids = sorted((run / "samples").glob("epoch_*.png"))
    evaluations = sorted(run.glob("evaluation_*/evaluation.json"))
    sheets = sorted(run.glob("evaluation_*/samplers.png"))
    files = [run / name for name in ("config.json", "metrics.jsonl")]
    return [*files, *grids[:1], *grids[1:][-1:], *evaluations[-1:], *sheets[-1:]]


def keep(source: Path, target: Path) -> None:
    """Writes the small form of a file; `target` may be the file itself."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".png":
        image(source, target)
    elif source.name == "config.json" or _fits(source, ".jsonl"):
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    elif source.suffix == ".jsonl":
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        target.write_text("".join(f"{compact(thin_line(line))}\n" for line in lines))
    else:
        content = json.loads(source.read_text())
        text = compact(content)
        if len(text) >= MOST_BYTES:
            text = compact(thin_evaluation(content))
        target.write_text(f"{text}\n")
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def image(source: Path, target: Path) -> None:
    """Saves an image with the largest palette that keeps it small."""
    pixels = Image.open(source).convert("RGB")
    for colours in COLOURS:
        pixels.quantize(colours, kmeans=4, dither=Image.Dither.NONE).save(
            target, optimize=True
        )
        if target.stat().st_size < MOST_BYTES:
            return


def thin_line(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl; prompts only where an evaluation was, as counts."""
    line = dict(line)
    parts = line.pop("prompts", {})
    if parts and "eval_q" in line:
        line["prompts"] = {name: _only(COUNTS, part) for name, part in parts.items()}
    return rounded(line)


def thin_evaluation(content: dict[str, Any]) -> dict[str, Any]:
    """evaluation.json; of each prompt what EVALUATED names."""

    def prompt(found: dict[str, Any]) -> dict[str, Any]:
        kept = _only(EVALUATED, found)
        if "audit" in kept:
            kept["audit"] = _only(AUDITED, kept["audit"])
        return kept

    samplers = [
        {
            name: _with_prompts(part, prompt) if name in ("before", "after") else part
            for name, part in sampler.items()
        }
        for sampler in content["samplers"]
    ]
    return rounded(content | {"samplers": samplers})


def rounded(value: Any) -> Any:
    """JSON values, floats to DIGITS significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return value


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _fits(path: Path, suffix: str) -> bool:
    return path.suffix == suffix and path.stat().st_size < MOST_BYTES


def _only(names: tuple[str, ...], found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}


def _with_prompts(
    part: dict[str, Any], thin: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    prompts = {name: thin(found) for name, found in part.get("prompts", {}).items()}
    return part | {"prompts": prompts} if prompts else part


if __name__ == "__main__":
    main()
