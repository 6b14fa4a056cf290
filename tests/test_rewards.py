"""Rewards: the paper's equations, hand arithmetic, and unbiasedness by enumeration."""

import itertools

import numpy as np
import pytest

from ddpo_fair.classifiers import classes
from ddpo_fair.learning import rewards

FEMALE, MALE, NONE = 0, 1, classes.NONE
EVEN = (0.5, 0.5)


def equation_3(labels):
    """The paper's R_balance, as printed; NONE gets -|q - 0.5|."""
    num_female = sum(label == FEMALE for label in labels)
    num_male = sum(label == MALE for label in labels)
    if num_female + num_male == 0:
        return [0.0] * len(labels)
    q = num_female / (num_female + num_male)
    minority = FEMALE if q < 0.5 else MALE
    return [abs(q - 0.5) * (2 * (label == minority) - 1) for label in labels]


def test_shift_is_equation_1_and_labels_need_confidence():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.69, 0.31], [0.3, 0.7]])
    assert classes.labels(probabilities).tolist() == [FEMALE, MALE, NONE, NONE]
    assert classes.labels(probabilities, 0.5).tolist() == [FEMALE, MALE, FEMALE, MALE]
    assert classes.labels(np.array([[np.nan, np.nan]])).tolist() == [NONE]
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    actual = rewards.shift(probabilities, MALE)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, np.float32([0.1, 0.8]))
    np.testing.assert_array_equal(
        rewards.shift(probabilities, np.array([FEMALE, MALE])), np.float32([0.9, 0.8])
    )


def test_underrepresented_is_what_the_target_has_more_of():
    assert rewards.underrepresented(np.array([MALE, MALE, FEMALE]), EVEN) == FEMALE
    assert rewards.underrepresented(np.array([FEMALE, FEMALE, NONE]), EVEN) == MALE
    # Shares 1/4, 3/4 against a target of 0.1, 0.9: now class 1 is lacking.
    assert rewards.underrepresented(np.array([0, 1, 1, 1]), (0.1, 0.9)) == 1


@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_balance_is_equation_3_for_every_batch(num_images):
    for labels in itertools.product([FEMALE, MALE, NONE], repeat=num_images):
        actual = rewards.balance(np.array(labels), EVEN)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, equation_3(labels), rtol=1e-6, atol=1e-7)


def test_balance_is_for_any_target():
    # Shares 2/4, 1/4, 1/4 against 0.2, 0.3, 0.5.
    labels = np.array([0, 0, 1, 2, NONE])
    expected = [-0.3, -0.3, 0.05, 0.25, -0.3]
    actual = rewards.balance(labels, (0.2, 0.3, 0.5))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_leave_one_out_by_hand():
    # F M M: the F sees (0, 1), each M sees (1/2, 1/2).
    hard = classes.one_hot(np.array([FEMALE, MALE, MALE]), 2)
    actual, _ = rewards.balance_loo(hard, EVEN)
    np.testing.assert_allclose(actual, [0.5, 0.0, 0.0], atol=1e-7)
    memberships = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    # Image 0 sees the mean of rows 1 and 2, (0.3, 0.7): 0.2 * 0.9 - 0.2 * 0.1 = 0.16.
    # Image 1 sees (0.55, 0.45): -0.05 * 0.4 + 0.05 * 0.6 = 0.01.
    # Image 2 sees (0.65, 0.35): -0.15 * 0.2 + 0.15 * 0.8 = 0.09.
    actual, _ = rewards.balance_loo(memberships, EVEN)
    np.testing.assert_allclose(actual, [0.16, 0.01, 0.09], rtol=1e-6)
    hard = classes.one_hot(np.array([MALE, MALE, MALE, FEMALE, NONE]), 2)
    actual, _ = rewards.balance_loo(hard, EVEN)
    # M sees (1/3, 2/3), F sees (0, 1), NONE sees (1/4, 3/4) and is charged 1/4.
    np.testing.assert_allclose(actual, [-1 / 6, -1 / 6, -1 / 6, 0.5, -0.25], rtol=1e-6)
    for few in ([NONE, NONE], [MALE], [FEMALE]):
        memberships = classes.one_hot(np.array(few), 2)
        actual, _ = rewards.balance_loo(memberships, EVEN)
        np.testing.assert_array_equal(actual, np.zeros(len(few)))


def test_inconsistent_arguments_are_refused():
    with pytest.raises(ValueError, match="one of the target's 2 classes"):
        rewards.balance(np.array([0, 2]), EVEN)
    with pytest.raises(ValueError, match="sum to 1"):
        rewards.balance_loo(np.array([[0.5, 0.1]]), EVEN)
