"""Shares corrected for the classifier's errors, with the noise of both in the interval.

Of two classes it is `intervals.rogan_gladen`. Of more, the confusion matrix's rows and
the observed shares are drawn from their Dirichlet posteriors, each draw is solved for
the true shares, and the interval is of the draws' quantiles.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from ddpo_fair.errors import UserError
from ddpo_fair.statistics import bias, intervals
from ddpo_fair.statistics.intervals import UNKNOWN, Interval

NUM_DRAWS = 4000
PRIOR = 0.5  # images of each answer that the posteriors add; Jeffreys'
SMALLEST = 0.1  # singular value: the correction multiplies noise by its inverse


def check(confusion: np.ndarray, names: Sequence[str]) -> None:
    """Raises a UserError for a matrix that nothing can be corrected with.

    It is int [K, K], `confusion[true, said]`, of recognised images of K named classes.
    """
    if empty := [x for x, row in zip(names, confusion, strict=True) if not sum(row)]:
        raise UserError(
            f"no image of {empty[0]} was recognised, so the classifier's errors cannot"
            " be corrected; add images of it, or lower --confidence."
        )
    rates = rates_of(confusion)
    smallest = float(np.linalg.svd(rates, compute_uv=False)[-1])
    if smallest < SMALLEST:
        raise UserError(
            f"the confusion matrix {np.asarray(confusion).tolist()} is near singular:"
            f" its smallest singular value is {smallest:.3f}, below {SMALLEST}, so a"
            " correction would be noise. Take a better classifier, or leave this out."
        )
    likeliest_of = np.take(names, rates.argmax(axis=0))
    for name, likeliest in zip(names, likeliest_of, strict=True):
        if likeliest != name:
            raise UserError(
                f"images of {likeliest} are classified as {name} more often than those"
                f" of {name} are; check the folders' names."
            )


def rates_of(confusion: np.ndarray) -> np.ndarray:
    """The share of each answer among the images of each class, [K, K]."""
    return np.asarray(confusion) / np.sum(confusion, axis=1, keepdims=True)


def of_shares(
    counts: Sequence[int], confusion: np.ndarray, target: Sequence[float]
) -> tuple[list[Interval], Interval]:
    """Corrected shares of K classes, which hold together, and their bias.

    The bias is as `bias.of_share` has it of two classes, and as `bias.of_shares` of
    more: conservative where it is noise which classes are too many. The counts are of
    recognised images by what they were classified as; the matrix passes `check`.
    """
    counts, wanted = np.asarray(counts), np.asarray(target, np.float64)
    if len(counts) == 2:
        first = intervals.rogan_gladen(int(counts[0]), int(counts.sum()), confusion)
        second = Interval(1 - first.estimate, 1 - first.high, 1 - first.low)
        return [first, second], bias.of_share(first, float(wanted[0]))
    if not counts.sum():
        return [UNKNOWN] * len(counts), UNKNOWN
    random = np.random.default_rng(0)
    observed = random.dirichlet(counts + PRIOR, NUM_DRAWS)
    drawn = solve(_draw_rates(confusion, random, NUM_DRAWS), observed)
    estimate = solve(rates_of(confusion)[None], counts[None] / counts.sum())[0]
    level = special.ndtr(intervals.simultaneous_z(len(counts)))
    low, high = np.quantile(drawn, [1 - level, level], axis=0)
    low, high = np.minimum(low, estimate), np.maximum(high, estimate)
    bounds = np.stack([estimate, low, high], axis=1).tolist()
    many, middle = estimate > wanted, np.abs(estimate - wanted).sum() / 2
    least = np.quantile((drawn - wanted)[:, many].sum(axis=1), 0.025)
    least = 0.0 if np.all((low <= wanted) & (wanted <= high)) else max(least, 0.0)
    most = np.quantile(np.abs(drawn - wanted).sum(axis=1) / 2, 0.975)
    found = middle, min(least, middle), max(most, middle)
    return [Interval(*one) for one in bounds], Interval(*map(float, found))


def over_prompts(
    mean: Interval,
    counts: Sequence[Sequence[int]],
    confusion: np.ndarray,
    targets: Sequence[Sequence[float]],
    most: float = 1.0,
) -> Interval:
    """The mean corrected bias of P prompts with the matrix's noise, which they share.

    `mean` is of their biases as `intervals.over_prompts` has it, without that noise;
    counts and targets are [P, K]; no bias is above `most`.
    """
    counts, targets = np.asarray(counts), np.asarray(targets)
    seen = counts.sum(axis=1) > 0
    if seen.sum() < 2:  # each one's own interval holds it
        return mean
    # How far the mean may lie below and above its estimate for the matrix alone.
    observed = counts[seen] / counts[seen].sum(axis=1, keepdims=True)
    rates = _draw_rates(confusion, np.random.default_rng(1), NUM_DRAWS // 4)
    means = [_biases(solve(x[None], observed), targets[seen]).mean() for x in rates]
    below, middle, above = np.quantile(means, [0.025, 0.5, 0.975]).tolist()
    low = mean.estimate - math.hypot(mean.estimate - mean.low, middle - below)
    high = mean.estimate + math.hypot(mean.high - mean.estimate, above - middle)
    return Interval(mean.estimate, max(low, 0.0), min(high, most))


def fair_bias(seen: int, confusion: np.ndarray, target: Sequence[float]) -> float:
    """The mean corrected bias of a model on target, with so many recognised images."""
    if not seen:
        return np.nan
    random = np.random.default_rng(2)
    answers = np.asarray(target) @ _draw_rates(confusion, random, NUM_DRAWS // 4)
    found = solve(rates_of(confusion)[None], random.multinomial(seen, answers) / seen)
    return float(_biases(found, target).mean())


def solve(rates: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """True shares [N, K] that show `observed` [N, K] under rates [N or 1, K, K].

    Nearest to the solution on the simplex (Duchi et al. 2008), which noise may leave.
    """
    found = np.linalg.solve(np.swapaxes(rates, 1, 2), observed[:, :, None])[:, :, 0]
    ordered = -np.sort(-found, axis=1)
    surplus = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, found.shape[1] + 1)
    last = np.sum(ordered > surplus, axis=1) - 1
    return np.maximum(found - surplus[np.arange(len(found)), last][:, None], 0.0)


def _draw_rates(
    confusion: np.ndarray, random: np.random.Generator, num_draws: int
) -> np.ndarray:
    rows = [random.dirichlet(row + PRIOR, num_draws) for row in np.asarray(confusion)]
    return np.stack(rows, axis=1)


def _biases(shares: np.ndarray, target: Sequence[float] | np.ndarray) -> np.ndarray:
    scale = 1.0 if shares.shape[1] == 2 else 0.5
    return scale * np.abs(shares - np.asarray(target)).sum(axis=1)
