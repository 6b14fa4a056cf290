"""What pictures of known classes say of a classifier: paper, section IV-A, figure 3."""

from typing import Any

import numpy as np
from matplotlib import axes, figure

from ddpo_fair.classifiers import classes
from ddpo_fair.report import figures, plots
from ddpo_fair.statistics import estimates, intervals

NUM_BINS = 15  # of the calibration, as in statistics.calibration_error
SIZE = (10.2, 3.4)  # inches


def measure(
    truth: np.ndarray, probabilities: np.ndarray, confidence: float
) -> dict[str, Any]:
    """Accuracies with their intervals, confusion matrix and calibration.

    Args:
        truth: int [N], FEMALE, MALE or NONE.
        probabilities: [N, 2] of (female, male).
        confidence: above which an answer counts; NONE below.

    Returns:
        `accuracy` is over all pictures, NONE being a class as the others;
        `accuracy_without_none` over those that neither the truth nor the classifier
        calls NONE; `accuracy_of_faces` over all with a face, where NONE is wrong;
        `accuracy_forced` likewise, of the likelier class at any confidence.
        `confusion` has a row for each true class. The calibration is of faces.
    """
    truth = np.asarray(truth)
    labels = classes.labels(probabilities, confidence)
    matrix = figures.confusion(truth, labels)
    faces = truth >= 0
    likelier = np.argmax(probabilities, axis=1)
    num_faces = int(faces.sum())
    calibration = {}
    if num_faces:
        calibration = {
            "calibration_error": intervals.calibration_error(
                probabilities[faces], truth[faces], NUM_BINS
            ),
            "reliability": reliability(probabilities[faces], truth[faces]),
        }
    return {
        "images": len(truth),
        "confidence": confidence,
        **accuracies(matrix),
        "accuracy_of_faces": _share(int(np.trace(matrix[:2, :2])), num_faces),
        "accuracy_forced": _share(int(np.sum((likelier == truth)[faces])), num_faces),
        "none_among_faces": _share(int(matrix[:2, 2].sum()), num_faces),
        "recognised": {
            name: _share(int(matrix[k, k]), int(matrix[k].sum()))
            for k, name in enumerate(figures.CLASSES)
        },
        **calibration,
    }


def accuracies(matrix: np.ndarray) -> dict[str, Any]:
    """The paper's two: over all pictures, and without those called NONE.

    Args:
        matrix: int [3, 3], of `figures.confusion`.
    """
    matrix = np.asarray(matrix)
    recognised = matrix[:2, :2]
    return {
        "classes": list(figures.CLASSES),
        "confusion": matrix,
        "accuracy": _share(int(np.trace(matrix)), int(matrix.sum())),
        "accuracy_without_none": _share(
            int(np.trace(recognised)), int(recognised.sum())
        ),
    }


def reliability(probabilities: np.ndarray, classes: np.ndarray) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of each bin of confidence that has pictures.

    Args:
        probabilities: [N, K].
        classes: int [N], the truth.
    """
    confidence = np.max(probabilities, axis=1).astype(np.float64)
    correct = np.argmax(probabilities, axis=1) == classes
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return [
        {
            "images": int(np.sum(bins == b)),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(correct[bins == b].mean()),
        }
        for b in np.unique(bins)
    ]


def sentence(found: dict[str, Any]) -> str:
    """A measurement in words."""
    names = {
        "accuracy": "accuracy with none",
        "accuracy_without_none": "without none",
        "accuracy_forced": "of faces at any confidence",
    }
    parts = [f"{name} {_text(found[key])}" for key, name in names.items()]
    if "calibration_error" in found:
        parts.append(f"calibration error {found['calibration_error']:.3f}")
    return f"{found['images']:,} pictures: {', '.join(parts)}."


def sheet(found: dict[str, Any]) -> figure.Figure:
    """Confusion matrices with and without none, and calibration; inside `style()`."""
    matrix = np.asarray(found["confusion"])
    page = figure.Figure(figsize=SIZE)
    left, middle, right = page.subplots(1, 3)
    for plot, counts, key in (
        (left, matrix, "accuracy"),
        (middle, matrix[:2, :2], "accuracy_without_none"),
    ):
        figures.paint_matrix(plot, counts, figures.CLASSES[: len(counts)])
        title = "with none" if len(counts) == 3 else "without none"
        plot.set_title(f"Accuracy {title} {_text(found[key])}", fontsize=10)
    _calibration(right, found)
    page.subplots_adjust(0.085, 0.16, 0.985, 0.9, wspace=0.36)
    return page


def _calibration(plot: axes.Axes, found: dict[str, Any]) -> None:
    """Accuracy, with its interval, against confidence; on the diagonal is right."""
    colour, _, marker = plots.look(0)
    plot.plot([0.5, 1], [0.5, 1], color=plots.COLOURS["faint"], dashes=(4, 3))
    for one in found.get("reliability", []):
        share = intervals.wilson(round(one["accuracy"] * one["images"]), one["images"])
        x = one["confidence"]
        plot.plot([x, x], share[1:], color=colour, linewidth=1)
        plot.plot([x], share[:1], color=colour, marker=marker)
        plot.annotate(
            f"{one['images']}",
            (x, share.low),
            (0, -10),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=plots.COLOURS["faint"],
        )
    error = found.get("calibration_error", float("nan"))
    plot.set_title(f"Calibration error {error:.3f}", fontsize=10)
    plot.set_xlabel("confidence (beside: pictures)")
    plot.set_ylabel("accuracy")
    plot.set_xlim(0.47, 1.03)
    plot.set_ylim(-0.06, 1.06)


def _share(successes: int, trials: int) -> dict[str, float]:
    return estimates.interval(intervals.wilson(successes, trials))


def _text(share: dict[str, float]) -> str:
    return f"{share['estimate']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"
