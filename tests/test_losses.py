"""The five objectives: hand arithmetic for values, hand derivatives for gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpo_fair import config, config_rules
from ddpo_fair.learning import losses

TRAIN = config.defaults().train
TRAIN.update(clip_range=0.1, rollback=0.3, trust_region=0.5, kl_penalty=5.0)
NUM_DIMS = 10
OBJECTIVES = config_rules.OBJECTIVES
INSIDE, OUTSIDE = 0.4, 0.6  # nats, on either side of trust_region


def evaluate(name, ratio, advantage, kl):
    """Loss, and its derivatives by log_prob_new and by KL, of one image."""

    def loss(log_prob_new, kl):
        step = losses.Step(jnp.exp(log_prob_new), kl, jnp.array([advantage]), NUM_DIMS)
        surrogate = getattr(losses, name)(step, TRAIN)
        return surrogate.loss[0], surrogate

    arguments = (jnp.log(jnp.array([ratio])), jnp.array([kl]))
    (value, surrogate), gradients = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(*arguments)
    return value, gradients[0][0], gradients[1][0], surrogate


def check(name, ratio, advantage, kl, loss, by_log_prob, by_kl, restrained):
    value, log_prob_gradient, kl_gradient, surrogate = evaluate(
        name, ratio, advantage, kl
    )
    # exp(log(ratio)) is good to a few float32 units in the last place.
    np.testing.assert_allclose(value, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prob_gradient, by_log_prob, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kl_gradient, by_kl, rtol=1e-5, atol=1e-6)
    assert bool(surrogate.restrained[0]) is restrained
    assert surrogate.loss.dtype == jnp.float32


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_on_policy_all_are_the_policy_gradient(name, advantage):
    # ratio 1, KL 0: loss -A, gradient -A d log_prob, nothing restrained.
    check(name, 1.0, advantage, 0.0, -advantage, -advantage, 0.0, False)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "restrained"),
    [
        (1.05, 2.0, -2.1, -2.1, False),  # inside: -rA
        (1.2, 2.0, -2.2, 0.0, True),  # -1.1 * 2, flat
        (0.8, 2.0, -1.6, -1.6, False),  # worse than 1: still pushed up
        (0.8, -2.0, 1.8, 0.0, True),  # 0.9 * 2, flat
        (1.2, -2.0, 2.4, 2.4, False),
        (1.2, 0.0, 0.0, 0.0, False),
    ],
)
def test_ppo_clips(ratio, advantage, loss, gradient, restrained):
    check("ppo", ratio, advantage, OUTSIDE, loss, gradient, 0.0, restrained)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "restrained"),
    [
        (1.05, 2.0, -2.1, -2.1, False),
        # F = -0.3 * 1.2 + 1.3 * 1.1 = 1.07; d loss = 0.3 * r * A = 0.72
        (1.2, 2.0, -2.14, 0.72, True),
        (0.8, 2.0, -1.6, -1.6, False),
        # F = -0.3 * 0.8 + 1.3 * 0.9 = 0.93; d loss = -0.3 * 0.8 * 2 = -0.48
        (0.8, -2.0, 1.86, -0.48, True),
        (1.2, -2.0, 2.4, 2.4, False),
    ],
)
def test_ppo_rollback_turns_back(ratio, advantage, loss, gradient, restrained):
    check("ppo_rollback", ratio, advantage, OUTSIDE, loss, gradient, 0.0, restrained)


@pytest.mark.parametrize(
    ("kl", "ratio", "advantage", "gradient", "restrained"),
    [
        (INSIDE, 1.2, 2.0, -2.4, False),
        (OUTSIDE, 1.2, 2.0, 0.0, True),
        (OUTSIDE, 0.8, 2.0, -1.6, False),  # r A < A: on its way back
        (OUTSIDE, 0.8, -2.0, 0.0, True),
        (OUTSIDE, 1.2, -2.0, 2.4, False),
        (0.5, 1.2, 2.0, 0.0, True),  # KL = delta is already outside
    ],
)
def test_tr_ppo_stops(kl, ratio, advantage, gradient, restrained):
    loss = -ratio * advantage
    check("tr_ppo", ratio, advantage, kl, loss, gradient, 0.0, restrained)


@pytest.mark.parametrize(
    ("kl", "ratio", "advantage", "gradient", "restrained"),
    [
        (INSIDE, 1.2, 2.0, -2.4, False),
        (OUTSIDE, 1.2, 2.0, 0.72, True),  # -(-0.3) * 1.2 * 2, value unchanged
        (OUTSIDE, 0.8, 2.0, -1.6, False),
        (OUTSIDE, 0.8, -2.0, -0.48, True),
    ],
)
def test_tr_ppo_rollback_reverses(kl, ratio, advantage, gradient, restrained):
    loss = -ratio * advantage
    check("tr_ppo_rollback", ratio, advantage, kl, loss, gradient, 0.0, restrained)


@pytest.mark.parametrize(
    ("kl", "ratio", "advantage", "loss", "by_kl", "restrained"),
    [
        (INSIDE, 1.2, 2.0, -2.4, 0.0, False),
        # 5 * 0.6 / 10 = 0.3 charged; d loss / d KL = 5 / 10
        (OUTSIDE, 1.2, 2.0, -2.1, 0.5, True),
        (OUTSIDE, 0.8, 2.0, -1.6, 0.0, False),
        (OUTSIDE, 0.8, -2.0, 1.9, 0.5, True),
        (OUTSIDE, 1.2, 0.0, 0.3, 0.5, True),  # no gain to lose: still pulled back
    ],
)
def test_truly_ppo_charges_the_kl(kl, ratio, advantage, loss, by_kl, restrained):
    by_log_prob = -ratio * advantage  # the ratio keeps its gradient
    check("truly_ppo", ratio, advantage, kl, loss, by_log_prob, by_kl, restrained)


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
        return losses.truly_ppo(step, train).loss[0]

    x_device = jnp.array(x, jnp.float32)
    actual = jax.grad(loss)(jnp.array(mean, jnp.float32))
    ratio = np.exp((x**2 - (x - mean) ** 2).sum() / (2 * 2 * std**2))
    expected = (-ratio * advantage * (x - mean) + 5.0 * (mean - mean_old)) / (
        2 * std**2
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_flags_are_the_same_whatever_the_objective():
    ratio = jnp.array([1.05, 1.2, 0.8, 1.0])
    kl = jnp.array([INSIDE, OUTSIDE, INSIDE, OUTSIDE])
    for name in OBJECTIVES:
        step = losses.Step(ratio, kl, jnp.ones(4), NUM_DIMS)
        surrogate = getattr(losses, name)(step, TRAIN)
        assert surrogate.clipped.tolist() == [False, True, True, False]
        assert surrogate.outside.tolist() == [False, True, False, True]


def test_ppo_at_the_clip_of_ddpo_is_resolved_in_float32():
    # 1e-4 on the mean log-probability, the paper's clip, is 800 float32 steps at 1.
    train = config.defaults().train
    train.clip_range = 1e-4
    ratio = jnp.exp(jnp.array([0.5e-4, 2e-4]))
    surrogate = losses.ppo(losses.Step(ratio, jnp.zeros(2), jnp.ones(2), 10), train)
    assert surrogate.restrained.tolist() == [False, True]
    np.testing.assert_allclose(surrogate.loss, [-1.00005, -1.0001], rtol=2e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_run_under_jit(name):

    @jax.jit
    def loss(ratio, kl):
        step = losses.Step(ratio, kl, jnp.ones(3), NUM_DIMS)
        return getattr(losses, name)(step, TRAIN).loss

    np.testing.assert_array_equal(loss(jnp.ones(3), jnp.zeros(3)), -np.ones(3))
