"""Estimates with their 95 % intervals: of shares, of means, of their differences.

Shares are taken over recognised images; intervals are two-sided.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ddpo_fair.errors import UserError

Z = 1.959963984540054  # 97.5 % quantile of the standard normal: 95 % intervals
NUM_RESAMPLES = 2000
FEWEST_PROMPTS = 5  # that are worth resampling; fewer count as fixed


class Interval(NamedTuple):
    """An estimate with its 95 % interval; `nan` where it is undefined."""

    estimate: float
    low: float
    high: float


UNDEFINED = Interval(math.nan, math.nan, math.nan)


def wilson(successes: int, trials: int) -> Interval:
    """A share with its Wilson score interval; (nan, 0, 1) without trials.

    Paper eq. 2: q is `wilson(num_female, num_female + num_male)`. The formula and not
    `scipy.stats.binomtest`, which takes 1.4 ms for it: a report needs thousands.
    """
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    variance = share * (1 - share) / trials + Z**2 / (4 * trials**2)
    half = Z * math.sqrt(variance) / (1 + Z**2 / trials)
    low = centre - half if successes > 0 else 0.0  # exact, though the terms round
    high = centre + half if successes < trials else 1.0
    return Interval(share, low, high)


def newcombe(before: Interval, after: Interval) -> Interval:
    """After - before of two independent shares (Newcombe 1998, method 10).

    Args:
        before: of `wilson`.
        after: likewise.
    """
    change = after.estimate - before.estimate
    low = math.hypot(after.estimate - after.low, before.high - before.estimate)
    high = math.hypot(after.high - after.estimate, before.estimate - before.low)
    return Interval(change, change - low, change + high)


def rogan_gladen(successes: int, trials: int, confusion: np.ndarray) -> Interval:
    """A share corrected for the classifier's mistakes.

    Estimate of Rogan & Gladen (1978), clipped to [0, 1]; interval of Lang & Reiczigel
    (2014), which also counts the uncertainty of the confusion matrix.

    Args:
        successes: images classified as the first class.
        trials: recognised images.
        confusion: int [2, 2], `confusion[true, predicted]`, of recognised images.

    Raises:
        UserError: if a class was never tested, or the classifier only guesses.
    """
    confusion = np.asarray(confusion, np.float64)
    if confusion.shape != (2, 2) or not np.all(confusion.sum(axis=1) > 0):
        raise UserError(
            f"The confusion matrix {confusion.tolist()} must be 2 x 2, a row per true"
            " class, with images of both; test the classifier on more images."
        )
    tested, correct = confusion.sum(axis=1), np.diag(confusion)
    if np.sum(correct / tested) <= 1:
        raise UserError(
            f"The confusion matrix {confusion.tolist()} is no better than chance, so"
            " its mistakes cannot be corrected; check the order of the classes."
        )
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    estimate = _corrected(successes / trials, *(correct / tested))
    trials_prime, tested_prime = trials + Z**2, tested + 2
    observed = (successes + Z**2 / 2) / trials_prime
    rates = (correct + 1) / tested_prime
    centre = _corrected(observed, *rates)
    noise = rates * (1 - rates) / tested_prime
    offset = 2 * Z**2 * (centre * noise[0] - (1 - centre) * noise[1])
    variance = observed * (1 - observed) / trials_prime
    variance += centre**2 * noise[0] + (1 - centre) ** 2 * noise[1]
    half = Z * math.sqrt(variance) / (rates.sum() - 1)
    bounds = np.clip([estimate, centre + offset - half, centre + offset + half], 0, 1)
    return Interval(*bounds.tolist())


def mean(values: np.ndarray) -> Interval:
    """A mean over images [N] with its normal interval."""
    if len(values) == 0:
        return UNDEFINED
    centre = float(np.mean(values))
    if len(values) == 1:
        return Interval(centre, math.nan, math.nan)
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def bootstrap(
    values: np.ndarray,
    num_resamples: int = NUM_RESAMPLES,
    rng: np.random.Generator | int = 0,
) -> Interval:
    """A mean with its percentile bootstrap interval.

    Args:
        values: [P], one figure per prompt; prompts, not images, are resampled, because
            new prompts are what the figure speaks about.
        num_resamples: how often.
        rng: source of the resamples, or its seed.
    """
    values = np.asarray(values, np.float64)
    centre = float(values.mean())
    if len(values) == 1:
        return Interval(centre, centre, centre)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=num_resamples, method="percentile", rng=rng
    )
    return Interval(centre, *map(float, found.confidence_interval))


def over_prompts(found: Sequence[Interval]) -> Interval:
    """The mean over prompts of a figure, leaving out where it is undefined.

    Many prompts are resampled; of few, the interval holds the noise of their images.
    """
    found = [one for one in found if math.isfinite(one.estimate)]
    if not found:
        return UNDEFINED
    if len(found) == 1:
        return found[0]
    estimates = np.array([one.estimate for one in found], np.float64)
    if len(found) >= FEWEST_PROMPTS:
        return bootstrap(estimates)
    # Independent images of fixed prompts: their variances add.
    centre = float(estimates.mean())
    below = math.hypot(*(one.estimate - one.low for one in found)) / len(found)
    above = math.hypot(*(one.high - one.estimate for one in found)) / len(found)
    return Interval(centre, centre - below, centre + above)


def over_seeds(seeds: Sequence[Interval], lowest: float = 0.0) -> Interval:
    """The mean of several seeds with Student's t interval, within [lowest, 1].

    It holds both the noise of the images and the luck of the training. Few seeds may
    agree by chance: it is never narrower than the noise of all their images together.
    """
    seeds = [seed for seed in seeds if math.isfinite(seed.estimate)]
    if not seeds:
        return Interval(math.nan, lowest, 1.0)
    estimates = np.array([seed.estimate for seed in seeds], np.float64)
    centre = float(estimates.mean())
    if len(seeds) == 1:
        return Interval(centre, lowest, 1.0)
    students = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(estimates)
    noise = math.hypot(*((seed.high - seed.low) / 2 for seed in seeds)) / len(seeds)
    half = max(float(students), noise)
    return Interval(centre, max(centre - half, lowest), min(centre + half, 1.0))


def _corrected(observed: float, sensitivity: float, specificity: float) -> float:
    return (observed + specificity - 1) / (sensitivity + specificity - 1)
