"""The test of a classifier on images of known classes, its files and its figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm
from matplotlib import axes, figure, patches

from ddpo_fair import files, parallel
from ddpo_fair.classifiers import classifier, labelled_images
from ddpo_fair.errors import shown
from ddpo_fair.report import plots
from ddpo_fair.statistics import accuracy, intervals

if TYPE_CHECKING:  # the extra `data` may be missing
    from ddpo_fair.embedded import renders

BATCH = 64  # of each device
MARK = b'{\n "source": {'  # with which every STEM.json begins
ACCURACY_SIZE = (10.2, 3.4)  # inches


def classify(
    model: classifier.AnyClassifier,
    images: "labelled_images.Split | renders.Renders",
    rows: np.ndarray,
) -> np.ndarray:
    """Probabilities float32 [n, K] of rows int [n] of images."""
    params = parallel.replicate(model.params)
    size = BATCH * parallel.num_devices()
    found = []
    for first in tqdm.trange(0, len(rows), size, desc="classifier", disable=None):
        batch = rows[first : first + size]
        padded = np.resize(batch, size)  # every batch has the same shape
        pixels = images.pixels(padded).astype(np.float32) / np.float32(255)
        placed = classifier.classify((model,), (params,), parallel.split(pixels))
        found.append(parallel.gather(placed)[: len(batch)])
    return np.concatenate(found)


def test(
    model: classifier.AnyClassifier,
    images: "labelled_images.Split | renders.Renders",
    rows: np.ndarray,
    confidence: float,
    stem: Path,
    source: dict[str, Any],
) -> tuple[str, tuple[Path, Path]]:
    """Classifies rows int [n] of images: a sentence on how well, and what was written.

    STEM.json and STEM.png are; a UserError if they cannot be. An answer counts if its
    probability is above `confidence`; `source` says what was tested on what.
    """
    found = accuracy.measure(
        images.truth[rows],
        classify(model, images, rows),
        confidence,
        model.attributes[0].classes,
    )
    written, image = paths(stem), accuracy_png(found)
    with files.writing(f"--output={shown(str(stem))}"):
        stem.parent.mkdir(parents=True, exist_ok=True)
        text = files.json_text({"source": source, **found}, indent=1)
        files.replace(written[0], text)
        files.replace(written[1], image)
    return accuracy.sentence(found), written


def paths(stem: Path) -> tuple[Path, Path]:
    """STEM.json and STEM.png."""
    return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")


def accuracy_png(found: dict[str, Any]) -> bytes:
    """`accuracy_sheet` as a PNG file."""
    with plots.style():
        return plots.png(accuracy_sheet(found))


def accuracy_sheet(found: dict[str, Any]) -> figure.Figure:
    """The paper's figure 3, and calibration, of `accuracy.measure`; inside `style()`.

    Its confusion matrices are with and without none.
    """
    matrix = np.asarray(found["confusion"])
    page = figure.Figure(figsize=ACCURACY_SIZE)
    left, middle, right = page.subplots(1, 3)
    for plot, counts, name, key in (
        (left, matrix, "Accuracy with none", "accuracy"),
        (middle, matrix[:-1, :-1], "Accuracy without none", "accuracy_without_none"),
    ):
        _paint_matrix(plot, counts, found["classes"][: len(counts)])
        plot.set_title(f"{name} {accuracy.figure_text(found[key])}", fontsize=10)
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
    least = 1 / (len(found["classes"]) - 1)
    plot.plot([least, 1], [least, 1], color=faint, dashes=(4, 3))
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
    plot.set_xlim(least - 0.03, 1.03)
    plot.set_ylim(-0.06, 1.06)
