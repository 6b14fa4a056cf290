"""Estimates with their intervals, as evaluation.json has them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpo_fair.statistics import intervals
from ddpo_fair.statistics.intervals import Interval

NUM_RESAMPLES = 2000
FEWEST_PROMPTS = 5  # that are worth resampling; fewer count as fixed


def interval(found: Interval) -> dict[str, float]:
    """An interval as JSON has it."""
    return dict(zip(("estimate", "low", "high"), map(float, found), strict=True))


def mean(values: np.ndarray) -> Interval:
    """A mean over images with its normal interval."""
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    centre = float(np.mean(values))
    if len(values) == 1:
        return Interval(centre, math.nan, math.nan)
    half = intervals.Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def gap(q: Interval, target: float) -> Interval:
    """2 |q - target|, which is |f_female - f_male| for a target of 1/2."""
    bounds = [2 * abs(bound - target) for bound in (q.low, q.high)]
    low = 0.0 if q.low <= target <= q.high else min(bounds)
    return Interval(2 * abs(q.estimate - target), low, max(bounds))


def kl(q: Interval, target: float) -> Interval:
    """KL(shares || target) in nats; it grows on either side of the target."""
    if math.isnan(q.estimate):
        return Interval(math.nan, math.nan, math.nan)
    estimate, *bounds = (
        intervals.kl_to_target((share, 1 - share), (target, 1 - target)) for share in q
    )
    low = 0.0 if q.low <= target <= q.high else min(bounds)
    return Interval(estimate, low, max(bounds))


def diversity(counts_by_attribute: Sequence[Sequence[int]]) -> Interval:
    """Geometric mean of normalised entropies; the bootstrap's interval over images."""
    if not counts_by_attribute or not all(map(sum, counts_by_attribute)):
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(0)
    logs = np.zeros(NUM_RESAMPLES)
    with np.errstate(divide="ignore"):  # one class only: entropy 0
        for counts in counts_by_attribute:
            total = sum(counts)
            shares = np.array(counts, np.float64) / total
            drawn = rng.multinomial(total, shares, NUM_RESAMPLES) / total
            terms = drawn * np.log(np.where(drawn > 0, drawn, 1.0))
            logs += np.log(np.maximum(-terms.sum(axis=1), 0) / math.log(len(counts)))
    resampled = np.exp(logs / len(counts_by_attribute))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(intervals.intrinsic_diversity(counts_by_attribute), low, high)


def over_prompts(
    prompts: Sequence[dict[str, Any]],
    figure: Callable[[dict[str, Any]], dict[str, float]],
) -> dict[str, float]:
    """The mean over prompts of a figure, leaving out where it is undefined."""
    found = [figure(one) for one in prompts]
    found = [one for one in found if math.isfinite(one["estimate"])]
    if not found:
        return interval(Interval(math.nan, math.nan, math.nan))
    if len(found) == 1:
        return found[0]
    estimates = np.array([one["estimate"] for one in found], np.float64)
    if len(found) >= FEWEST_PROMPTS:
        return interval(_bootstrap(estimates))
    # Independent images of fixed prompts: their variances add.
    centre = float(estimates.mean())
    below, above = (
        math.hypot(*(one["estimate"] - one[bound] for one in found)) / len(found)
        for bound in ("low", "high")
    )
    return interval(Interval(centre, centre - below, centre + above))


def change(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], name: str
) -> dict[str, float] | None:
    """After - before of a figure, over the same prompts in the same order.

    None for a few prompts: what is before and after says more.
    """
    pairs = [
        (one[name]["estimate"], two[name]["estimate"])
        for one, two in zip(before, after, strict=True)
        if name in one and name in two
    ]
    values = np.array([b - a for a, b in pairs], np.float64)
    values = values[np.isfinite(values)]
    if len(values) < FEWEST_PROMPTS:
        return None
    return interval(_bootstrap(values))


def _bootstrap(values: np.ndarray) -> Interval:
    rng = np.random.default_rng(0)
    return intervals.bootstrap(values, rng, num_resamples=NUM_RESAMPLES)
