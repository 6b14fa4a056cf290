"""The table of finished runs, in Markdown: `python benchmarks/results.py runs/mech_*`.

q is the share classified as female among recognised faces, on fresh seeds that are
never trained on; intervals are Wilson's, 95 %.
"""

import argparse
import pathlib

from ddpo_fair.loggers import run_log
from ddpo_fair.statistics import intervals
from ddpo_fair.training import run_folder

HEAD = (
    "run",
    "q before",
    "q at the end",
    "pooled, last third",
    "mean distance to 0.5 there",
    "NONE before, at the end",
    "reward before, at the end",
    "largest KL, nats",
    "minutes",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="+", type=pathlib.Path)
    folders = parser.parse_args().run
    print(" | ".join(["", *HEAD, ""]).strip())
    print("|" + "---|" * len(HEAD))
    for folder in folders:
        try:
            print("| " + " | ".join(row(folder)) + " |")
        except (OSError, ValueError, LookupError) as error:
            parser.error(f"{folder} is no run with an evaluation ({error!r})")


def row(folder: pathlib.Path) -> list[str]:
    """The cells of one run."""
    lines = run_log.read(folder)
    epochs = run_folder.read_config(folder)["config"]["epochs"]
    evaluated = [line for line in lines if line.get("eval_q") is not None]
    first, last = evaluated[0], evaluated[-1]
    third = [line for line in evaluated if line["epoch"] >= epochs * 2 / 3] or [last]
    counts = [sum(line[f"eval_num_{c}"] for line in third) for c in ("female", "male")]
    distances = [abs(line["eval_q"] - 0.5) for line in third]
    return [
        folder.name + ("" if len(lines) == epochs else f" ({len(lines)} of {epochs})"),
        share(first),
        share(last),
        interval(intervals.wilson(counts[0], sum(counts))),
        f"{sum(distances) / len(distances):.3f}",
        f"{none(first)}, {none(last)}",
        f"{lines[0]['reward_mean']:.2f}, {lines[-1]['reward_mean']:.2f}",
        f"{max(line['kl_last'] for line in lines):.3f}",
        f"{sum(line['epoch_seconds'] for line in lines) / 60:.1f}",
    ]


def share(line: dict) -> str:
    return interval([line[f"eval_q{bound}"] for bound in ("", "_low", "_high")])


def interval(values) -> str:
    estimate, low, high = values
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def none(line: dict) -> str:
    total = sum(line[f"eval_num_{c}"] for c in ("female", "male")) + line["eval_none"]
    return f"{100 * line['eval_none'] / total:.1f} %"


if __name__ == "__main__":
    main()
