"""From the classifier's answers to rewards and advantages."""

import numpy as np
import pytest

from ddpo_fair import config
from ddpo_fair.classifiers import classes
from ddpo_fair.learning import scoring

FEMALE, MALE, UNSURE = (0.9, 0.1), (0.2, 0.8), (0.6, 0.4)


def score(answers, asked=None, **settings):
    given = config.defaults()
    given.reward.none_penalty = 0.25
    given.advantage.scale = 0.5
    given.update_from_flattened_dict(settings)
    names = np.array(["a photo"] * len(answers))
    asked = np.full(len(answers), classes.NONE) if asked is None else np.array(asked)
    return scoring.score(given, np.float32(answers), names, asked, {"a photo": 0}, {})


def test_unrecognised_images_cost_the_penalty_too():
    # q = 1/4, so +1/4 for the one and -1/4 for the three; NONE -1/4 and the penalty
    found = score([FEMALE, MALE, MALE, MALE, UNSURE])
    np.testing.assert_allclose(found.rewards, [0.25, -0.25, -0.25, -0.25, -0.5])
    mean = (0.25 - 3 * 0.25 - 0.5) / 5
    np.testing.assert_allclose(
        found.advantages, (found.rewards - mean) / 0.5, rtol=1e-6
    )


def test_at_balance_only_the_penalty_is_left():
    found = score([FEMALE, MALE, UNSURE])
    np.testing.assert_allclose(found.rewards, [0, 0, -0.25])


@pytest.mark.parametrize("soft", [False, True])
def test_leave_one_out_has_it_too(soft):
    found = score(
        [FEMALE, MALE, (0.0, 0.0)],
        **{"reward.name": "balance_loo", "reward.soft": soft},
    )
    # of (0, 0) the others' mean is (.5, .5), or (.55, .45) in probabilities
    deficit = 0.05 if soft else 0.0
    assert found.rewards[2] == pytest.approx(-deficit - 0.25)


def test_shift_rewards_the_probability():
    found = score([FEMALE, MALE, UNSURE], **{"reward.name": "shift"})
    np.testing.assert_allclose(found.rewards, [0.9, 0.2, 0.6 - 0.25], rtol=1e-6)


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
