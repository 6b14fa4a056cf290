"""From the classifier's answers to rewards and advantages."""

import itertools

import numpy as np
import pytest

from ddpo_fair import config
from ddpo_fair.classifiers import classes
from ddpo_fair.learning import advantages, goals, rewards, scoring

FEMALE, MALE, UNSURE = (0.9, 0.1), (0.2, 0.8), (0.6, 0.4)


def score(answers, asked=None, names=None, **settings):
    given = config.defaults()
    names = np.array(names or ["a photo"] * len(answers))
    given.prompts = tuple(np.unique(names).tolist())
    given.attributes.gender.none_penalty = 0.25
    given.advantage.scale = 0.5
    given.update_from_flattened_dict(settings)
    asked = np.full(len(answers), classes.NONE) if asked is None else np.array(asked)
    wanted = {"gender": {"a photo": 0}}
    answered = {"gender": np.float32(answers)}
    all_goals = goals.of(given, {})
    return scoring.score(given, all_goals, answered, names, asked, wanted, {})


def test_unrecognised_images_cost_the_penalty_and_baselines_know_it():
    # q = 1/4, so +1/4 for the one and -1/4 for the three; NONE -1/4 and the penalty
    found = score([FEMALE, MALE, MALE, MALE, UNSURE])
    np.testing.assert_allclose(found.rewards, [0.25, -0.25, -0.25, -0.25, -0.5])
    mean = (0.25 - 3 * 0.25 - 0.5) / 5
    np.testing.assert_allclose(
        found.advantages, (found.rewards - mean) / 0.5, rtol=1e-6
    )
    found = score([FEMALE, MALE, UNSURE])
    np.testing.assert_allclose(found.rewards, [0, 0, -0.25])
    found = score([FEMALE, MALE, UNSURE], **{"reward.name": "shift"})
    np.testing.assert_allclose(found.rewards, [0.9, 0.2, 0.6 - 0.25], rtol=1e-6)
    # F M M NONE. F sees (0, 1): the two M earn -.5, NONE -.5, each M sees (.5, .5):
    # none earns anything. NONE sees (1/3, 2/3): F earns 1/6, M -1/6 twice.
    found = score([FEMALE, MALE, MALE, UNSURE], **{"reward.name": "balance_loo"})
    # The others of all but NONE hold one that costs a penalty of 1/4.
    means = np.array([-0.5, 0, 0, -1 / 18]) - np.array([1, 1, 1, 0]) * 0.25 / 3
    expected = (np.array([0.5, 0, 0, -1 / 6 - 0.25]) - means) / 0.5
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-6)


def test_shares_are_taken_per_prompt():
    # a: M M M F, q = 1/4; b: F F, q = 1.
    found = score([MALE, FEMALE, MALE, FEMALE, MALE, FEMALE], names=[*"ababaa"])
    expected = [-0.25, -0.5, -0.25, -0.5, -0.25, 0.25]
    np.testing.assert_array_equal(found.rewards, expected)


@pytest.mark.parametrize("soft", [False, True])
def test_leave_one_out_has_it_too(soft):
    found = score(
        [FEMALE, MALE, (0.0, 0.0)],
        **{"reward.name": "balance_loo", "reward.soft": soft},
    )
    # of (0, 0) the others' mean is (.5, .5), or (.55, .45) in probabilities
    deficit = 0.05 if soft else 0.0
    assert found.rewards[2] == pytest.approx(-deficit - 0.25)


@pytest.mark.parametrize("name", ["balance", "shift", "balance_loo"])
def test_explicit_prompts_earn_what_they_ask_for(name):
    alone = score([FEMALE, MALE, MALE], **{"reward.name": name})
    answers = [FEMALE, MALE, MALE, FEMALE, MALE, MALE, UNSURE]
    asked = [classes.NONE] * 3 + [0, 0, 1, 1]
    found = score(answers, asked, **{"reward.name": name})
    np.testing.assert_array_equal(found.rewards[:3], alone.rewards)
    np.testing.assert_array_equal(found.advantages[:3], alone.advantages)
    # P(female) of those that ask for it, P(male) of the others; unsure costs .25 more
    expected = [0.9, 0.2, 0.8, 0.4 - 0.25]
    np.testing.assert_allclose(found.rewards[3:], expected, rtol=1e-6)
    # each less the mean of its class, (.9 + .2) / 2 and (.8 + .15) / 2, over .5
    advantages = [0.35 / 0.5, -0.35 / 0.5, 0.325 / 0.5, -0.325 / 0.5]
    np.testing.assert_allclose(found.advantages[3:], advantages, rtol=1e-5)


@pytest.mark.parametrize("name", ["batch", "group", "per_prompt", "fixed"])
def test_preservation_prompts_earn_nothing_and_change_nothing(name):
    settings = {"advantage.name": name}
    alone = score([FEMALE, MALE, MALE], **settings)
    asked = [scoring.PRESERVED, classes.NONE, classes.NONE, classes.NONE]
    found = score([FEMALE, FEMALE, MALE, MALE], asked, **settings)
    np.testing.assert_array_equal(found.rewards, [0.0, *alone.rewards])
    np.testing.assert_array_equal(found.advantages, [0.0, *alone.advantages])
    assert found.history == alone.history


def expected_gradient(policy, num_images, advantages_of):
    """E[sum_i A_i grad log p(i)] by the logits, over every batch; NONE is the last."""
    scores, total = np.eye(len(policy)) - policy, np.zeros(len(policy))
    for batch in itertools.product(range(len(policy)), repeat=num_images):
        drawn = list(batch)
        total += policy[drawn].prod() * (advantages_of(drawn) @ scores[drawn])
    return total


def jacobian(policy):
    return np.diag(policy) - np.outer(policy, policy)


@pytest.mark.parametrize(
    ("target", "num_images"),
    [((0.2, 0.8), 2), ((0.1, 0.9), 8), ((0.6, 0.3, 0.1), 3), ((0.5, *[0.1] * 5), 4)],
)
def test_leave_one_out_stays_unbiased_with_its_baseline(target, num_images):
    num_classes = len(target)
    policy = np.arange(1.0, num_classes + 1)
    policy /= policy.sum()
    rows = np.full((num_classes, num_classes), 0.1 / (num_classes - 1))
    np.fill_diagonal(rows, 0.9)  # of the class that is drawn

    def advantages_of(drawn, has_baseline=True):
        values, baseline = rewards.balance_loo(rows[drawn], target)
        own = baseline if has_baseline else None
        return advantages.fixed(values, ["a"] * len(drawn), 0.25, 100.0, own)

    # J = -1/2 ||P - target||^2 with P = rows.T @ policy; four times, for scale = 1/4
    shares = rows.T @ policy
    expected = jacobian(policy) @ rows @ (target - shares) * num_images * 4
    found = expected_gradient(policy, num_images, advantages_of)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # The mean of all rewards sees the image: (N - 1) target - (N - 2) P.
    biased = (num_images - 1) * np.array(target) - (num_images - 2) * shares
    expected = jacobian(policy) @ rows @ biased * 4
    found = expected_gradient(policy, num_images, lambda x: advantages_of(x, False))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_the_baseline_moves_nothing_where_some_are_not_recognised(soft):
    answers = np.array([FEMALE, MALE, UNSURE if soft else (0.0, 0.0)])
    settings = {
        "reward.name": "balance_loo",
        "attributes.gender.target": (0.2, 0.8),
        "reward.soft": soft,
    }

    def found(name):
        return expected_gradient(
            np.array([0.5, 0.3, 0.2]),
            4,
            lambda drawn: getattr(score(answers[drawn], **settings), name),
        )

    # less a baseline, over advantage.scale = .5
    np.testing.assert_allclose(
        found("advantages"), found("rewards") / 0.5, rtol=1e-5, atol=1e-6
    )
