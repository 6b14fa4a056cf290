"""How far shares are from their target: bias, KL, and what measuring noise adds."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special, stats

from ddpo_fair.statistics import intervals
from ddpo_fair.statistics.intervals import UNDEFINED, UNKNOWN, Interval


def of_share(q: Interval, target: float = 0.5) -> Interval:
    """2 |q - target|, which is |f_female - f_male| for a target of 1/2."""
    return _distance(q, target, lambda share: 2 * abs(share - target))


def of_shares(counts: Sequence[int], target: Sequence[float]) -> Interval:
    """Total variation distance of K shares from their target: 1/2 sum |share - target|.

    It is what share of images would have to be of another class. The interval is
    Wilson's of the classes that are too many; it begins at 0 where `goodman`'s of all
    shares hold the target.
    """
    if not sum(counts):
        return UNKNOWN
    shares, wanted = np.array(intervals.goodman(counts)), np.asarray(target, np.float64)
    excess = shares - wanted[:, None]
    many = excess[:, 0] > 0
    together = intervals.wilson(int(np.sum(counts, where=many)), sum(counts))
    estimate, low, high = np.subtract(together, wanted[many].sum()).tolist()
    if np.all((excess[:, 1] <= 0) & (excess[:, 2] >= 0)):
        low = 0.0
    if not many.any():
        high = float(excess[:, 2].max())
    return Interval(estimate, max(low, 0.0), high)


def distance_floor(target: Sequence[float], trials: int) -> float:
    """The mean of `of_shares` that a model on target shows.

    Of two classes with target 1/2 it is half of `noise_floor`, and exact; of others it
    is that of normal shares.
    """
    shares = np.asarray(target, np.float64)
    if not trials:
        return math.nan
    if len(shares) == 2 and math.isclose(shares[0], 0.5):
        return noise_floor(trials) / 2
    return float(np.sqrt(shares * (1 - shares) / (2 * math.pi * trials)).sum())


def kl(q: Interval, target: float) -> Interval:
    """KL(shares || target) in nats; inf for an unwanted class, nan for no image."""
    if math.isnan(q.estimate):
        return UNDEFINED
    wanted = (target, 1 - target)
    return _distance(
        q, target, lambda share: float(stats.entropy((share, 1 - share), wanted))
    )


def noise_floor(trials: int) -> float:
    """E|2q - 1| that a perfectly fair model shows on this many images; exact.

    0.196 for 16 images, 0.025 for 1,000: bias below it is not evidence.
    """
    if not trials:
        return math.nan
    half = trials // 2  # binomial(2 half, half) / 4^half, by Wallis' ratio
    return float(1 / (math.sqrt(math.pi) * special.poch(half + 0.5, 0.5)))


def without_noise(num_first: Sequence[int], num_second: Sequence[int]) -> float:
    """The true bias that all prompts would have for their mean to be the observed one.

    Of counts [P] of each class; empty prompts are left out, and it is nan without
    others. The mean of |f_female - f_male| (Shen et al. 2024) is never 0 on finite
    samples. Where it is below that of perfectly fair prompts, this is 0. When prompts
    differ it errs upwards, never above the mean.
    """
    first, second = np.asarray(num_first), np.asarray(num_second)
    trials = first + second
    seen = trials > 0
    if not seen.any():
        return math.nan
    mean = float(np.mean(np.abs(first - second)[seen] / trials[seen]))
    sizes, repeats = np.unique(trials[seen], return_counts=True)

    def excess(true_bias: float) -> float:
        shown = [_expected_bias(true_bias, int(size)) for size in sizes]
        return float(np.average(shown, weights=repeats)) - mean

    return 0.0 if excess(0.0) >= 0 else float(optimize.brentq(excess, 0, 1))


def _distance(
    q: Interval, target: float, distance: Callable[[float], float]
) -> Interval:
    """A distance of q from the target that grows on either side of it."""
    estimate, *bounds = map(distance, q)
    low = 0.0 if q.low <= target <= q.high else min(bounds)
    return Interval(estimate, low, max(bounds))


def _expected_bias(true_bias: float, trials: int) -> float:
    """E|2q - 1| when each image is of the first class with (1 + true_bias) / 2."""
    successes = np.arange(trials + 1)
    chances = stats.binom.pmf(successes, trials, (1 + true_bias) / 2)
    return float(chances @ np.abs(2 * successes / trials - 1))
