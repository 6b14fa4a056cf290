"""Surrogate objectives for one denoising step: PPO, its rollback and trust regions.

Five ways to stop an update that has gone too far, after Wang, He & Tan, "Truly
Proximal Policy Optimization" (2019) and their code. PPO and PPO-RB look at the
likelihood ratio, the other three at the exact KL divergence.

Each maps a `Step` of N images and `config.train` to a `Surrogate`: the gain of each
image, float32 [N], whose negative is the loss, and where the objective has stopped,
reversed or penalised the update, bool [N]. Its name is a value of `train.objective`.

Units. The ratio comes from the *mean* log-probability over the `num_dims` latent
dimensions, so its gradient is 1/num_dims of the true ratio's. KL arrives in nats,
*summed* over dimensions: the trigger `trust_region` is in nats, and the penalty divides
KL by `num_dims` so that it stays paired with the ratio. A step of 1.34 nats moves the
mean log-ratio by 1e-4 (one standard deviation, 16,384 dimensions).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


class Step(NamedTuple):
    """One denoising step of each image, before and after the policy changed.

    The ratio is new likelihood over old: exp of the difference between the log-probs in
    nats per dimension. It carries gradients, as `kl` does.
    """

    ratio: jax.Array  # float32 [N]
    kl: jax.Array  # float32 [N], nats per step, summed over dimensions
    advantage: jax.Array  # float32 [N], already clipped
    num_dims: int  # latent dimensions of one image, h * w * C


Surrogate = tuple[jax.Array, jax.Array]


def ppo(step: Step, train: ConfigDict) -> Surrogate:
    """Loss whose gradient is 0 once the ratio leaves the interval the good way."""
    gain = step.ratio * step.advantage
    clipped_gain = _clipped_ratio(step, train) * step.advantage
    restrained = clipped_gain < gain
    return jnp.minimum(gain, clipped_gain), restrained


def ppo_rollback(step: Step, train: ConfigDict) -> Surrogate:
    """PPO-RB: past the interval the slope is -rollback instead of 0.

    The gain is continuous: -rollback * ratio + (1 + rollback) * (1 +- clip_range),
    times the advantage.
    """
    bound = _clipped_ratio(step, train)
    returning = bound - train.rollback * (step.ratio - bound)
    gain = step.ratio * step.advantage
    restrained = returning * step.advantage < gain
    return jnp.where(restrained, returning * step.advantage, gain), restrained


def tr_ppo(step: Step, train: ConfigDict) -> Surrogate:
    """TR-PPO: the gradient is 0 where the step has left the trust region for gain."""
    gain = step.ratio * step.advantage
    restrained = _outside_for_gain(step, train)
    return jnp.where(restrained, jax.lax.stop_gradient(gain), gain), restrained


def tr_ppo_rollback(step: Step, train: ConfigDict) -> Surrogate:
    """TR-PPO-RB: outside the region the gradient is reversed, times `rollback`.

    The value stays ratio * advantage; only its gradient changes.
    """
    gain = step.ratio * step.advantage
    restrained = _outside_for_gain(step, train)
    level = (1 + train.rollback) * jax.lax.stop_gradient(gain)
    return jnp.where(restrained, level - train.rollback * gain, gain), restrained


def truly_ppo(step: Step, train: ConfigDict) -> Surrogate:
    """Truly PPO: outside the region the KL itself is charged, `kl_penalty` times.

    The penalty is on KL / num_dims, the ratio's own unit.
    """
    gain = step.ratio * step.advantage
    restrained = _outside_for_gain(step, train)
    penalty = train.kl_penalty * step.kl / step.num_dims
    return jnp.where(restrained, gain - penalty, gain), restrained


def clipped(step: Step, train: ConfigDict) -> jax.Array:
    """Where the ratio is further from 1 than `clip_range`, bool [N]."""
    return jnp.abs(step.ratio - 1) > train.clip_range


def outside(step: Step, train: ConfigDict) -> jax.Array:
    """Where KL is `trust_region` nats or more, bool [N]."""
    return step.kl >= train.trust_region


def _clipped_ratio(step: Step, train: ConfigDict) -> jax.Array:
    return jnp.clip(step.ratio, 1 - train.clip_range, 1 + train.clip_range)


def _outside_for_gain(step: Step, train: ConfigDict) -> jax.Array:
    """Where KL >= trust_region and ratio * A >= A, the paper's condition.

    The authors' code has a strict > in the second half; it differs only where the
    advantage is 0 or the ratio is exactly 1.
    """
    return outside(step, train) & (step.ratio * step.advantage >= step.advantage)
