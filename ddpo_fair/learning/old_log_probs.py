"""Log-probs of the sampled steps again, as the learner computes them.

Sampler and learner are two programs; in bfloat16 they round differently, and PPO would
take that for a change of the policy.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import learner


def make_recompute(
    model: stable_diffusion.Model, chain: ddim.Schedule, settings: learner.Settings
) -> Callable[..., sampler.Trajectory]:
    """The jitted recomputation.

    It maps (params, base, trajectory, images [D, m], steps [D, m, S], null) to the
    trajectory with the log-probs of these pairs computed in the update's own
    microbatches; others stay. `params` are those that sampled.
    """

    @partial(jax.jit, compiler_options=learner.rounding(settings))
    def recompute(params, base, trajectory, images, steps, null):
        params = learner.merged(base, params, settings)
        unused = jnp.zeros(trajectory.log_probs.shape[:2])  # the advantages
        step = partial(learner.taken_step, model, chain, settings, params, null)

        def one(nothing, turn):
            log_prob, _, _ = jax.vmap(step)(
                jax.vmap(learner.pairs)(trajectory, unused, *turn)
            )
            return nothing, log_prob

        turns = learner.in_turns(images, steps, settings.microbatch)
        _, found = jax.lax.scan(one, None, turns)
        flat = [x.swapaxes(0, 1).reshape(len(images), -1) for x in (*turns, found)]
        log_probs = jax.vmap(_put)(trajectory.log_probs, *flat)
        return trajectory.replace(log_probs=log_probs)

    return recompute


def _put(
    log_probs: jax.Array, images: jax.Array, steps: jax.Array, values: jax.Array
) -> jax.Array:
    return log_probs.at[images, steps].set(values)
