"""How varied images are: entropy of their classes, distances of their features."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from ddpo_fair.statistics.intervals import NUM_RESAMPLES, UNDEFINED, Interval, Z


def normalised_entropy(counts: Sequence[float]) -> float:
    """Entropy of the classes' shares over its maximum, 0 to 1; nan for no image."""
    if not np.sum(counts):
        return math.nan
    return float(stats.entropy(counts, base=len(counts)))


def intrinsic_diversity(counts_by_attribute: Sequence[Sequence[float]]) -> float:
    """Geometric mean of the attributes' normalised entropies, 0 to 1.

    One collapsed attribute makes it 0. It is the diversity factor of HoloFair's MGBI
    (2026); the published index also has a factor for bias-triggering prompts.
    """
    entropies = [normalised_entropy(counts) for counts in counts_by_attribute]
    return float(np.prod(entropies) ** (1 / len(entropies)))


def of_counts(counts_by_attribute: Sequence[Sequence[int]]) -> Interval:
    """`intrinsic_diversity` with the bootstrap's interval over images."""
    if not counts_by_attribute or not all(map(sum, counts_by_attribute)):
        return UNDEFINED
    rng = np.random.default_rng(0)
    product = np.ones(NUM_RESAMPLES)
    for counts in counts_by_attribute:
        total = sum(counts)
        drawn = rng.multinomial(total, np.divide(counts, total), NUM_RESAMPLES)
        product *= stats.entropy(drawn, axis=1, base=len(counts))
    resampled = product ** (1 / len(counts_by_attribute))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(intrinsic_diversity(counts_by_attribute), float(low), float(high))


def of_features(features: np.ndarray, groups: np.ndarray) -> Interval:
    """Mean cosine distance of two images of one prompt, averaged over prompts.

    0 if every prompt draws one and the same image; a fall is a collapse of variety.
    The interval is the jackknife's, over the images of these prompts.

    Args:
        features: [N, F].
        groups: [N], the prompt of each image; prompts with one image are left out.

    Returns:
        nan if no prompt has two images.
    """
    directions = unit(np.asarray(features, np.float64))
    found = [
        _mean_distance(directions[np.asarray(groups) == group])
        for group in np.unique(groups)
    ]
    found = [pair for pair in found if np.isfinite(pair[0])]
    if not found:
        return UNDEFINED
    distances, variances = np.array(found).T
    mean, half = distances.mean(), Z * np.sqrt(variances.sum()) / len(found)
    return Interval(float(mean), float(mean - half), float(mean + half))


def unit(features: np.ndarray) -> np.ndarray:
    """Each row of [N, F] over its length; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


def _mean_distance(directions: np.ndarray) -> tuple[float, float]:
    """The mean over pairs of 1 - cosine, and its jackknife variance (nan below 3)."""
    count = len(directions)
    if count < 2:
        return np.nan, np.nan
    # |sum of unit vectors|^2 = count + the cosines of all ordered pairs
    total = directions.sum(axis=0)
    square = total @ total
    distance = 1 - (square - count) / (count * (count - 1))
    if count < 3:
        return distance, np.nan
    squares = square - 2 * directions @ total + 1  # without each image in turn
    left_out = 1 - (squares - (count - 1)) / ((count - 1) * (count - 2))
    return distance, (count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)
