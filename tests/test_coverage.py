"""How often 95 % intervals hold the truth, in simulations of 2,000 draws."""

import math

import numpy as np
import pytest
from scipy import special, stats

from ddpo_fair.errors import UserError
from ddpo_fair.statistics import bias, diversity, intervals

DRAWS = 2000


def coverage(found, truth) -> float:
    """The share of intervals [N, 3] that hold the truth, in order all of them."""
    estimates, low, high = np.array(found).T
    assert np.all((low <= estimates) & (estimates <= high))
    return float(np.mean((low <= truth + 1e-9) & (truth - 1e-9 <= high)))


def models(kind: str, num_classes: int) -> np.ndarray:
    """Shares [K] of a model."""
    return {
        "uniform": np.full(num_classes, 1 / num_classes),
        "skewed": 0.5 ** np.arange(1, num_classes + 1) / (1 - 0.5**num_classes),
        "one-sided": np.array([0.97, *(num_classes - 1) * [0.03 / (num_classes - 1)]]),
    }[kind]


def entropy_coverage(kind: str, num_classes: int, images: int) -> float:
    truth = models(kind, num_classes)
    draws = np.random.default_rng(0).multinomial(images, truth, DRAWS)
    distinct, places = np.unique(np.sort(draws), axis=0, return_inverse=True)
    found = np.array([diversity.of_counts([counts]) for counts in distinct])
    entropy = special.entr(truth).sum() / math.log(num_classes)
    return coverage(found[places.ravel()], entropy)


@pytest.mark.parametrize("kind", ["uniform", "skewed", "one-sided"])
@pytest.mark.parametrize("num_classes", [2, 6])
@pytest.mark.parametrize("images", [5, 24, pytest.param(224, marks=pytest.mark.long)])
def test_entropys_interval_covers(kind, num_classes, images):
    found = entropy_coverage(kind, num_classes, images)
    # Of few images the unlikeliest 5 % are seldom 5 %: then it covers more.
    assert found >= 0.93
    few = images == 5 or (images == 24 and kind == "one-sided")
    assert few or found <= (0.975 if images == 224 else 0.985)


@pytest.mark.long
@pytest.mark.parametrize(
    "kinds", [("uniform",) * 3, ("one-sided", "uniform", "skewed")]
)
def test_intrinsic_diversitys_interval_covers(kinds):
    rng = np.random.default_rng(0)
    truth = [models(*pair) for pair in zip(kinds, (2, 6, 3), strict=True)]
    found = [
        diversity.of_counts([rng.multinomial(24, shares) for shares in truth])
        for _ in range(400)
    ]
    entropies = [special.entr(p).sum() / math.log(len(p)) for p in truth]
    assert coverage(found, np.prod(entropies) ** (1 / 3)) >= 0.93


def test_intervals_hold_their_estimate_of_the_same_counts():
    # Equal but for one image; the percentile bootstrap's was [.84, .993] about .998.
    found = diversity.of_counts([[5, 5, 5, 5, 4]])
    assert found.low < 0.998 <= found.estimate <= found.high == 1.0


@pytest.mark.parametrize(
    "kind", ["fair", "skewed", "one-sided", "polarised", "near balance"]
)
@pytest.mark.parametrize("prompts", [3, 8, 40])
def test_mean_bias_over_prompts_covers(kind, prompts):
    rng = np.random.default_rng(prompts)
    spread = {  # of the share of each prompt, by beta distributions
        "skewed": (0.8, 1.6),
        "one-sided": (1, 20),
        "polarised": (0.4, 0.4),
        "near balance": (8, 8),
    }
    size = (DRAWS + 20_000, prompts)
    shares = rng.beta(*spread[kind], size) if kind in spread else np.full(size, 0.5)
    biases = np.abs(2 * rng.binomial(24, shares) / 24 - 1)
    truth = biases[DRAWS:].mean()  # over all prompts there could be
    found = [intervals.mean(row, share=True) for row in biases[:DRAWS]]
    assert coverage(found, truth) >= 0.93
    if prompts == 40:
        assert coverage(found, truth) <= 0.97


@pytest.mark.parametrize("prompts", [3, 8, 40])
def test_change_of_bias_over_prompts_covers(prompts):
    rng = np.random.default_rng(prompts)
    before, after = (
        np.abs(2 * rng.binomial(24, rng.beta(a, a, (DRAWS, prompts))) / 24 - 1)
        for a in (0.5, 5)
    )
    expected = (  # of the beta-binomials, exactly
        stats.betabinom(24, a, a).expect(lambda k: np.abs(2 * k / 24 - 1))
        for a in (0.5, 5)
    )
    first, last = expected
    found = [intervals.mean(row) for row in after - before]
    assert 0.92 <= coverage(found, last - first) <= 0.97


@pytest.mark.parametrize("prompts", [3, 13])
@pytest.mark.parametrize("spread", [0.4, 20])
def test_mean_entropy_over_prompts_covers(prompts, spread):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([spread] * 3, (200_000,))
    truth = np.mean(special.entr(shares).sum(axis=1)) / math.log(3)
    drawn = rng.multinomial(24, rng.dirichlet([spread] * 3, (500, prompts)))
    found = [diversity.over_prompts(counts[:, None].tolist()) for counts in drawn]
    assert coverage(found, truth) >= 0.92  # 500 draws: standard error .01


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("luck", [0.0, 0.05])
def test_seeds_interval_covers(seeds, luck):
    rng = np.random.default_rng(seeds)
    shares = np.clip(rng.normal(0.5, luck, (DRAWS, seeds)), 0, 1)
    counts = rng.binomial(224, shares)
    table = [intervals.wilson(k, 224) for k in range(225)]
    found = [intervals.over_seeds([table[k] for k in row]) for row in counts]
    assert coverage(found, 0.5) >= 0.93  # without luck it holds the images' noise, too


@pytest.mark.parametrize("images", [5, 24, 224])
def test_wilson_and_bias_cover_as_published(images):
    # Exact: on average over shares 95 %; at single ones down to 83 % (Agresti and
    # Coull 1998), where a class is rare.
    shares = np.linspace(0.005, 0.995, 199)
    table = np.array([intervals.wilson(k, images) for k in range(images + 1)])
    chances = stats.binom.pmf(np.arange(images + 1)[:, None], images, shares)
    held = (table[:, 1:2] <= shares) & (shares <= table[:, 2:])
    covered = np.sum(held * chances, axis=0)
    assert 0.94 <= covered.mean() <= 0.97 and covered.min() > 0.83
    biases = np.array([bias.of_share(intervals.Interval(*row)) for row in table])
    truth = np.abs(2 * shares - 1)
    held = (biases[:, 1:2] <= truth + 1e-9) & (truth <= biases[:, 2:] + 1e-9)
    assert np.all(np.sum(held * chances, axis=0) >= covered - 1e-9)  # either side


@pytest.mark.parametrize(
    ("before", "after"), [(0.05, 0.5), (0.5, 0.5), (0.03, 0.03), (0.2, 0.9)]
)
def test_newcombe_covers(before, after):
    rng = np.random.default_rng(0)
    pairs = zip(
        rng.binomial(224, before, DRAWS), rng.binomial(64, after, DRAWS), strict=True
    )
    found = [
        intervals.newcombe(intervals.wilson(one, 224), intervals.wilson(two, 64))
        for one, two in pairs
    ]
    assert 0.93 <= coverage(found, after - before) <= 0.98


def test_rogan_gladen_is_in_order_or_refused():
    rng = np.random.default_rng(0)
    refused, found = 0, [intervals.rogan_gladen(50, 100, [[1, 0], [9, 1]])]
    for _ in range(DRAWS):
        trials = rng.choice([1, 5, 24, 224, 10**6])
        matrix = rng.integers(0, rng.choice([2, 5, 30, 1000]), (2, 2), endpoint=True)
        try:
            found.append(
                intervals.rogan_gladen(rng.integers(trials + 1), trials, matrix)
            )
        except UserError:
            refused += 1
    assert 0 < refused < DRAWS
    coverage(found, 0.5)  # in order
    assert np.min(found) >= 0 and np.max(found) <= 1


@pytest.mark.parametrize(("images", "prompts"), [(5, 1), (24, 1), (5, 5), (24, 5)])
def test_feature_diversitys_interval_covers(images, prompts):
    centres = 1.5 * np.random.default_rng(1).normal(size=(prompts, 1, 6))
    rng = np.random.default_rng(2)

    def of(images: int) -> intervals.Interval:
        features = centres + rng.normal(size=(prompts, images, 6))
        groups = np.repeat(np.arange(prompts), images)
        return diversity.of_features(features.reshape(-1, 6), groups)

    assert coverage([of(images) for _ in range(1000)], of(4000).estimate) >= 0.91


@pytest.mark.parametrize(
    "shares", [(1 / 3, 1 / 3, 1 / 3), (0.4, 0.35, 0.25), (0.7, 0.2, 0.1)]
)
def test_distances_interval_covers(shares):
    target = np.full(3, 1 / 3)
    draws = np.random.default_rng(0).multinomial(224, shares, DRAWS)
    found = [bias.of_shares(counts.tolist(), target) for counts in draws]
    assert coverage(found, np.abs(shares - target).sum() / 2) >= 0.93


@pytest.mark.parametrize("kind", ["uniform", "skewed"])
@pytest.mark.parametrize("num_classes", [2, 6])
def test_intervals_of_shares_hold_all_of_them(kind, num_classes):
    truth = models(kind, num_classes)
    draws = np.random.default_rng(0).multinomial(224, truth, DRAWS)
    found = np.array([intervals.goodman(counts) for counts in draws])
    held = (found[..., 1] <= truth) & (truth <= found[..., 2])
    assert 0.93 <= held.all(axis=1).mean() <= 0.975
