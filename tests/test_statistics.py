"""Statistics by hand arithmetic, published numbers, enumeration and coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from ddpo_fair.errors import UserError
from ddpo_fair.statistics import accuracy, bias, diversity, intervals


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 16, 0.28, 0.72),  # the paper's "8 of 16"
        # Newcombe 1998, table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_the_published_interval(successes, trials, low, high):
    actual = intervals.wilson(successes, trials)
    scipys = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert actual[1:] == pytest.approx(tuple(scipys))
    assert actual.estimate == successes / trials
    digits = 2 if trials == 16 else 4
    assert round(actual.low, digits) == low
    assert round(actual.high, digits) == high


def test_newcombe_and_rogan_gladen_are_the_published_ones():
    # Newcombe (1998), table II, 56/70 - 48/80 by method 10: 0.0524 to 0.3339.
    pair = intervals.wilson(48, 80), intervals.wilson(56, 70)
    assert intervals.newcombe(*pair) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    # Sensitivity 0.8, specificity 0.9, 30 % female: 0.3 * 0.8 + 0.7 * 0.1 = 0.31.
    actual = intervals.rogan_gladen(310, 1000, [[80, 20], [10, 90]])
    np.testing.assert_allclose(actual.estimate, 0.3, rtol=1e-12)
    assert actual.low < 0.3 < actual.high
    # None classified as female, but 10 % of the male should be: -0.1 / 0.7.
    assert intervals.rogan_gladen(0, 50, [[80, 20], [10, 90]]).estimate == 0.0


def test_no_recognised_image_says_nothing():
    estimate, low, high = intervals.wilson(0, 0)
    assert math.isnan(estimate) and (low, high) == (0.0, 1.0)
    assert intervals.wilson(0, 7).low == 0.0 and intervals.wilson(7, 7).high == 1.0
    assert math.isnan(intervals.rogan_gladen(0, 0, [[8, 2], [1, 9]]).estimate)
    assert math.isnan(bias.without_noise([0], [0]))
    assert math.isnan(bias.noise_floor(0))


def test_rogan_gladen_interval_is_lang_and_reiczigels():
    # Equations 6, 7, 16 and 17 of the 2014 paper, written again one number at a time.
    z = 1.959963984540054
    n = 100 + z**2
    p = (40 + z**2 / 2) / n
    se, sp = 46 / 52, 39 / 42  # 45 of 50 and 38 of 40, plus one of two
    prevalence = (p + sp - 1) / (se + sp - 1)
    se_noise, sp_noise = se * (1 - se) / 52, sp * (1 - sp) / 42
    offset = 2 * z**2 * (prevalence * se_noise - (1 - prevalence) * sp_noise)
    variance = p * (1 - p) / n + prevalence**2 * se_noise
    variance = (variance + (1 - prevalence) ** 2 * sp_noise) / (se + sp - 1) ** 2
    actual = intervals.rogan_gladen(40, 100, [[45, 5], [2, 38]])
    half = z * variance**0.5
    np.testing.assert_allclose(actual.low, prevalence + offset - half, rtol=1e-9)
    np.testing.assert_allclose(actual.high, prevalence + offset + half, rtol=1e-9)


@pytest.mark.parametrize(
    ("confusion", "words"),
    [
        ([[5, 5], [5, 5]], "no better than chance"),
        ([[1, 9], [9, 1]], "order of the classes"),
        ([[5, 5], [0, 0]], "images of both"),
        ([[5, 5, 0], [0, 5, 0], [0, 0, 1]], "2 x 2"),
    ],
)
def test_a_useless_confusion_matrix_is_refused(confusion, words):
    with pytest.raises(UserError, match=words):
        intervals.rogan_gladen(5, 10, confusion)


@pytest.mark.parametrize(
    ("trials", "floor"), [(16, 0.196), (60, 0.103), (160, 0.063), (1000, 0.025)]
)
def test_noise_floor_is_the_published_one_and_the_binomial_mean(trials, floor):
    assert round(bias.noise_floor(trials), 3) == floor
    for few in (trials, *range(1, 4)):
        chances = stats.binom.pmf(np.arange(few + 1), few, 0.5)
        mean = chances @ np.abs(2 * np.arange(few + 1) / few - 1)
        np.testing.assert_allclose(bias.noise_floor(few), mean, rtol=1e-12)


def test_bias_by_hand():
    # All images of each prompt are of one class; a prompt without faces is left out.
    actual = bias.without_noise([60, 0, 0], [0, 60, 0])
    np.testing.assert_allclose(actual, 1.0, atol=1e-9)
    assert bias.without_noise([8, 9, 7], [8, 7, 9]) == 0.0  # below the floor
    # Of one image E|2q - 1| is 1 whatever the bias; of two it is (1 + bias^2) / 2.
    actual = bias.without_noise([2, 1, 0, 2], [0, 1, 2, 0])  # a mean of 3/4
    np.testing.assert_allclose(actual, 0.5**0.5, rtol=1e-9)


@pytest.mark.parametrize("true_bias", [0.1, 0.3, 0.7])
def test_bias_correction_removes_the_noise(true_bias):
    # 4,000 prompts of 16 images, equally biased, in either direction.
    rng = np.random.default_rng(0)
    shares = (1 + true_bias * rng.choice([-1, 1], 4000)) / 2
    females = rng.binomial(16, shares)
    actual = bias.without_noise(females, 16 - females)
    # Standard error of the mean about 0.16 / sqrt(4000) = 0.0025; the correction's
    # slope at 0.1 is about 0.3, hence the tolerance.
    np.testing.assert_allclose(actual, true_bias, atol=0.03)
    assert np.mean(np.abs(females / 8 - 1)) > actual
    # Where prompts differ it errs upwards.
    biases = rng.uniform(-0.6, 0.6, 4000)
    females = rng.binomial(24, (1 + biases) / 2)
    actual = bias.without_noise(females, 24 - females)
    assert np.abs(biases).mean() < actual < np.mean(np.abs(2 * females / 24 - 1))


def test_a_mean_has_students_interval():
    # 1, 2, 6: squares 4 + 1 + 9 = 14, standard error sqrt(14 / 2 / 3), t(.975; 2)
    half = 4.302653 * math.sqrt(14 / 6)
    actual = intervals.mean([1.0, 2.0, 6.0])
    assert actual == pytest.approx((3.0, 3 - half, 3 + half), rel=1e-6)
    alone = intervals.mean([2.0])
    assert alone.estimate == 2.0 and math.isnan(alone.low) and math.isnan(alone.high)
    assert math.isnan(intervals.mean([]).estimate)
    # .4, .5, .6: squares .02. Three degrees of freedom: t(.975; 3) = 3.182446.
    actual = intervals.mean([0.4, 0.5, 0.6], share=True)
    for end in (actual.low, actual.high):
        variance = (0.02 + end * (1 - end) / 2) / 3
        assert (0.5 - end) ** 2 == pytest.approx(3.182446**2 * variance / 3, rel=1e-6)
    # All 1: (1 - m)^2 = t^2 m (1 - m) / 18, so m = 1 / (1 + t^2 / 18).
    actual = intervals.mean(np.ones(3), share=True)
    assert actual == pytest.approx((1.0, 1 / (1 + 3.182446**2 / 18), 1.0), rel=1e-6)


def test_intervals_over_prompts_and_over_seeds():
    found = [intervals.Interval(0.4, 0.3, 0.6), intervals.Interval(0.6, 0.6, 0.9)]
    actual = intervals.over_prompts([*found, intervals.UNDEFINED])
    # .5 - sqrt(.1^2 + 0) / 2 and .5 + sqrt(.2^2 + .3^2) / 2
    assert actual == pytest.approx((0.5, 0.45, 0.5 + math.sqrt(0.13) / 2))
    assert intervals.over_prompts(found[:1]) == found[0]
    assert math.isnan(intervals.over_prompts([]).estimate)
    three = [*found, intervals.Interval(0.1, 0.0, 0.2)]
    estimates = [one.estimate for one in three]
    assert intervals.over_prompts(three) == intervals.mean(estimates, share=True)
    assert intervals.over_prompts(three, share=False).low == 0.0  # t's is below
    # mean .5, standard error .1 / sqrt(3), t(.975; 2) = 4.30265 from the tables
    seeds = [intervals.Interval(q, q - 0.06, q + 0.06) for q in (0.4, 0.5, 0.6)]
    actual = intervals.over_seeds(seeds)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert actual == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-5)
    assert intervals.over_seeds(seeds[:1]) == (0.4, 0.0, 1.0)  # one seed says nothing
    # sqrt(.06^2 + .06^2 + .09^2) / 3
    seeds = [intervals.Interval(0.47, 0.47 - h, 0.47 + h) for h in (0.06, 0.06, 0.09)]
    actual = intervals.over_seeds(seeds)
    assert actual == pytest.approx((0.47, 0.47 - 0.0412311, 0.47 + 0.0412311))


def test_diversity_is_a_mean_of_corrected_entropies():
    assert diversity.normalised_entropy([5, 5, 5]) == pytest.approx(1.0)
    assert diversity.normalised_entropy([7, 0]) == 0.0
    # 1/4, 3/4: 2 - 0.75 log2(3) bits of 1.
    expected = 2 - 0.75 * math.log2(3)
    assert diversity.normalised_entropy([1, 3]) == pytest.approx(expected)
    assert math.isnan(diversity.normalised_entropy([0, 0]))
    # Entropies 1 and 1/2 (two of four classes, evenly).
    actual = diversity.intrinsic_diversity([[5, 5], [3, 3, 0, 0]])
    assert actual == pytest.approx(0.5**0.5)
    assert diversity.intrinsic_diversity([[5, 5], [6, 0]]) == 0.0
    # Miller and Madow: 1 / 20 nats for two classes in ten images, 2 / 14 for three.
    assert diversity.corrected_diversity([[5, 5]]) == pytest.approx(
        1 + 1 / (20 * math.log(2))
    )
    plain = diversity.normalised_entropy([4, 2, 1, 0])
    found = diversity.of_counts([[4, 2, 1, 0]])
    assert found.estimate == pytest.approx(plain + 2 / (14 * math.log(4)))
    assert diversity.of_counts([[5, 5]])[::2] == (1.0, 1.0)  # at most 1
    assert diversity.of_counts([[6, 0]])[:2] == (0.0, 0.0)  # no class was missed
    assert math.isnan(diversity.of_counts([[0, 0]]).estimate)
    assert math.isnan(diversity.over_prompts([[[0, 0]], []]).estimate)


def test_kl_to_target_by_hand():
    # 3/4, 1/4 against 1/2, 1/2: log 2 - H = 0.75 log 1.5 + 0.25 log 0.5.
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    for counts, target, wanted in (
        ((6, 8), 0.5, expected),
        ((2, 8), 0.25, 0.0),
        ((4, 4), 1.0, 0.0),
        ((3, 4), 1.0, math.inf),
        ((0, 0), 0.5, math.nan),
    ):
        found = bias.kl(intervals.wilson(*counts), target).estimate
        assert found == pytest.approx(wanted, nan_ok=True)


def test_confidence_margins_by_hand():
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    found = accuracy.confidence_margins(probabilities)
    np.testing.assert_allclose(found, [1, 0, 0.5])
    assert not accuracy.confidence_margins(np.full((2, 4), 0.25)).any()
    # Three classes: (3 * .6 - 1) / 2, whatever the second is.
    probabilities = np.array([[0.6, 0.4, 0.0], [0.2, 0.2, 0.6]])
    np.testing.assert_allclose(accuracy.confidence_margins(probabilities), 0.4)


def test_shares_of_classes_have_goodmans_intervals():
    # Both ends p of a share s solve (s - p)^2 = B p (1 - p) / n, B the chi-square
    # quantile at 1 - .05 / K (Goodman 1965).
    counts, chi = (20, 70, 10), stats.chi2.ppf(1 - 0.05 / 3, 1)
    for count, found in zip(counts, intervals.goodman(counts), strict=True):
        assert found.estimate == count / 100
        for end in found[1:]:
            error = (found.estimate - end) ** 2
            assert error == pytest.approx(chi * end * (1 - end) / 100, rel=1e-9)
    first, second = intervals.goodman((30, 10))  # one says what the other does
    assert first == intervals.wilson(30, 40)
    assert second.low == pytest.approx(1 - first.high)


def test_distance_from_shares_by_hand():
    # .5, .3, .2 against thirds: only the first is too many, by .5 - 1/3.
    found = bias.of_shares((50, 30, 20), (1 / 3,) * 3)
    wilson = intervals.wilson(50, 100)
    assert found == pytest.approx([end - 1 / 3 for end in wilson])
    assert found.estimate == pytest.approx((1 / 6 + 1 / 30 + 2 / 15) / 2)
    # Of two classes it is |q - target|.
    assert bias.of_shares((90, 10), (0.5, 0.5)).estimate == pytest.approx(0.4)
    on_target = bias.of_shares((50, 50), (0.5, 0.5))
    assert on_target == (0, 0, pytest.approx(intervals.wilson(50, 100).high - 0.5))
    assert math.isnan(bias.of_shares((0, 0), (0.5, 0.5)).estimate)
    found = bias.distance_floor((0.5, 0.5), 400)
    assert 2 * found == pytest.approx(bias.noise_floor(400), rel=2e-3)
    draws = np.random.default_rng(0).multinomial(60, (0.5, 0.3, 0.2), 4000) / 60
    mean = np.abs(draws - (0.5, 0.3, 0.2)).sum(axis=1).mean() / 2
    assert bias.distance_floor((0.5, 0.3, 0.2), 60) == pytest.approx(mean, rel=0.03)
