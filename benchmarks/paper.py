"""The paper's figures of the kept runs: `python benchmarks/paper.py` draws docs/paper.

Figure 2 is the reward's shape; figures 6, 8, 10 and 12 are the curves of the runs in
docs/results, all seeds in one; and the share of each occupation where many were trained
at once. docs/paper.md shows them, and says what they mean.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import axes, figure
from PIL import Image

from ddpo_fair.classifiers import classes
from ddpo_fair.learning import rewards
from ddpo_fair.report import curves, plots, run_reader

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "docs" / "results"
REWARD_AND_LOSS = ("reward_mean", "loss")
CURVES = {  # by file: runs, fields of metrics.jsonl
    "figure_06_shift": ("elec_eng_shift_unrestrained_?", REWARD_AND_LOSS),
    "figure_08_balance_mech": ("mech_eng_unrestrained_?", REWARD_AND_LOSS),
    "figure_10_balance_comp": ("comp_sci_?", REWARD_AND_LOSS),
    "figure_12_truly_ppo": ("truly_ppo_?", (*REWARD_AND_LOSS, "kl", "advantage_max")),
}
OCCUPATIONS = "many_prompts_explicit_1/evaluation_0030/evaluation.json"
SETS = {"trained": "trained together", "held_out": "never trained"}
BATCH = 16  # images of the paper's figure 2
SCALE = 2  # by which the images are made smaller
COLOURS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "paper")
    output = parser.parse_args().output
    output.mkdir(exist_ok=True)
    save(output / "figure_02_total_reward.png", [total_reward(BATCH)])
    for name, (pattern, fields) in CURVES.items():
        runs = [run_reader.read(folder) for folder in sorted(RUNS.glob(pattern))]
        found = {chart.name: chart for chart in curves.charts(runs)}
        save(output / f"{name}.png", [found[field] for field in fields])
    evaluation = json.loads((RUNS / OCCUPATIONS).read_text())
    sheet = occupations(evaluation["samplers"][0])
    shrink(painted(sheet), output / "many_prompts.png")


def total_reward(num_images: int) -> plots.Chart:
    """Figure 2: a batch's sum of R_balance against its q, all faces recognised."""

    def draw(plot: axes.Axes) -> None:
        batches = np.tri(num_images + 1, num_images, -1, int)  # k of the first class
        labels = np.where(batches, classes.FEMALE, classes.MALE)
        sums = [rewards.balance(row, (0.5, 0.5)).sum() for row in labels]
        colour, _, marker = plots.look(0)
        plot.plot(batches.mean(axis=1), sums, color=colour, marker=marker, ms=3)
        plot.axvline(0.5, **plots.DASHED)
        plot.set_xlabel("q, share classified as female")
        plot.set_ylabel("sum of rewards")

    return plots.Chart("total_reward", "Total reward", "", draw)


def occupations(found: dict[str, Any]) -> figure.Figure:
    """q of every occupation before and after, with its intervals.

    Args:
        found: of one sampler, from evaluation.json.
    """
    before, after = (found[model]["prompts"] for model in ("before", "after"))
    groups = {
        name: sorted(
            (prompt for prompt, one in before.items() if one["set"] == name),
            key=lambda prompt: before[prompt]["q"]["estimate"] or 0,
        )
        for name in SETS
    }
    heights = [len(prompts) + 1 for prompts in groups.values()]
    with plots.style():
        sheet = figure.Figure(figsize=(7, 0.19 * sum(heights) + 1))
        panels = sheet.subplots(len(SETS), sharex=True, height_ratios=heights)
        for plot, (name, prompts) in zip(panels, groups.items(), strict=True):
            _draw_group(plot, prompts, before, after)
            plot.set_title(f"{len(prompts)} prompts {SETS[name]}", loc="left")
        panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        panels[-1].set_xlabel("share classified as female, 95 % intervals")
        panels[-1].set_xlim(-0.02, 1.02)
        panels[-1].xaxis.set_major_formatter(plots.PERCENT)
        sheet.tight_layout()
    return sheet


def _draw_group(
    plot: axes.Axes, prompts: list[str], before: dict[str, Any], after: dict[str, Any]
) -> None:
    plot.axvline(0.5, **plots.DASHED)
    for index, (model, name) in enumerate(((before, "before"), (after, "after"))):
        colour, _, marker = plots.look(1 - index)
        shares = [model[prompt]["q"] for prompt in prompts]
        places = [row + 0.16 * (2 * index - 1) for row in range(len(prompts))]
        low, high = ([share[end] for share in shares] for end in ("low", "high"))
        plot.hlines(places, low, high, color=colour, lw=1)
        values = [share["estimate"] for share in shares]
        plot.plot(values, places, marker, color=colour, label=name)
    nouns = [prompt.removeprefix("photo of the face of ") for prompt in prompts]
    plot.set_yticks(range(len(prompts)), nouns, fontsize=8)
    plot.set_ylim(len(prompts) - 0.4, -0.6)


def save(path: Path, charts: list[plots.Chart]) -> None:
    """Draws charts, two in a row, into one file."""
    images = []
    for chart in charts:
        with plots.style():
            sheet, plot = plots.canvas(plots.NARROW)
            chart.draw(plot)
            lines = plot.get_legend_handles_labels()
            if plot.get_legend():
                plot.get_legend().remove()  # one above all of them is enough
            sheet.set_size_inches(plots.NARROW)
            plot.set_title(chart.title, loc="left")
            plot.set_position((0.19, 0.19, 0.78, 0.7))
            images.append(painted(sheet))
    width, height = images[0].size
    top = height // 10 if len(lines[0]) > 1 else 0
    size = (width * min(2, len(images)), top + height * -(-len(images) // 2))
    together = Image.new("RGB", size, "white")
    if top:
        together.paste(legend(lines, size[0], top))
    for place, image in enumerate(images):
        together.paste(image, (place % 2 * width, top + place // 2 * height))
    shrink(together, path)


def legend(lines: tuple[list, list], width: int, height: int) -> Image.Image:
    """The names of the lines in a row, so many pixels."""
    size = width / plots.PNG_DPI, height / plots.PNG_DPI
    with plots.style():
        sheet = figure.Figure(figsize=size)
        sheet.legend(*lines, loc="center left", ncols=len(lines[0]))
        return painted(sheet)


def painted(sheet: figure.Figure) -> Image.Image:
    """A figure as an image."""
    return Image.open(io.BytesIO(plots.png(sheet))).convert("RGB")


def shrink(image: Image.Image, path: Path) -> None:
    """Saves an image, smaller and of few colours."""
    size = image.width // SCALE, image.height // SCALE
    small = image.resize(size, Image.LANCZOS).quantize(COLOURS)
    small.save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
