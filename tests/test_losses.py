"""The five objectives: hand arithmetic for values, hand derivatives for gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpo_fair import config, setting_rules
from ddpo_fair.learning import losses

TRAIN = config.defaults().train
TRAIN.update(clip_range=0.1, rollback=0.3, trust_region=0.5, kl_penalty=5.0)
NUM_DIMS = 10
OBJECTIVES = setting_rules.OBJECTIVES
INSIDE, OUTSIDE = 0.4, 0.6  # nats, on either side of trust_region


def evaluate(name, ratio, advantage, kl):
    """Loss, and its derivatives by log_prob_new and by KL, of one image."""

    def loss(log_prob_new, kl):
        step = losses.Step(jnp.exp(log_prob_new), kl, jnp.array([advantage]), NUM_DIMS)
        gain, restrained = getattr(losses, name)(step, TRAIN)
        return -gain[0], restrained

    arguments = (jnp.log(jnp.array([ratio])), jnp.array([kl]))
    (value, restrained), gradients = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(*arguments)
    return value, gradients[0][0], gradients[1][0], restrained


def check(name, ratio, advantage, kl, loss, by_log_prob, by_kl, restrained):
    value, log_prob_gradient, kl_gradient, found = evaluate(name, ratio, advantage, kl)
    # exp(log(ratio)) is good to a few float32 units in the last place.
    np.testing.assert_allclose(value, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prob_gradient, by_log_prob, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kl_gradient, by_kl, rtol=1e-5, atol=1e-6)
    assert bool(found[0]) is restrained
    assert value.dtype == jnp.float32


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_on_policy_all_are_the_policy_gradient(name, advantage):
    # ratio 1, KL 0: loss -A, gradient -A d log_prob, nothing restrained.
    check(name, 1.0, advantage, 0.0, -advantage, -advantage, 0.0, False)


# An objective, the ratio, the advantage, KL in nats; the loss, its derivatives by
# log_prob and by KL, and whether it is restrained.
BY_HAND = [
    ("ppo", 1.05, 2.0, OUTSIDE, -2.1, -2.1, 0.0, False),  # inside: -rA
    ("ppo", 1.2, 2.0, OUTSIDE, -2.2, 0.0, 0.0, True),  # -1.1 * 2, flat
    ("ppo", 0.8, 2.0, OUTSIDE, -1.6, -1.6, 0.0, False),  # worse than 1: pushed up
    ("ppo", 0.8, -2.0, OUTSIDE, 1.8, 0.0, 0.0, True),  # 0.9 * 2, flat
    ("ppo", 1.2, -2.0, OUTSIDE, 2.4, 2.4, 0.0, False),
    ("ppo", 1.2, 0.0, OUTSIDE, 0.0, 0.0, 0.0, False),
    ("ppo_rollback", 1.05, 2.0, OUTSIDE, -2.1, -2.1, 0.0, False),
    # F = -0.3 * 1.2 + 1.3 * 1.1 = 1.07; d loss = 0.3 * r * A = 0.72
    ("ppo_rollback", 1.2, 2.0, OUTSIDE, -2.14, 0.72, 0.0, True),
    ("ppo_rollback", 0.8, 2.0, OUTSIDE, -1.6, -1.6, 0.0, False),
    # F = -0.3 * 0.8 + 1.3 * 0.9 = 0.93; d loss = -0.3 * 0.8 * 2 = -0.48
    ("ppo_rollback", 0.8, -2.0, OUTSIDE, 1.86, -0.48, 0.0, True),
    ("ppo_rollback", 1.2, -2.0, OUTSIDE, 2.4, 2.4, 0.0, False),
    # The loss of both TR-PPOs is -rA.
    ("tr_ppo", 1.2, 2.0, INSIDE, -2.4, -2.4, 0.0, False),
    ("tr_ppo", 1.2, 2.0, OUTSIDE, -2.4, 0.0, 0.0, True),
    ("tr_ppo", 0.8, 2.0, OUTSIDE, -1.6, -1.6, 0.0, False),  # r A < A: on its way back
    ("tr_ppo", 0.8, -2.0, OUTSIDE, 1.6, 0.0, 0.0, True),
    ("tr_ppo", 1.2, -2.0, OUTSIDE, 2.4, 2.4, 0.0, False),
    ("tr_ppo", 1.2, 2.0, 0.5, -2.4, 0.0, 0.0, True),  # KL = delta is already outside
    ("tr_ppo_rollback", 1.2, 2.0, INSIDE, -2.4, -2.4, 0.0, False),
    ("tr_ppo_rollback", 1.2, 2.0, OUTSIDE, -2.4, 0.72, 0.0, True),  # 0.3 * 1.2 * 2
    ("tr_ppo_rollback", 0.8, 2.0, OUTSIDE, -1.6, -1.6, 0.0, False),
    ("tr_ppo_rollback", 0.8, -2.0, OUTSIDE, 1.6, -0.48, 0.0, True),
    # Truly PPO keeps the ratio's gradient, -rA.
    ("truly_ppo", 1.2, 2.0, INSIDE, -2.4, -2.4, 0.0, False),
    # 5 * 0.6 / 10 = 0.3 charged; d loss / d KL = 5 / 10
    ("truly_ppo", 1.2, 2.0, OUTSIDE, -2.1, -2.4, 0.5, True),
    ("truly_ppo", 0.8, 2.0, OUTSIDE, -1.6, -1.6, 0.0, False),
    ("truly_ppo", 0.8, -2.0, OUTSIDE, 1.9, 1.6, 0.5, True),
    ("truly_ppo", 1.2, 0.0, OUTSIDE, 0.3, 0.0, 0.5, True),  # still pulled back
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: " ".join(map(str, case[:4])))
def test_losses_and_derivatives_by_hand(case):
    check(*case)


def test_where_a_step_is_clipped_or_outside():
    ratio = jnp.array([1.05, 1.2, 0.8, 1.0])
    kl = jnp.array([INSIDE, OUTSIDE, INSIDE, OUTSIDE])
    step = losses.Step(ratio, kl, jnp.ones(4), NUM_DIMS)
    assert losses.clipped(step, TRAIN).tolist() == [False, True, True, False]
    assert losses.outside(step, TRAIN).tolist() == [False, True, False, True]
    # 1e-4 on the mean log-probability, the paper's clip, is 800 float32 steps at 1.
    train = config.defaults().train
    train.clip_range = 1e-4
    ratio = jnp.exp(jnp.array([0.5e-4, 2e-4]))
    step = losses.Step(ratio, jnp.zeros(2), jnp.ones(2), 10)
    gain, restrained = losses.ppo(step, train)
    assert restrained.tolist() == [False, True]
    np.testing.assert_allclose(gain, [1.00005, 1.0001], rtol=2e-7)


def test_truly_ppo_gradient_by_the_mean_is_the_hand_derivative():
    # One image, two dimensions, sigma s: d(-r A + alpha KL / 2) / d mean
    # = -r A (x - mean) / (2 s^2) + alpha (mean - mean_old) / (2 s^2).
    train = config.defaults().train
    train.update(trust_region=0.01, kl_penalty=5.0)
    std, advantage = 0.5, 1.5
    mean_old, mean, x = np.zeros(2), np.array([0.1, 0.2]), np.array([0.9, 0.7])

    def mean_log_density(mean):
        return jnp.mean(-jnp.square(x_device - mean) / (2 * std**2), keepdims=True)

    def loss(mean):
        kl = jnp.sum(jnp.square(mean), keepdims=True) / (2 * std**2)
        ratio = jnp.exp(mean_log_density(mean) - mean_log_density(jnp.zeros(2)))
        step = losses.Step(ratio, kl, jnp.array([advantage]), 2)
        return -losses.truly_ppo(step, train)[0][0]

    x_device = jnp.array(x, jnp.float32)
    actual = jax.grad(loss)(jnp.array(mean, jnp.float32))
    ratio = np.exp((x**2 - (x - mean) ** 2).sum() / (2 * 2 * std**2))
    expected = (-ratio * advantage * (x - mean) + 5.0 * (mean - mean_old)) / (
        2 * std**2
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
