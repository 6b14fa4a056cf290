"""The paper's figures of the kept runs: `python benchmarks/paper.py` draws docs/paper.

Figure 2 is the reward's shape; figures 6, 8, 10 and 12 are the curves of the runs in
docs/results, all seeds in one. docs/paper.md shows them, and says what they mean.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

from ddpo_fair.fairness import curves, drawing, figures, records

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "docs" / "results"
REWARD_AND_LOSS = ("reward_mean", "loss")
CURVES = {  # by file: runs, fields of metrics.jsonl
    "figure_06_shift": ("elec_eng_shift_?", REWARD_AND_LOSS),
    "figure_08_balance_mech": ("mech_eng_?", REWARD_AND_LOSS),
    "figure_10_balance_comp": ("comp_sci_?", REWARD_AND_LOSS),
    "figure_12_truly_ppo": ("truly_ppo_?", (*REWARD_AND_LOSS, "kl", "advantage_max")),
}
BATCH = 16  # images of the paper's figure 2
SCALE = 2  # by which the pictures are made smaller
COLOURS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "paper")
    output = parser.parse_args().output
    output.mkdir(exist_ok=True)
    save(output / "figure_02_total_reward.png", [figures.total_reward(BATCH)])
    for name, (pattern, fields) in CURVES.items():
        runs = [records.read(folder) for folder in sorted(RUNS.glob(pattern))]
        found = {chart.name: chart for chart in curves.charts(runs)}
        save(output / f"{name}.png", [found[field] for field in fields])


def save(path: Path, charts: list[drawing.Chart]) -> None:
    """Draws charts, two in a row, into one file."""
    pictures = []
    for chart in charts:
        with drawing.style():
            sheet = chart.draw(drawing.NARROW)
            sheet.axes[0].set_title(chart.title, loc="left")
            sheet.axes[0].set_position((0.19, 0.19, 0.78, 0.7))
            pictures.append(Image.open(io.BytesIO(drawing.png(sheet))).convert("RGB"))
    width, height = pictures[0].size
    size = (width * min(2, len(pictures)), height * -(-len(pictures) // 2))
    together = Image.new("RGB", size, "white")
    for place, picture in enumerate(pictures):
        together.paste(picture, (place % 2 * width, place // 2 * height))
    small = together.resize((size[0] // SCALE, size[1] // SCALE), Image.LANCZOS)
    small.quantize(COLOURS).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
