"""Advantages by hand arithmetic and against the upstream tracker written again."""

import collections
import json

import numpy as np
import pytest

from ddpo_fair.learning import advantages

TRACKER = {"buffer_size": 4, "min_count": 2, "adv_clip": 10.0}


def test_batch_whitens_and_clips_and_fixed_centres_per_prompt():
    # Mean 2, standard deviation sqrt(2): the population's, as NumPy and DDPO take it.
    actual = advantages.batch(np.array([0.0, 2.0, 2.0, 4.0]), 10.0)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, [-(2**0.5), 0, 0, 2**0.5], rtol=1e-6)
    # 1 minority image of 64: sqrt(63) = 7.94, clipped to 5.
    scores = np.array([1.0] + [0.0] * 63)
    np.testing.assert_allclose(advantages.batch(scores, 10.0)[0], 63**0.5, rtol=1e-6)
    assert advantages.batch(scores, 5.0)[0] == 5.0
    actual = advantages.fixed(
        np.array([1.0, 5.0, 3.0, 9.0]), ["a", "b", "a", "c"], 2.0, 10.0
    )
    np.testing.assert_array_equal(actual, np.float32([-0.5, 0.0, 0.5, 0.0]))


@pytest.mark.parametrize("reward", [0.0, 0.1, -0.5])
def test_equal_rewards_give_no_signal(reward):
    # The float32 mean of 1,001 equal numbers can be an ulp off; 1e-8 blows that up.
    scores = np.full(1001, reward, np.float32)
    prompts = ["a"] * 1001
    for actual in (
        advantages.batch(scores, 5.0),
        advantages.group(scores, prompts, 5.0),
        advantages.fixed(scores, prompts, 0.25, 5.0),
        advantages.per_prompt(scores, prompts, {}, **TRACKER)[0],
    ):
        np.testing.assert_allclose(actual, np.zeros(1001), atol=1e-6)


def test_groups_are_whitened_by_themselves():
    # a: mean 2, standard deviation 1; b: 6 and 3; c has no spread, d is alone
    rewards, prompts = np.array([1.0, 3.0, 3.0, 9.0, 7.0, 7.0, 5.0]), [*"aabbccd"]
    actual = advantages.group(rewards, prompts, 10.0)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, [-1, 1, -1, 1, 0, 0, 0], rtol=1e-6)
    # R_balance beside balance, 31 of 64: full strength; the constant of fixed fades
    rewards = np.repeat([1 / 64, -1 / 64], [31, 33])
    whole = advantages.group(rewards, ["a"] * 64, 10.0)
    expected = [(33 / 31) ** 0.5, -((31 / 33) ** 0.5)]
    np.testing.assert_allclose(whole[[0, -1]], expected, rtol=1e-6)
    assert abs(advantages.fixed(rewards, ["a"] * 64, 0.25, 10.0)).max() < 0.07


def upstream(epochs, buffer_size, min_count):
    """PerPromptStatTracker of ddpo-pytorch, in its own words, with our epsilon."""
    stats, answers = {}, []
    for prompts, scores in epochs:
        answer = np.empty_like(scores)
        for prompt in np.unique(prompts):
            own = scores[prompts == prompt]
            stats.setdefault(prompt, collections.deque(maxlen=buffer_size)).extend(own)
            few = len(stats[prompt]) < min_count
            reference = scores if few else np.array(stats[prompt])
            answer[prompts == prompt] = (own - reference.mean()) / (
                reference.std() + 1e-8
            )
        answers.append(answer)
    return answers


def test_tracker_is_upstreams_where_the_buffer_suffices():
    rng = np.random.default_rng(0)
    epochs = [
        (rng.choice(["a", "b", "c"], size=6), rng.normal(size=6)) for _ in range(8)
    ]
    history = {}
    for (prompts, scores), expected in zip(epochs, upstream(epochs, 8, 5), strict=True):
        actual, history = advantages.per_prompt(
            scores, prompts, history, buffer_size=8, min_count=5, adv_clip=100.0
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert max(map(len, history.values())) == 8


def test_tracker_by_hand():
    # Eight images against a buffer of 4: mean 3.5, standard deviation sqrt(5.25).
    scores = np.arange(8.0)
    actual, history = advantages.per_prompt(scores, ["a"] * 8, {}, **TRACKER)
    np.testing.assert_allclose(actual, (scores - 3.5) / 5.25**0.5, rtol=1e-6)
    assert history == {"a": [4.0, 5.0, 6.0, 7.0]}
    scores = np.array([1.0, 3.0, 8.0])  # b has 1 < min_count: mean 4, variance 26/3
    actual, _ = advantages.per_prompt(scores, ["a", "a", "b"], {}, **TRACKER)
    np.testing.assert_allclose(actual, [-1, 1, 4 / (26 / 3) ** 0.5], rtol=1e-6)


def test_tracker_resumes_exactly_from_json():
    rng = np.random.default_rng(1)
    history = {}
    for _ in range(3):
        scores, prompts = rng.normal(size=5).astype(np.float32), ["a"] * 3 + ["b"] * 2
        before = json.dumps(history)
        straight, following = advantages.per_prompt(scores, prompts, history, **TRACKER)
        assert json.dumps(history) == before  # the argument is left as it was
        resumed, again = advantages.per_prompt(
            scores, prompts, json.loads(before), **TRACKER
        )
        np.testing.assert_array_equal(straight, resumed)
        assert following == again
        history = following
