"""Rewards for balance, computed on the host from what the classifier said.

Two stages: probabilities are gathered from all hosts first, then these functions see
the whole batch at once, because a share taken per device batch is mostly noise. A group
is all the images of one prompt; no group influences another. Labels are int [N], a
class or NONE; targets are shares [K] that sum to 1.
"""

from collections.abc import Sequence

import numpy as np

from ddpo_fair.classifiers.classes import NONE


def shift(probabilities: np.ndarray, target_class: int | np.ndarray) -> np.ndarray:
    """The probability of one class, or of each image's, float32 [N] (paper eq. 1)."""
    probabilities = np.asarray(probabilities)
    classes = np.broadcast_to(target_class, probabilities.shape[:1])
    return probabilities[np.arange(classes.size), classes].astype(np.float32)


def underrepresented(
    labels: np.ndarray, prompts: Sequence[str], target: Sequence[float]
) -> np.ndarray:
    """The class that each image's prompt lacks most, int64 [N].

    It is the class with the largest target - frequency; the lowest class on a tie.
    """
    labels = _checked(labels, prompts, len(target))
    lacking = np.empty(labels.shape, np.int64)
    for group in groups(prompts).values():
        lacking[group] = np.argmax(target - _frequency(labels[group], len(target)))
    return lacking


def balance(
    labels: np.ndarray, prompts: Sequence[str], target: Sequence[float]
) -> np.ndarray:
    """Reward of each image for moving its prompt's group to the target shares.

    `target(class) - frequency(class)`, with frequencies over recognised images; NONE
    gets -max|target - frequency|. With two classes and target (1/2, 1/2) this is the
    paper's eq. 3: +|q - 0.5| for the minority, -|q - 0.5| for the others. Float32 [N];
    0 for a prompt where nothing was recognised.
    """
    labels = _checked(labels, prompts, len(target))
    rewards = np.zeros(labels.shape, np.float32)
    for group in groups(prompts).values():
        own = labels[group]
        if np.all(own == NONE):
            continue
        deficit = target - _frequency(own, len(target))
        rewards[group] = np.where(own == NONE, -np.abs(deficit).max(), deficit[own])
    return rewards


def balance_loo(
    memberships: np.ndarray, prompts: Sequence[str], target: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased reward of each image for J = -1/2 ||P - target||^2, and its baseline.

    With h an image's membership and P the mean membership of the *other* recognised
    images of its prompt, the reward is (target - P) . h. Leaving the image itself out
    makes sum(reward * grad log p) an unbiased estimate of N * grad J; `balance` weighs
    P by (N - 1) / N, which misses an uneven target in small groups. Do not divide by
    the batch's standard deviation.

    The baseline is what the other images of the prompt earn on average with the image's
    own P. None may see the image that it is subtracted from; the mean of all rewards
    does, and its product with grad log p moves the point of rest from the target t to
    ((N - 1) t - 1/K) / (N - 2) for K classes.

    Memberships are [N, K]: classifier probabilities (dense) or `one_hot(labels, K)`. A
    row of zeros is NONE: it enters no mean and gets -max|target - P|, as in `balance`.
    That penalty vanishes at the target and is not part of J's gradient. Float64 [N]
    both; 0 where the prompt has no other recognised image.
    """
    memberships = np.asarray(memberships, np.float64)
    sums = memberships.sum(axis=1)  # 0 for NONE
    if len(prompts) != len(memberships):
        raise ValueError(f"{len(memberships)} memberships, {len(prompts)} prompts")
    if not np.all(np.isclose(sums, 0) | np.isclose(sums, 1, atol=1e-3)):
        raise ValueError("a membership row must sum to 1, or to 0 for NONE")
    rewards, baselines = np.zeros((2, len(memberships)))
    for group in groups(prompts).values():
        own, seen = memberships[group], sums[group] > 0.5
        others = seen.sum() - seen
        means = (own.sum(axis=0) - own) / np.maximum(others, 1)[:, None]
        deficits = target - means
        of_none = -np.abs(deficits).max(axis=1)
        reward = np.where(seen, np.sum(deficits * own, axis=1), of_none)
        share = others / max(len(group) - 1, 1)  # of the others, recognised
        baseline = share * np.sum(deficits * means, axis=1) + (1 - share) * of_none
        rewards[group] = np.where(others > 0, reward, 0.0)
        baselines[group] = np.where(others > 0, baseline, 0.0)
    return rewards, baselines


def mean_of_others(values: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """The mean of an image's prompt without itself, float64 [N]; 0 where alone."""
    values = np.asarray(values, np.float64)
    means = np.zeros_like(values)
    for group in groups(prompts).values():
        own = values[group]
        means[group] = (own.sum() - own) / max(own.size - 1, 1)
    return means


def _checked(labels, prompts: Sequence[str], num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(prompts),):
        raise ValueError(f"labels {labels.shape}, but {len(prompts)} prompts")
    if labels.size and not NONE <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: each must be NONE={NONE}"
            f" or one of the target's {num_classes} classes"
        )
    return labels


def groups(prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Indices of each prompt's images, int64 [n]."""
    distinct, inverse = np.unique(np.asarray(prompts), return_inverse=True)
    return {str(x): np.flatnonzero(inverse == i) for i, x in enumerate(distinct)}


def _frequency(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Shares among recognised images, float64 [K]; zeros if there is none."""
    counts = np.bincount(labels[labels != NONE], minlength=num_classes)
    return counts / max(counts.sum(), 1)
