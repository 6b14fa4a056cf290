"""The paper's figures that need no training: the reward's shape, the classifier's test.

Its other figures are pictures and curves of runs, which `ddpo_fair.report` draws.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import axes, figure, patches

from ddpo_fair.report import plots

CLASSES = ("female", "male", "none")


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
        ink = plots.COLOURS["ink"]
        plot.axvline(target, color=ink, linestyle=(0, (6, 4)), linewidth=1.2)
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


def confusion(
    truth: Sequence[int], labels: Sequence[int], num_classes: int = 3
) -> np.ndarray:
    """Counts int [num_classes, num_classes] of images by truth (row) and label.

    Args:
        truth: int [N], class or -1 for none, which becomes the last row.
        labels: int [N], what the classifier said, likewise.
        num_classes: with none.
    """
    rows, columns = (
        np.where(np.asarray(values) < 0, num_classes - 1, values)
        for values in (truth, labels)
    )
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return matrix


def confusion_matrix(
    matrix: np.ndarray, classes: Sequence[str] = CLASSES
) -> plots.Chart:
    """Paper's figure 3: what the classifier made of pictures whose class is known.

    Args:
        matrix: int [K, K], of `confusion`.
        classes: names, str [K].
    """
    matrix = np.asarray(matrix)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)

    def draw(size: tuple[float, float]) -> figure.Figure:
        sheet, plot = plots.canvas(size)
        paint_matrix(plot, matrix, classes)
        return sheet

    return plots.Chart(
        "confusion_matrix",
        "Confusion matrix",
        f"{matrix.sum():,} pictures by their class (rows) and the classifier's answer"
        f" (columns), with shares of the row; accuracy {accuracy:.2f}.",
        draw,
    )


def paint_matrix(plot: axes.Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
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
