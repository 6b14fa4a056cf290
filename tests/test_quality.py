"""Distances and similarities of features, against hand arithmetic and SciPy."""

import math

import numpy as np
import pytest
from scipy import linalg

from ddpo_fair.errors import UserError
from ddpo_fair.statistics import diversity, image_quality


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_frechet_distance_is_the_published_formula():
    first, second = normal(0, 60, 5), 0.5 + normal(1, 40, 5) @ normal(2, 5, 5)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    means = first.mean(axis=0) - second.mean(axis=0)
    expected = means @ means + np.trace(one + two - 2 * root)
    found = image_quality.frechet_distance(first, second)
    assert found == pytest.approx(expected, rel=1e-9)  # sqrtm's own error
    features = normal(0, 8, 20)
    assert image_quality.frechet_distance(features, features) == pytest.approx(
        0, abs=1e-9
    )
    # One constant direction more moves the mean and nothing else.
    moved = features + np.eye(20)[3] * 2.0
    assert image_quality.frechet_distance(features, moved) == pytest.approx(
        4.0, rel=1e-9
    )


def test_kernel_distance_is_by_hand_and_unbiased():
    # F = 1, k(x, y) = (x y + 1)^3; {0, 1} against {2, 3}:
    # within: k(0,1) = 1, k(2,3) = 343; across: (1 + 1 + 27 + 64) / 4 = 23.25.
    pair = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    found = image_quality.kernel_distance(*pair, rng())
    assert found == pytest.approx(1 + 343 - 2 * 23.25, rel=1e-12)
    values = np.array(
        [
            image_quality.kernel_distance(
                normal(2 * k, 20, 4), normal(2 * k + 1, 25, 4), rng()
            )
            for k in range(400)
        ]
    )
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(400)
    assert (values < 0).any()


def test_paired_similarity_by_hand():
    before = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    after = np.array([[5.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    found = image_quality.paired_similarity(before, after)  # cosines 1, 0, -1
    assert found.estimate == pytest.approx(0.0, abs=1e-12)
    assert found.low < 0 < found.high
    same = image_quality.paired_similarity(before, before)
    assert same == pytest.approx((1.0, 1.0, 1.0))


def test_diversity_is_the_mean_over_pairs_with_the_jackknifes_interval():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [4.0, 0.0], [9.0, 9.0]])
    # Prompt 0: one pair at right angles, 1. Prompt 1: one pair alike, 0. Prompt 2: one.
    groups = np.array([0, 0, 1, 1, 2])
    assert diversity.of_features(features, groups).estimate == pytest.approx(0.5)
    assert math.isnan(diversity.of_features(features[:1], groups[:1]).estimate)
    features = normal(0, 7, 4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(7) for j in range(i)]
    found = diversity.of_features(features, np.zeros(7))
    assert found.estimate == pytest.approx(np.mean(pairs), rel=1e-12)
    features, groups = normal(0, 9, 4), np.array([0] * 4 + [1] * 5)
    variance = 0.0
    for group in (0, 1):
        rows = np.flatnonzero(groups == group)
        left_out = [
            diversity.of_features(
                features[rows[rows != i]], rows[rows != i] * 0
            ).estimate
            for i in rows
        ]
        variance += (len(rows) - 1) * np.var(left_out)  # (n - 1) / n times the sum
    found = diversity.of_features(features, groups)
    half = 2.364624 * math.sqrt(variance) / 2  # t(.975; 7), mean over two prompts
    assert found.high - found.estimate == pytest.approx(half, rel=1e-6)
    assert found.estimate - found.low == pytest.approx(half, rel=1e-6)


def test_impossible_comparisons_are_refused():
    good = normal(0, 4, 3)
    for first, second in (
        (good, normal(0, 4, 2)),
        (good[:1], good),
        (good, np.full((4, 3), np.nan)),
        (good[:, 0], good[:, 0]),
    ):
        with pytest.raises(UserError, match="compared"):
            image_quality.frechet_distance(first, second)
    with pytest.raises(UserError, match="equal numbers"):
        image_quality.paired_similarity(good, good[:3])
