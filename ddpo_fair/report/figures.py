"""The paper's figures that need no training: the reward's shape, the classifier's test.

Its other figures are images and curves of runs, which `ddpo_fair.report` draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import axes, figure, patches

from ddpo_fair.report import plots
from ddpo_fair.statistics import accuracy, intervals

ACCURACY_SIZE = (10.2, 3.4)  # inches


def total_reward(num_images: int, target: float = 0.5) -> plots.Chart:
    """Paper's figure 2: a batch's sum of R_balance against its q, all faces recognised.

    For the paper's target of 1/2 it is -2 N (q - 1/2)^2, greatest at balance.
    """

    def draw(size: tuple[float, float]) -> figure.Figure:
        q, rewards = total_rewards(num_images, target)
        sheet, plot = plots.canvas(size)
        colour, _, marker = plots.look(0)
        few = num_images <= 64
        plot.plot(q, rewards, color=colour, marker=marker if few else None, ms=3)
        plot.axvline(target, **plots.DASHED)
        plot.set_xlabel("q, share classified as female")
        plot.set_ylabel("sum of rewards")
        return sheet

    return plots.Chart(
        "total_reward",
        "Total reward",
        f"Sum of R_balance over a batch of {num_images} recognised faces against their"
        " share classified as female; greatest at the target (dashed).",
        draw,
    )


def total_rewards(
    num_images: int, target: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """q and the batch's sum of R_balance (paper eq. 3), float [num_images + 1] each.

    Every image of the minority class has |q - target|, every other one its negative.
    """
    num_female = np.arange(num_images + 1)
    q = num_female / num_images
    minority = np.where(q < target, num_female, num_images - num_female)
    return q, np.abs(q - target) * (2 * minority - num_images)


def confusion_matrix(
    matrix: np.ndarray, classes: Sequence[str] = accuracy.NAMES
) -> plots.Chart:
    """Paper's figure 3: what the classifier made of images whose class is known.

    Args:
        matrix: int [K, K], of `accuracy.confusion`.
        classes: names, str [K].
    """
    matrix = np.asarray(matrix)
    share = np.trace(matrix) / max(matrix.sum(), 1)

    def draw(size: tuple[float, float]) -> figure.Figure:
        sheet, plot = plots.canvas(size)
        _paint_matrix(plot, matrix, classes)
        return sheet

    return plots.Chart(
        "confusion_matrix",
        "Confusion matrix",
        f"{matrix.sum():,} images by their class (rows) and the classifier's answer"
        f" (columns), with shares of the row; accuracy {share:.2f}.",
        draw,
    )


def accuracy_sheet(found: dict[str, Any]) -> figure.Figure:
    """Confusion matrices with and without none, and calibration; inside `style()`.

    Args:
        found: of `accuracy.measure`.
    """
    matrix = np.asarray(found["confusion"])
    page = figure.Figure(figsize=ACCURACY_SIZE)
    left, middle, right = page.subplots(1, 3)
    for plot, counts, key in (
        (left, matrix, "accuracy"),
        (middle, matrix[:2, :2], "accuracy_without_none"),
    ):
        _paint_matrix(plot, counts, accuracy.NAMES[: len(counts)])
        name = key.replace("_", " ") if plot is middle else "accuracy with none"
        title = f"{name.capitalize()} {accuracy.figure_text(found[key])}"
        plot.set_title(title, fontsize=10)
    _draw_calibration(right, found)
    page.subplots_adjust(0.085, 0.16, 0.985, 0.9, wspace=0.36)
    return page


def _paint_matrix(plot: axes.Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Fills axes with a confusion matrix: counts, and shares of the row as colour."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    plot.grid(False)
    blue = plots.COLOURS["first"]
    for row, column in np.ndindex(*matrix.shape):
        share = shares[row, column]
        corner = (column - 0.5, row - 0.5)
        alpha = 0.85 * share
        plot.add_patch(patches.Rectangle(corner, 1, 1, fc=blue, alpha=alpha, ec="none"))
        text = f"{matrix[row, column]}\n{share:.0%}"
        # Ink and paper keep their contrast on the blue in either theme.
        colour = plots.COLOURS["paper" if share > 0.55 else "ink"]
        plot.text(column, row, text, ha="center", va="center", color=colour)
    plot.set_xlim(-0.5, len(classes) - 0.5)
    plot.set_ylim(len(classes) - 0.5, -0.5)
    plot.set_xticks(range(len(classes)), classes)
    plot.set_yticks(range(len(classes)), classes)
    plot.tick_params(length=0)
    plot.set_xlabel("the classifier says")
    plot.set_ylabel("truth")


def _draw_calibration(plot: axes.Axes, found: dict[str, Any]) -> None:
    """Accuracy, with its interval, against confidence; on the diagonal is right."""
    colour, _, marker = plots.look(0)
    faint = plots.COLOURS["faint"]
    plot.plot([0.5, 1], [0.5, 1], color=faint, dashes=(4, 3))
    for one in found.get("reliability", []):
        x, count = one["confidence"], one["images"]
        share = intervals.wilson(round(one["accuracy"] * count), count)
        plot.plot([x, x], share[1:], color=colour, linewidth=1)
        plot.plot([x], share[:1], color=colour, marker=marker)
        place = {"xytext": (0, -10), "textcoords": "offset points", "ha": "center"}
        plot.annotate(f"{count}", (x, share.low), **place, fontsize=7, color=faint)
    error = found.get("calibration_error", float("nan"))
    plot.set_title(f"Calibration error {error:.3f}", fontsize=10)
    plot.set_xlabel("confidence (beside: images)")
    plot.set_ylabel("accuracy")
    plot.set_xlim(0.47, 1.03)
    plot.set_ylim(-0.06, 1.06)
