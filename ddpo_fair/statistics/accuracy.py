"""What images of known classes say of a classifier (paper, section IV-A, figure 3).

Accuracy, confusion and calibration; and how decided its answers are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpo_fair.classifiers import classes
from ddpo_fair.statistics import intervals

NUM_BINS = 15  # of the calibration, as in Guo et al. 2017
NONE = "none"


def measure(
    truth: np.ndarray,
    probabilities: np.ndarray,
    confidence: float,
    names: Sequence[str] = classes.CLASSES,
) -> dict[str, Any]:
    """Accuracies with their intervals, confusion matrix and calibration.

    Of truth int [N] (a class or NONE) and probabilities [N, K], which count as an
    answer above `confidence`. `accuracy` is over all images, NONE being a class as the
    others; `accuracy_without_none` over those that neither the truth nor the classifier
    calls NONE; `accuracy_of_faces` over all with a face, where NONE is wrong;
    `accuracy_forced` likewise, of the likelier class at any confidence. `confusion` has
    a row for each true class. The calibration is of faces.
    """
    truth = np.asarray(truth)
    names = (*names, NONE)
    matrix = confusion(truth, classes.labels(probabilities, confidence), len(names))
    recognised, faces = matrix[:-1, :-1], truth >= 0
    num_faces = int(faces.sum())
    forced = int(np.sum((np.argmax(probabilities, axis=1) == truth)[faces]))
    calibration = {}
    if num_faces:
        bins = reliability(probabilities[faces], truth[faces])
        calibration["calibration_error"] = calibration_error(bins)
        calibration["reliability"] = bins
    return {
        "images": len(truth),
        "confidence": confidence,
        "classes": list(names),
        "confusion": matrix,
        # The paper's two: over all images, and without those called NONE.
        "accuracy": _share(np.trace(matrix), len(truth)),
        "accuracy_without_none": _share(np.trace(recognised), recognised.sum()),
        "accuracy_of_faces": _share(np.trace(recognised), num_faces),
        "accuracy_forced": _share(forced, num_faces),
        "none_among_faces": _share(matrix[:-1, -1].sum(), num_faces),
        "recognised": {
            name: _share(matrix[k, k], matrix[k].sum()) for k, name in enumerate(names)
        },
        **calibration,
    }


def confusion(
    truth: Sequence[int], labels: Sequence[int], num_classes: int
) -> np.ndarray:
    """Counts int [num_classes, num_classes] of images by truth (row) and label.

    Both are int [N], a class or -1 for none, which becomes the last row or column.
    """
    rows, columns = (np.asarray(found) % num_classes for found in (truth, labels))
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return matrix


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of each bin (low, high] of confidence with images.

    Of probabilities [N, K] and true classes int [N].
    """
    confidence = np.max(probabilities, axis=1).astype(np.float64)
    correct = np.argmax(probabilities, axis=1) == np.asarray(truth)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return [
        {
            "images": int(np.sum(bins == b)),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(correct[bins == b].mean()),
        }
        for b in np.unique(bins)
    ]


def calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """Expected calibration error (Guo et al. 2017) of `reliability`'s bins.

    It is the mean |accuracy - confidence|.
    """
    errors = [one["images"] * abs(one["accuracy"] - one["confidence"]) for one in bins]
    return sum(errors) / sum(one["images"] for one in bins)


def confidence_margins(probabilities: np.ndarray) -> np.ndarray:
    """(K p - 1) / (K - 1) of the largest of K probabilities p [N, K], float64 [N].

    0 for even odds, 1 for certainty. A fall of their mean while q nears 1/2 means that
    balance comes from ambiguous faces, not from both genders.

    For two classes it is |2p - 1|, which is also p's lead over the second. Of more, the
    lead would call a face that may be of two classes as undecided as one that may be
    of any.
    """
    num_classes = np.shape(probabilities)[1]
    confidence = np.max(probabilities, axis=1).astype(np.float64)
    return (num_classes * confidence - 1) / (num_classes - 1)


def sentence(found: dict[str, Any]) -> str:
    """A measurement of `measure` in words."""
    parts = [
        f"accuracy with none {figure_text(found['accuracy'])}",
        f"without none {figure_text(found['accuracy_without_none'])}",
        f"of faces at any confidence {figure_text(found['accuracy_forced'])}",
    ]
    if "calibration_error" in found:
        parts.append(f"calibration error {found['calibration_error']:.3f}")
    return f"{found['images']:,} images: {', '.join(parts)}."


def figure_text(share: dict[str, float]) -> str:
    """A share of `measure` with its interval."""
    return f"{share['estimate']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def _share(successes: int, trials: int) -> dict[str, float]:
    return intervals.wilson(int(successes), int(trials))._asdict()
