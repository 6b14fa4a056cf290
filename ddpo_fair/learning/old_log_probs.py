"""Log-probs of the sampled steps again, as the learner computes them.

Sampler and learner are two programs; in bfloat16 they round differently, and PPO would
take that for a change of the policy.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpo_fair.diffusion import sampler
from ddpo_fair.learning import policy_update
from ddpo_fair.learning.learner import (
    PROGRAMS,
    Learner,
    in_place,
    microbatches,
    trained_weights,
)


def recompute(
    learner: Learner,
    params: Any,
    base: Any,
    trajectory: sampler.Trajectory,
    images: jax.Array,
    steps: jax.Array,
    uncond_embedding: jax.Array,
) -> sampler.Trajectory:
    """The trajectory with some log-probs computed in the update's own microbatches.

    Args:
        learner: compiled at its first use.
        params: of the train state, those that sampled.
        base: as for `policy_update.update`.
        trajectory: [D, n, ...].
        images: int32 [D, m]; the log-probs of other images stay.
        steps: int32 [D, m, S]; those of other steps stay.
        uncond_embedding: float32 [L, C].
    """
    arguments = params, base, trajectory, images, steps, uncond_embedding
    return program(learner)(*arguments)


@functools.lru_cache(maxsize=PROGRAMS)
def program(learner: Learner) -> Callable[..., sampler.Trajectory]:
    """The jitted `recompute` of a learner, of its other arguments."""
    options = policy_update.rounding(learner)
    return jax.jit(functools.partial(_recompute, learner), compiler_options=options)


def _recompute(
    learner: Learner,
    params: Any,
    base: Any,
    trajectory: sampler.Trajectory,
    images: jax.Array,
    steps: jax.Array,
    uncond_embedding: jax.Array,
) -> sampler.Trajectory:
    weights = trained_weights(base, params, learner.lora_scale)
    params = in_place(base, weights, learner.lora_scale)
    unused = jnp.zeros(trajectory.log_probs.shape[:2])  # the advantages
    log_prob = functools.partial(
        policy_update.step_log_prob, learner.policy, params, uncond_embedding
    )

    def one(nothing: None, turn: tuple) -> tuple[None, jax.Array]:
        found, _, _ = jax.vmap(log_prob)(
            jax.vmap(policy_update.pairs)(trajectory, unused, *turn)
        )
        return nothing, found

    turns = microbatches(images, steps, learner.train.microbatch)
    _, found = jax.lax.scan(one, None, turns)
    flat = [x.swapaxes(0, 1).reshape(len(images), -1) for x in (*turns, found)]
    log_probs = jax.vmap(_put)(trajectory.log_probs, *flat)
    return trajectory.replace(log_probs=log_probs)


def _put(
    log_probs: jax.Array, images: jax.Array, steps: jax.Array, values: jax.Array
) -> jax.Array:
    return log_probs.at[images, steps].set(values)
