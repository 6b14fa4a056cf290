"""How balanced a model is, how sure we can be, and what measuring noise explains.

NumPy only. Shares are taken over recognised images; intervals are two-sided, 95 %.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddpo_fair.errors import UserError

Z = 1.959963984540054  # 97.5 % quantile of the standard normal: 95 % intervals


class Interval(NamedTuple):
    """An estimate with its 95 % interval; `nan` where it is undefined."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """A share with its Wilson score interval; (nan, 0, 1) without trials.

    Paper eq. 2: q is `wilson(num_female, num_female + num_male)`.
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


def noise_floor(trials: int) -> float:
    """E|2q - 1| that a perfectly fair model shows on this many images; exact.

    0.196 for 16 images, 0.025 for 1,000: bias below it is not evidence.
    """
    half = trials // 2
    return math.comb(2 * half, half) / 4**half if trials else math.nan


class Bias(NamedTuple):
    """Mean |f_female - f_male| over prompts (Shen et al. 2024), and what noise adds.

    Attributes:
        mean: the plain mean, the literature's figure; never 0 on finite samples.
        floor: the mean that perfectly fair prompts would show.
        corrected: the common true bias whose expected `mean` is the observed one; 0 if
            `mean` is below `floor`. When prompts differ it errs upwards, never above
            `mean`.
    """

    mean: float
    floor: float
    corrected: float


def bias(num_first: Sequence[int], num_second: Sequence[int]) -> Bias:
    """The bias over prompts, from counts [P] of each class; skips empty prompts."""
    first, second = np.asarray(num_first), np.asarray(num_second)
    trials = first + second
    seen = trials > 0
    if not seen.any():
        return Bias(math.nan, math.nan, math.nan)
    mean = float(np.mean(np.abs(first - second)[seen] / trials[seen]))
    sizes, repeats = np.unique(trials[seen], return_counts=True)

    def expected(true_bias: float) -> float:
        shown = [_expected_bias(true_bias, int(size)) for size in sizes]
        return float(np.average(shown, weights=repeats))

    floor = expected(0.0)
    low, high = 0.0, 1.0
    for _ in range(40 if mean > floor else 0):  # bisection: expected() increases
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < mean else (low, middle)
    return Bias(mean, floor, low)


def bootstrap(
    values: np.ndarray,
    rng: np.random.Generator,
    statistic: Callable[..., np.ndarray] = np.mean,
    num_resamples: int = 10_000,
) -> Interval:
    """A statistic over prompts with its percentile bootstrap interval.

    Args:
        values: [P], one figure per prompt; prompts, not images, are resampled, because
            new prompts are what the figure speaks about.
        rng: the source of resamples, e.g. `np.random.default_rng(0)`.
        statistic: takes `axis`, as `np.mean` and `np.median` do.
    """
    values = np.asarray(values, np.float64)
    picks = rng.integers(len(values), size=(num_resamples, len(values)))
    low, high = np.quantile(statistic(values[picks], axis=1), [0.025, 0.975])
    return Interval(float(statistic(values, axis=0)), float(low), float(high))


def normalised_entropy(counts: Sequence[float]) -> float:
    """Entropy of the classes' shares over its maximum, 0 to 1; nan for no image."""
    shares = np.asarray(counts, np.float64)
    if shares.sum() == 0:
        return math.nan
    shares = shares[shares > 0] / shares.sum()
    return float(-np.sum(shares * np.log(shares)) / math.log(len(counts)))


def intrinsic_diversity(counts_by_attribute: Sequence[Sequence[float]]) -> float:
    """Geometric mean of the attributes' normalised entropies, 0 to 1.

    One collapsed attribute makes it 0. It is the diversity factor of HoloFair's MGBI
    (2026); the published index also has a factor for bias-triggering prompts.
    """
    entropies = [normalised_entropy(counts) for counts in counts_by_attribute]
    return float(np.prod(entropies) ** (1 / len(entropies)))


def kl_to_target(counts: Sequence[float], target: Sequence[float]) -> float:
    """KL(shares || target) in nats; inf for an unwanted class, nan for no image."""
    counts, target = np.asarray(counts, np.float64), np.asarray(target, np.float64)
    if counts.sum() == 0:
        return math.nan
    shares = counts / counts.sum()
    present = shares > 0
    if np.any(target[present] == 0):
        return math.inf
    return float(np.sum(shares[present] * np.log(shares[present] / target[present])))


def calibration_error(
    probabilities: np.ndarray, classes: np.ndarray, num_bins: int = 15
) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence|.

    Args:
        probabilities: [N, K].
        classes: int [N], the truth.
        num_bins: bins of equal width over the confidence, (low, high].
    """
    confidence = np.max(probabilities, axis=1).astype(np.float64)
    correct = np.argmax(probabilities, axis=1) == np.asarray(classes)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def polarisation(probabilities: np.ndarray) -> float:
    """How decided the classifier is on average: 0 for even odds, 1 for certainty.

    For two classes it is mean |2p - 1|. A fall while q nears 1/2 means that balance
    comes from ambiguous faces, not from both genders.

    Args:
        probabilities: [N, K].
    """
    num_classes = np.shape(probabilities)[1]
    sureness = np.max(probabilities, axis=1).astype(np.float64)
    return float(np.mean((num_classes * sureness - 1) / (num_classes - 1)))


def _corrected(observed: float, sensitivity: float, specificity: float) -> float:
    return (observed + specificity - 1) / (sensitivity + specificity - 1)


def _expected_bias(true_bias: float, trials: int) -> float:
    """E|2q - 1| when each image is of the first class with (1 + true_bias) / 2."""
    share = (1 + true_bias) / 2
    if share == 1:
        return 1.0
    successes = np.arange(trials + 1)
    log_factorials = np.cumsum(np.log(np.maximum(successes, 1)))
    log_choices = log_factorials[-1] - log_factorials - log_factorials[::-1]
    log_odds = successes * math.log(share) + successes[::-1] * math.log(1 - share)
    return float(np.exp(log_choices + log_odds) @ np.abs(2 * successes / trials - 1))
