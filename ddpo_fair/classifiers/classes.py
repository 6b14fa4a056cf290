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


def labels(probabilities: np.ndarray, confidence_threshold: float = 0.7) -> np.ndarray:
    """The class of each image, or NONE, int64 [N] (paper section III-C).

    Args:
        probabilities: [N, K], rows sum to 1. A row with NaN gives NONE.
        confidence_threshold: a class needs a probability above it; 0.7 in the paper.
    """
    probabilities = np.asarray(probabilities)
    recognised = probabilities.max(axis=1) > confidence_threshold
    return np.where(recognised, np.argmax(probabilities, axis=1), NONE)


def finite(probabilities: np.ndarray) -> np.ndarray:
    """Whether each image has probabilities at all, bool [N]; a broken image has NaN."""
    return np.isfinite(probabilities).all(axis=1)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Hard memberships for `balance_loo`, float32 [N, K]; zeros for NONE."""
    labels = np.asarray(labels)
    return (labels[:, None] == np.arange(num_classes)).astype(np.float32)


def meanings(names: Sequence[str]) -> np.ndarray:
    """The class that each name means, int64 [K]; NONE for anything else."""
    spelled = {word: k for k, words in enumerate(SPELLINGS) for word in words}
    found = [spelled.get(name.strip().lower(), NONE) for name in names]
    return np.array(found, np.int64)


def missing(names: Sequence[str]) -> list[str]:
    """The classes that none of the names means."""
    found = meanings(names)
    return [name for index, name in enumerate(CLASSES) if index not in found]
