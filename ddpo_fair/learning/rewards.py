"""Rewards for balance, computed on the host from what the classifier said.

Two stages: probabilities are gathered from all hosts first, then these functions see
all n images of a prompt at once, because a share taken per device batch is mostly
noise. No prompt influences another. Labels are int [n], a class or NONE; targets are
shares [K] that sum to 1.
"""

from collections.abc import Sequence

import numpy as np

from ddpo_fair.classifiers.classes import NONE


def shift(probabilities: np.ndarray, target_class: int | np.ndarray) -> np.ndarray:
    """The probability of one class, or of each image's, float32 [n] (paper eq. 1)."""
    probabilities = np.asarray(probabilities)
    classes = np.broadcast_to(target_class, probabilities.shape[:1])
    return probabilities[np.arange(classes.size), classes].astype(np.float32)


def underrepresented(labels: np.ndarray, target: Sequence[float]) -> int:
    """The class with the largest target - frequency; the lowest class on a tie."""
    return int(np.argmax(target - _frequency(labels, len(target))))


def balance(labels: np.ndarray, target: Sequence[float]) -> np.ndarray:
    """Reward of each of a prompt's images for moving them to the target shares.

    `target(class) - frequency(class)`, with frequencies over recognised images; NONE
    gets -max|target - frequency|. With two classes and target (1/2, 1/2) this is the
    paper's eq. 3: +|q - 0.5| for the minority, -|q - 0.5| for the others. Float32 [n];
    0 if nothing was recognised.
    """
    if np.all(labels == NONE):
        return np.zeros(labels.shape, np.float32)
    deficit = target - _frequency(labels, len(target))
    of_none = -np.abs(deficit).max()
    return np.where(labels == NONE, of_none, deficit[labels]).astype(np.float32)


def balance_loo(
    memberships: np.ndarray, target: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased reward of each image for J = -1/2 ||P - target||^2, and its baseline.

    With h an image's membership and P the mean membership of the *other* recognised
    images of its prompt, the reward is (target - P) . h. Leaving the image itself out
    makes sum(reward * grad log p) an unbiased estimate of n * grad J; `balance` weighs
    P by (n - 1) / n, which misses an uneven target in small groups. Do not divide by
    the batch's standard deviation.

    The baseline is what the other images of the prompt earn on average with the image's
    own P. None may see the image that it is subtracted from; the mean of all rewards
    does, and its product with grad log p moves the point of rest from the target t to
    ((n - 1) t - 1/K) / (n - 2) for K classes.

    Memberships are [n, K]: classifier probabilities (dense) or `one_hot(labels, K)`. A
    row of zeros is NONE: it enters no mean and gets -max|target - P|, as in `balance`.
    That penalty vanishes at the target and is not part of J's gradient. Float64 [n]
    both; 0 for images without others that are recognised.
    """
    own = np.asarray(memberships, np.float64)
    sums = own.sum(axis=1)  # 0 for NONE
    if not np.all(np.isclose(sums, 0) | np.isclose(sums, 1, atol=1e-3)):
        raise ValueError("a membership row must sum to 1, or to 0 for NONE")
    seen = sums > 0.5
    others = seen.sum() - seen
    means = (own.sum(axis=0) - own) / np.maximum(others, 1)[:, None]
    deficits = target - means
    of_none = -np.abs(deficits).max(axis=1)
    reward = np.where(seen, np.sum(deficits * own, axis=1), of_none)
    share = others / max(len(own) - 1, 1)  # of the others, recognised
    baseline = share * np.sum(deficits * means, axis=1) + (1 - share) * of_none
    return np.where(others > 0, reward, 0.0), np.where(others > 0, baseline, 0.0)


def mean_of_others(values: np.ndarray) -> np.ndarray:
    """The mean of a prompt's images without each itself, float64 [n]; 0 if alone."""
    own = np.asarray(values, np.float64)
    return (own.sum() - own) / max(own.size - 1, 1)


def groups(prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Indices of each prompt's images, int64 [n]."""
    distinct, inverse = np.unique(np.asarray(prompts), return_inverse=True)
    return {str(x): np.flatnonzero(inverse == i) for i, x in enumerate(distinct)}


def _frequency(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Shares among recognised images, float64 [K]; zeros if there is none."""
    if labels.size and not NONE <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: each must be NONE={NONE}"
            f" or one of the target's {num_classes} classes"
        )
    counts = np.bincount(labels[labels != NONE], minlength=num_classes)
    return counts / max(counts.sum(), 1)
