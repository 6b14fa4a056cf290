"""Estimates with their 95 % intervals: of shares, of means, of their differences.

Shares are taken over recognised images; intervals are two-sided.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from ddpo_fair.errors import UserError

Z = 1.959963984540054  # 97.5 % quantile of the standard normal: 95 % intervals
FEWEST_PROMPTS = 3  # that speak about new prompts
PRIOR = 0.5  # of m (1 - m), the variance of a share by Jeffreys' beta(1/2, 1/2)


class Interval(NamedTuple):
    """An estimate with its 95 % interval; `nan` where it is undefined."""

    estimate: float
    low: float
    high: float


UNDEFINED = Interval(math.nan, math.nan, math.nan)
UNKNOWN = Interval(math.nan, 0.0, 1.0)  # of a share without images


def wilson(successes: int, trials: int, z: float = Z) -> Interval:
    """A share with its Wilson score interval; (nan, 0, 1) without trials.

    Paper eq. 2: q is `wilson(num_female, num_female + num_male)`. The formula and not
    `scipy.stats.binomtest`, which takes 1.4 ms for it: a report needs thousands.
    """
    if trials == 0:
        return UNKNOWN
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    variance = share * (1 - share) / trials + z**2 / (4 * trials**2)
    half = z * math.sqrt(variance) / (1 + z**2 / trials)
    low = centre - half if successes > 0 else 0.0  # exact, though the terms round
    high = centre + half if successes < trials else 1.0
    return Interval(share, low, high)


def goodman(counts: Sequence[int]) -> list[Interval]:
    """The share of each class, with intervals that hold all of them at 95 %.

    Goodman (1965): Wilson's at 1 - 0.05 / K; of two classes each says what the other
    does, so theirs are `wilson`'s.
    """
    trials, z = sum(counts), simultaneous_z(len(counts))
    return [wilson(count, trials, z) for count in counts]


def simultaneous_z(num_classes: int) -> float:
    """The normal quantile of so many intervals that hold together at 95 %."""
    if num_classes < 3:
        return Z
    return float(special.ndtri(1 - 0.025 / num_classes))


def newcombe(before: Interval, after: Interval) -> Interval:
    """After - before of two independent shares (Newcombe 1998, method 10)."""
    change = after.estimate - before.estimate
    low = math.hypot(after.estimate - after.low, before.high - before.estimate)
    high = math.hypot(after.high - after.estimate, before.estimate - before.low)
    return Interval(change, change - low, change + high)


def rogan_gladen(successes: int, trials: int, confusion: np.ndarray) -> Interval:
    """A share corrected for the classifier's mistakes.

    Estimate of Rogan & Gladen (1978), clipped to [0, 1]; interval of Lang & Reiczigel
    (2014), which also counts the uncertainty of the confusion matrix, int [2, 2],
    `confusion[true, predicted]`, of recognised images. Where so few images were tested
    that the interval's own rates are no better than chance, it is [0, 1]. A UserError
    if a class was never tested, or the classifier only guesses.
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
        return UNKNOWN
    estimate = min(max(_corrected(successes / trials, *(correct / tested)), 0.0), 1.0)
    trials_prime, tested_prime = trials + Z**2, tested + 2
    observed = (successes + Z**2 / 2) / trials_prime
    rates = (correct + 1) / tested_prime
    if rates.sum() <= 1:
        return Interval(estimate, 0.0, 1.0)
    centre = _corrected(observed, *rates)
    noise = rates * (1 - rates) / tested_prime
    offset = 2 * Z**2 * (centre * noise[0] - (1 - centre) * noise[1])
    variance = observed * (1 - observed) / trials_prime
    variance += centre**2 * noise[0] + (1 - centre) ** 2 * noise[1]
    half = Z * math.sqrt(variance) / (rates.sum() - 1)
    low, high = np.clip([centre + offset - half, centre + offset + half], 0, 1).tolist()
    return Interval(estimate, min(low, estimate), max(high, estimate))


def mean(values: np.ndarray, share: bool = False) -> Interval:
    """A mean of values [N] with its Student's t interval.

    A few prompts may agree by chance, and biases lean against 0 or 1. So the interval
    of a `share`, between 0 and 1, counts one value more, with the variance of a share
    that has its weight near the ends, m (1 - m) / 2, and takes it at each bound m as
    Wilson's interval does. It stays in 0 and 1. Of prompts it speaks about new ones.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        return UNDEFINED
    centre, freedom = float(values.mean()), len(values) - 1 + share
    if not freedom:
        return Interval(centre, math.nan, math.nan)
    factor = float(special.stdtrit(freedom, 0.975)) ** 2 / (len(values) * freedom)
    squares, prior = float(np.sum((values - centre) ** 2)), factor * PRIOR * share
    # Both ends solve (centre - m)^2 = factor (squares + PRIOR m (1 - m)).
    middle = (centre + prior / 2) / (1 + prior)
    square = middle**2 - (centre**2 - factor * squares) / (1 + prior)
    half = math.sqrt(max(square, 0.0))  # below 0 by rounding, or for a centre above 1
    low, high = min(middle - half, centre), max(middle + half, centre)
    if share:
        centre, low, high = np.clip([centre, low, high], 0, 1).tolist()
    return Interval(centre, low, high)


def over_prompts(found: Sequence[Interval], share: bool = True) -> Interval:
    """The mean over prompts of a figure, leaving out where it is undefined.

    The interval speaks about new prompts, that of one or two prompts only about these:
    it holds the noise of their images. The figure is not below 0; a `share` is at
    most 1.
    """
    found = [one for one in found if math.isfinite(one.estimate)]
    if len(found) == 1:
        return found[0]
    estimates = np.array([one.estimate for one in found], np.float64)
    centre, low, high = mean(estimates, share)
    if len(found) == 2:
        # Independent images of fixed prompts: their variances add.
        low = centre - math.hypot(*(one.estimate - one.low for one in found)) / 2
        high = centre + math.hypot(*(one.high - one.estimate for one in found)) / 2
    return Interval(centre, max(low, 0.0) if found else low, high)


def over_seeds(
    seeds: Sequence[Interval], lowest: float = 0.0, num_classes: int = 2
) -> Interval:
    """The mean of several seeds with Student's t interval, within [lowest, 1].

    It holds both the noise of the images and the luck of the training. Few seeds may
    agree by chance: it is never narrower than the noise of all their images together.
    Of `num_classes` shares, the intervals hold together; see `goodman`.
    """
    seeds = [seed for seed in seeds if math.isfinite(seed.estimate)]
    if not seeds:
        return Interval(math.nan, lowest, 1.0)
    estimates = np.array([seed.estimate for seed in seeds], np.float64)
    centre = float(estimates.mean())
    if len(seeds) == 1:
        return Interval(centre, lowest, 1.0)
    level = special.ndtr(simultaneous_z(num_classes))
    students = special.stdtrit(len(seeds) - 1, level) * estimates.std(ddof=1)
    students /= math.sqrt(len(seeds))
    noise = math.hypot(*((seed.high - seed.low) / 2 for seed in seeds)) / len(seeds)
    half = max(float(students), noise)
    return Interval(centre, max(centre - half, lowest), min(centre + half, 1.0))


def _corrected(observed: float, sensitivity: float, specificity: float) -> float:
    return (observed + specificity - 1) / (sensitivity + specificity - 1)
