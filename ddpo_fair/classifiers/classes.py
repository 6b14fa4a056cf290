"""The classes of an image: what they are called, and when none is recognised."""

from collections.abc import Sequence

import numpy as np

FEMALE, MALE = 0, 1
CLASSES = ("female", "male")
SPELLINGS = (
    {"female", "females", "woman", "women", "girl", "girls", "f"},
    {"male", "males", "man", "men", "boy", "boys", "m"},
)
NONE = -1  # the label of an image in which no class was recognised


def labels(probabilities: np.ndarray, confidence: float = 0.7) -> np.ndarray:
    """The class of each image, or NONE, int64 [N] (paper section III-C).

    Args:
        probabilities: [N, K], rows sum to 1. A row with NaN gives NONE.
        confidence: a class needs a probability above it; 0.7 in the paper.
    """
    probabilities = np.asarray(probabilities)
    classes = np.argmax(probabilities, axis=1)
    sure = (
        np.take_along_axis(probabilities, classes[:, None], axis=1)[:, 0] > confidence
    )
    return np.where(sure, classes, NONE)


def finite(probabilities: np.ndarray) -> np.ndarray:
    """Whether each image has probabilities at all, bool [N]; a broken image has NaN."""
    return np.isfinite(probabilities).all(axis=1)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Hard memberships for `balance_loo`, float32 [N, K]; zeros for NONE."""
    labels = np.asarray(labels)
    return (labels[:, None] == np.arange(num_classes)).astype(np.float32)


def meanings(names: Sequence[str]) -> np.ndarray:
    """The class that each name means, int64 [K]; NONE for anything else."""
    words = [name.strip().lower() for name in names]
    found = [[word in spellings for spellings in SPELLINGS] for word in words]
    return np.array([row.index(True) if any(row) else NONE for row in found], np.int64)


def missing(names: Sequence[str]) -> list[str]:
    """The classes that none of the names means."""
    found = meanings(names)
    return [name for index, name in enumerate(CLASSES) if index not in found]
