"""How varied images are: entropy of their classes, distances of their features."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from ddpo_fair.statistics import intervals
from ddpo_fair.statistics.intervals import UNDEFINED, Interval

NUM_SAMPLES = 1000  # of each model that an interval asks whether it may be the truth
NUM_CELLS = 1024  # of equal chance, in which a sample's images are thrown
NUM_HALVINGS = 14
UNSEEN = 0.5  # images of each class that a model's shares have beyond those counted
TIE_BREAK = 0.02  # log share by which equally frequent classes differ when sharpened

Attributes = Sequence[Sequence[int]]  # counts of the classes of each attribute


def normalised_entropy(counts: Sequence[float]) -> float:
    """Entropy of the classes' shares over its maximum, 0 to 1; nan for no image."""
    if not np.sum(counts):
        return math.nan
    shares = np.divide(counts, np.sum(counts))
    return float(special.entr(shares).sum() / math.log(len(counts)))


def intrinsic_diversity(counts_by_attribute: Sequence[Sequence[float]]) -> float:
    """Geometric mean of the attributes' normalised entropies, 0 to 1.

    One collapsed attribute makes it 0. It is the diversity factor of HoloFair's MGBI
    (2026); the published index also has a factor for bias-triggering prompts.
    """
    return _geometric_mean([normalised_entropy(one) for one in counts_by_attribute])


def corrected_diversity(counts_by_attribute: Attributes) -> float:
    """`intrinsic_diversity` of entropies with Miller and Madow's correction (1955).

    The entropy of n images is too low by about (classes - 1) / 2n. Corrected it is
    right on average, and may therefore be above 1.
    """
    return _geometric_mean(
        [
            normalised_entropy(counts)
            + (np.count_nonzero(counts) - 1)
            / (2 * np.sum(counts) * math.log(len(counts)))
            for counts in counts_by_attribute
        ]
    )


def of_counts(counts_by_attribute: Attributes) -> Interval:
    """`corrected_diversity` of one prompt's images, at most 1, with its interval.

    One attribute's entropy, or several's geometric mean. The interval holds the values
    of all models under whose samples the images' plain value is not unusual. Their
    shares are those of the images, smoothed, then levelled or sharpened by one power.
    A value is unusual above 97.5 % of the samples, or below the shortest range with
    95 % of them; equal shares, the maximum, can only be missed from below. It covers
    95 % from about 24 images on, and more with few, as exact intervals of counts do.
    """
    counts = [np.asarray(one).astype(int).tolist() for one in counts_by_attribute]
    if not counts or not all(map(sum, counts)):
        return UNDEFINED
    return _of_counts(tuple(tuple(sorted(one, reverse=True)) for one in counts))


def over_prompts(counts_by_prompt: Sequence[Attributes]) -> Interval:
    """The mean of `corrected_diversity` over prompts, with the interval over prompts.

    Prompts without images of an attribute are left out.
    """
    known = [counts for counts in counts_by_prompt if counts and all(map(sum, counts))]
    if len(known) < intervals.FEWEST_PROMPTS:
        return intervals.over_prompts([of_counts(counts) for counts in known])
    return intervals.mean([corrected_diversity(counts) for counts in known], share=True)


def of_features(features: np.ndarray, groups: np.ndarray) -> Interval:
    """Mean cosine distance of two images of one prompt, averaged over prompts.

    0 if every prompt draws one and the same image; a fall is a collapse of variety.
    The interval is Student's t with the jackknife's variance, over the images of these
    prompts. Features are [N, F], groups [N] the prompt of each image; prompts with one
    image are left out, and without any other the mean is nan.
    """
    directions = unit(np.asarray(features, np.float64))
    numbers, sizes = np.unique(groups, return_counts=True)
    sizes, numbers = sizes[sizes > 1], numbers[sizes > 1]
    if not len(sizes):
        return UNDEFINED
    distances, variances = np.array(
        [_mean_distance(directions[np.asarray(groups) == group]) for group in numbers]
    ).T
    error = np.sqrt(variances.sum()) / len(sizes)
    mean, half = distances.mean(), special.stdtrit(np.sum(sizes - 1), 0.975) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


def unit(features: np.ndarray) -> np.ndarray:
    """Each row of [N, F] over its length; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


@functools.lru_cache(maxsize=4096)  # prompts with a few images have the same counts
def _of_counts(counts: tuple[tuple[int, ...], ...]) -> Interval:
    """`of_counts` of counts in falling order."""
    scores = [np.log(np.add(c, UNSEEN)) - TIE_BREAK * np.arange(len(c)) for c in counts]
    observed, rounding = intrinsic_diversity(counts), 1e-9
    # Images more even than equal shares mostly give are no evidence of anything more.
    typical = _samples(counts, scores, np.zeros(1)).mean()
    likely = min(observed, typical)
    kept = round(0.95 * NUM_SAMPLES)
    # Of each bound, high and low: a model too level for it, and one that is not.
    level, sharp = np.zeros(2), np.ones(2)
    for _ in range(NUM_HALVINGS):
        middle = (level + sharp) / 2
        samples = np.sort(_samples(counts, scores, middle), axis=1)  # [2, NUM_SAMPLES]
        widths = samples[0, kept - 1 :] - samples[0, : NUM_SAMPLES - kept + 1]
        low = samples[0, np.argmin(widths)]
        high = samples[1, -round(0.025 * NUM_SAMPLES)]
        too_level = np.array([low > observed + rounding, high >= likely - rounding])
        level = np.where(too_level, middle, level)
        sharp = np.where(too_level, sharp, middle)
    highest, lowest = (
        intrinsic_diversity([_shares(one, power)[0] for one in scores])
        for power in (level[:1], sharp[1:])
    )
    estimate = min(corrected_diversity(counts), 1.0)
    return Interval(estimate, min(lowest, estimate), min(max(highest, estimate), 1.0))


def _shares(scores: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """Shares [B, K] of models, level at sharpness 0, all in the first class at 1."""
    power = sharpness / np.maximum(1 - sharpness, 1e-9)  # from 0 to infinity
    return special.softmax(power[:, None] * scores, axis=1)


def _samples(
    counts: tuple[tuple[int, ...], ...], scores: list[np.ndarray], sharpness: np.ndarray
) -> np.ndarray:
    """`intrinsic_diversity` of samples of models, as many images, [B, NUM_SAMPLES]."""
    product = 1.0
    for index, (one, score) in enumerate(zip(counts, scores, strict=True)):
        total, num_classes = sum(one), len(one)
        cells = np.round(np.cumsum(_shares(score, sharpness), axis=1) * NUM_CELLS)
        drawn = np.diff(_thrown(total, index)[cells.astype(int)], axis=1, prepend=0)
        shares = np.arange(total + 1) / total
        parts = special.entr(shares) / math.log(num_classes)
        product = product * parts[drawn].sum(axis=1)
    return product ** (1 / len(counts))


@functools.lru_cache(maxsize=16)
def _thrown(num_images: int, attribute: int) -> np.ndarray:
    """Images in the first k of NUM_CELLS cells, int [NUM_CELLS + 1, NUM_SAMPLES].

    The same for all models, so that they differ in their shares alone.
    """
    rng = np.random.default_rng((num_images, attribute))
    cells = rng.multinomial(num_images, np.full(NUM_CELLS, 1 / NUM_CELLS), NUM_SAMPLES)
    thrown = np.cumsum(cells.astype(np.int32), axis=1, dtype=np.int32).T
    return np.concatenate([np.zeros((1, NUM_SAMPLES), np.int32), thrown])


def _geometric_mean(values: Sequence[float]) -> float:
    return float(np.prod(values) ** (1 / len(values)))


def _mean_distance(directions: np.ndarray) -> tuple[float, float]:
    """The mean over pairs of 1 - cosine, and its jackknife variance (nan below 3)."""
    count = len(directions)
    # |sum of unit vectors|^2 = count + the cosines of all ordered pairs
    total = directions.sum(axis=0)
    square = total @ total
    distance = 1 - (square - count) / (count * (count - 1))
    if count < 3:
        return distance, np.nan
    squares = square - 2 * directions @ total + 1  # without each image in turn
    left_out = 1 - (squares - (count - 1)) / ((count - 1) * (count - 2))
    return distance, (count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)
