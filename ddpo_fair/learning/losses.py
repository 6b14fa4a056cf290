"""Surrogate objectives for one denoising step: PPO, its rollback and trust regions.

Five ways to stop an update that has gone too far, after Wang, He & Tan, "Truly
Proximal Policy Optimization" (2019) and their code. PPO and PPO-RB look at the
likelihood ratio, the other three at the exact KL divergence.

Units. The ratio comes from the *mean* log-probability over the `num_dims` latent
dimensions, so its gradient is 1/num_dims of the true ratio's. KL arrives in nats,
*summed* over dimensions: the trigger `trust_region` is in nats, and the penalty divides
KL by `num_dims` so that it stays paired with the ratio. A step of 1.34 nats moves the
mean log-ratio by 1e-4 (one standard deviation, 16,384 dimensions).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Settings(NamedTuple):
    """Strengths of the objectives; plain numbers, static under `jit`.

    Attributes:
        clip_range: half-width of the ratio's interval around 1; DDPO uses 1e-4.
        rollback: slope of PPO-RB (0.3 in the paper) and TR-PPO-RB (0.05) outside.
        trust_region: KL in nats per step that triggers TR-PPO, TR-PPO-RB, Truly PPO.
        kl_penalty: weight of the KL in Truly PPO outside the region (5 in the paper).
        num_dims: latent dimensions of one image, h * w * C.
    """

    clip_range: float
    rollback: float
    trust_region: float
    kl_penalty: float
    num_dims: int


class Surrogate(NamedTuple):
    """What an objective says of each image: [N] each; average them for the logs.

    Attributes:
        loss: float32, to be minimised.
        clipped: bool, the ratio is further from 1 than `clip_range`.
        outside: bool, KL is `trust_region` nats or more.
        restrained: bool, this objective has stopped, reversed or penalised the update.
    """

    loss: jax.Array
    clipped: jax.Array
    outside: jax.Array
    restrained: jax.Array


def ppo(
    log_prob_new: jax.Array,
    log_prob_old: jax.Array,
    kl: jax.Array,
    advantage: jax.Array,
    settings: Settings,
) -> Surrogate:
    """Loss whose gradient is 0 once the ratio leaves the interval the good way.

    Args:
        log_prob_new, log_prob_old: float32 [N], nats per dimension.
        kl: float32 [N], nats per step, summed over dimensions.
        advantage: float32 [N], already clipped.
        settings: see `Settings`.
    """
    ratio = jnp.exp(log_prob_new - log_prob_old)
    low, high = 1 - settings.clip_range, 1 + settings.clip_range
    gain = ratio * advantage
    clipped_gain = jnp.clip(ratio, low, high) * advantage
    return _surrogate(
        jnp.minimum(gain, clipped_gain), ratio, kl, clipped_gain < gain, settings
    )


def ppo_rollback(
    log_prob_new: jax.Array,
    log_prob_old: jax.Array,
    kl: jax.Array,
    advantage: jax.Array,
    settings: Settings,
) -> Surrogate:
    """PPO-RB: past the interval the slope is -rollback instead of 0.

    The gain is continuous: -rollback * ratio + (1 + rollback) * (1 +- clip_range),
    times the advantage. Arguments as for `ppo`.
    """
    ratio = jnp.exp(log_prob_new - log_prob_old)
    low, high = 1 - settings.clip_range, 1 + settings.clip_range
    bound = jnp.clip(ratio, low, high)
    returning = bound - settings.rollback * (ratio - bound)
    gain = ratio * advantage
    rolled_back = returning * advantage < gain
    gain = jnp.where(rolled_back, returning * advantage, gain)
    return _surrogate(gain, ratio, kl, rolled_back, settings)


def tr_ppo(
    log_prob_new: jax.Array,
    log_prob_old: jax.Array,
    kl: jax.Array,
    advantage: jax.Array,
    settings: Settings,
) -> Surrogate:
    """TR-PPO: the gradient is 0 where the step has left the trust region for gain.

    Arguments as for `ppo`.
    """
    ratio = jnp.exp(log_prob_new - log_prob_old)
    gain = ratio * advantage
    bad = _bad(ratio, kl, advantage, settings)
    gain = jnp.where(bad, jax.lax.stop_gradient(gain), gain)
    return _surrogate(gain, ratio, kl, bad, settings)


def tr_ppo_rollback(
    log_prob_new: jax.Array,
    log_prob_old: jax.Array,
    kl: jax.Array,
    advantage: jax.Array,
    settings: Settings,
) -> Surrogate:
    """TR-PPO-RB: outside the region the gradient is reversed, times `rollback`.

    The value stays ratio * advantage; only its gradient changes. Arguments as for
    `ppo`.
    """
    ratio = jnp.exp(log_prob_new - log_prob_old)
    gain = ratio * advantage
    bad = _bad(ratio, kl, advantage, settings)
    level = (1 + settings.rollback) * jax.lax.stop_gradient(gain)
    gain = jnp.where(bad, level - settings.rollback * gain, gain)
    return _surrogate(gain, ratio, kl, bad, settings)


def truly_ppo(
    log_prob_new: jax.Array,
    log_prob_old: jax.Array,
    kl: jax.Array,
    advantage: jax.Array,
    settings: Settings,
) -> Surrogate:
    """Truly PPO: outside the region the KL itself is charged, `kl_penalty` times.

    Arguments as for `ppo`; `kl` must carry gradients. The penalty is on KL / num_dims,
    the ratio's own unit.
    """
    ratio = jnp.exp(log_prob_new - log_prob_old)
    gain = ratio * advantage
    bad = _bad(ratio, kl, advantage, settings)
    penalty = settings.kl_penalty * kl / settings.num_dims
    gain = jnp.where(bad, gain - penalty, gain)
    return _surrogate(gain, ratio, kl, bad, settings)


OBJECTIVES = {
    "ppo": ppo,
    "ppo_rollback": ppo_rollback,
    "tr_ppo": tr_ppo,
    "tr_ppo_rollback": tr_ppo_rollback,
    "truly_ppo": truly_ppo,
}


def _bad(ratio, kl, advantage, settings: Settings) -> jax.Array:
    """Where KL >= trust_region and ratio * A >= A, the paper's condition.

    The authors' code has a strict > in the second half; it differs only where the
    advantage is 0 or the ratio is exactly 1.
    """
    outside = kl >= settings.trust_region
    return outside & (ratio * advantage >= advantage)


def _surrogate(gain, ratio, kl, restrained, settings: Settings) -> Surrogate:
    return Surrogate(
        loss=-gain,
        clipped=jnp.abs(ratio - 1) > settings.clip_range,
        outside=kl >= settings.trust_region,
        restrained=restrained,
    )
