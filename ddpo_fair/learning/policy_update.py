"""The update: one jitted program that accumulates a gradient and takes an optax step.

The gradient of one update runs over its share of the epoch's images and a random
subset of their denoising steps, in microbatches, inside one `lax.scan`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import losses
from ddpo_fair.learning.learner import (
    PROGRAMS,
    Learner,
    TrainState,
    in_place,
    microbatches,
    trained_weights,
)


@flax.struct.dataclass
class EpochData:
    """What the updates of an epoch read and leave as it is."""

    base: Any  # the UNet's weights under LoRA; {} where all weights are trained
    trajectory: sampler.Trajectory  # [D, n, ...]
    advantages: jax.Array  # float32 [D, n]
    uncond_embedding: jax.Array  # float32 [L, C]


def pairs(data: EpochData, images: jax.Array, steps: jax.Array) -> dict[str, jax.Array]:
    """What the loss needs of pairs of an image and a step, [D, b, ...] each.

    Args:
        data: of the epoch.
        images: int32 [D, b], places on their own device.
        steps: int32 [D, b].
    """

    def of_device(trajectory, advantages, images, steps):
        again = trajectory.means
        means = {} if again is None else {"old_mean": again[images, steps]}
        return means | {
            "latents": trajectory.latents[images, steps],
            "next_latents": trajectory.latents[images, steps + 1],
            "log_prob": trajectory.log_probs[images, steps],
            "keys": trajectory.keys[images],
            "text": trajectory.text[images],
            "advantage": advantages[images],
            "step": steps,
        }

    # Device by device: an index or a concatenation across the devices' axis would
    # gather everything everywhere.
    return jax.vmap(of_device)(data.trajectory, data.advantages, images, steps)


def step_log_prob(
    policy: sampler.Policy,
    params: Any,
    uncond_embedding: jax.Array,
    batch: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probs [b] of a microbatch's steps under `params`, their means and stds.

    Args:
        policy: whose step it is.
        params: of the UNet.
        uncond_embedding: float32 [L, C].
        batch: of `pairs`, one device's.

    Returns:
        float32 [b], nats per dimension; mean [b, h, w, C]; std [b, 1, 1, 1].
    """
    now = policy.schedule[batch["step"]]
    output = stable_diffusion.guided_noise(
        policy.model.unet,
        params,
        batch["latents"],
        now.timesteps,
        batch["text"],
        uncond_embedding,
        policy.guidance_scale,
    )
    mean, std = ddim.transition(now, batch["latents"], output)
    return ddim.log_prob(batch["next_latents"], mean, std), mean, std


def surrogate_loss(
    learner: Learner,
    params: Any,
    uncond_embedding: jax.Array,
    batch: dict[str, jax.Array],
    base: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss of a microbatch and its metrics (means, but `ratio_deviation`).

    The learner names the objective; the rest is as for `step_log_prob`. The penalty on
    the KL to the base policy, whose UNet has the weights `base`, is paired with the
    ratio: it is on KL / dimensions, see `losses`.
    """
    policy, shape = learner.policy, learner.policy.model.latent_shape
    log_prob, mean, std = step_log_prob(policy, params, uncond_embedding, batch)
    old_mean = batch.get("old_mean")
    if old_mean is None:
        noise = jax.vmap(sampler.step_noise, (0, 0, None))(
            batch["keys"], batch["step"], shape
        )
        old_mean = batch["next_latents"] - std * noise
    kl = ddim.kl(mean, old_mean, std)
    ratio = jnp.exp(log_prob - batch["log_prob"])
    step = losses.Step(ratio, kl, batch["advantage"], int(np.prod(shape)))
    objective = getattr(losses, learner.train.objective)
    surrogate = objective(step, learner.train)
    loss, of_base = surrogate.loss, {}
    if weight := learner.train.base_kl_weight:
        _, base_mean, _ = step_log_prob(policy, base, uncond_embedding, batch)
        base_kl = ddim.kl(mean, base_mean, std)
        loss = loss + weight * base_kl / step.num_dims
        of_base = {"base_kl": base_kl.mean()}
    metrics = {
        "loss": loss.mean(),
        "kl": kl.mean(),
        "clip_fraction": surrogate.clipped.mean(dtype=jnp.float32),
        "trust_region_fraction": surrogate.outside.mean(dtype=jnp.float32),
        "restrained_fraction": surrogate.restrained.mean(dtype=jnp.float32),
        "ratio_deviation": jnp.abs(ratio - 1.0).max(),
        **of_base,
    }
    return loss.mean(), metrics


@functools.lru_cache(maxsize=PROGRAMS)
def program(learner: Learner) -> Callable[..., tuple[TrainState, dict]]:
    """The jitted update of a learner; it starts and does not wait.

    Arguments:
        state: before the update; it is used up.
        data: of the epoch.
        images: int32 [D, m], places on their own device.
        steps: int32 [D, m, S], of each of these images.

    Returns:
        The state after it, and its metrics: means, but `ratio_deviation`, a maximum.
    """
    return jax.jit(
        functools.partial(_update, learner),
        donate_argnums=0,
        compiler_options=_rounding(learner),
        out_shardings=(learner.sharding, None),  # None: the compiler's choice
    )


def _rounding(learner: Learner) -> dict[str, bool]:
    """Compiler options of the learner's programs: whether all round alike.

    XLA may leave out a rounding to bfloat16 where it fuses, which is faster but
    differs from program to program.
    """
    recompute = learner.train.recompute_log_probs
    return {"xla_allow_excess_precision": False} if recompute else {}


def _update(
    learner: Learner,
    state: TrainState,
    data: EpochData,
    images: jax.Array,
    steps: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    scale = learner.lora_scale
    weights, vjp = jax.vjp(
        lambda params: trained_weights(data.base, params, scale), state.params
    )

    def loss_of(weights: Any, microbatch: tuple) -> tuple[jax.Array, dict]:
        params = in_place(data.base, weights, scale)
        loss = functools.partial(
            surrogate_loss, learner, params, data.uncond_embedding, base=data.base
        )
        losses, metrics = jax.vmap(loss)(pairs(data, *microbatch))
        return losses.mean(), metrics

    def accumulate(total: Any, microbatch: tuple) -> tuple[Any, dict]:
        gradient, metrics = jax.grad(loss_of, has_aux=True)(weights, microbatch)
        return jax.tree.map(jnp.add, total, gradient), metrics

    zeros = jax.tree.map(jnp.zeros_like, weights)
    chosen = microbatches(images, steps, learner.train.microbatch)
    total, metrics = jax.lax.scan(accumulate, zeros, chosen)
    count = len(metrics["loss"])
    (gradient,) = vjp(jax.tree.map(lambda g: g / count, total))
    summary = {name: values.mean() for name, values in metrics.items()}
    summary["ratio_deviation"] = metrics["ratio_deviation"].max()
    return _step(learner, state, gradient, summary)


def _step(
    learner: Learner, state: TrainState, gradient: Any, summary: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The optimizer's step, taken only if everything about it is finite."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes float and int
        changes, optimizer = learner.optimizer.update(
            gradient, state.optimizer, state.params
        )
    params = optax.apply_updates(state.params, changes)
    new = TrainState(params, optimizer, state.updates + 1)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(summary["loss"]) & jnp.isfinite(norm)
    finite &= jnp.isfinite(optax.tree.norm(params))
    summary |= {"grad_norm": norm, "skipped_updates": 1.0 - finite.astype(jnp.float32)}
    # Decided on the devices, so that no host waits.
    return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, state), summary


@functools.lru_cache(maxsize=PROGRAMS)
def old_policy_program(
    learner: Learner,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The jitted program that computes the old policy again, in the learner's way.

    Sampler and learner are two programs; in bfloat16 they round differently, and ratio
    and KL would take that for a change of the policy.

    Arguments:
        params: of the train state, those that sampled.
        data: of the epoch.
        images: int32 [D, m], those of all updates of the epoch.
        steps: int32 [D, m, S].

    Returns:
        The trajectory's log-probs, float32 [D, n, T], and means, [D, n, T, h, w, C].
        Those of other images and steps stay as they are, and zero.
    """
    options = _rounding(learner)
    return jax.jit(functools.partial(_old_policy, learner), compiler_options=options)


def _old_policy(
    learner: Learner, params: Any, data: EpochData, images: jax.Array, steps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    weights = trained_weights(data.base, params, learner.lora_scale)
    log_prob = functools.partial(
        step_log_prob,
        learner.policy,
        in_place(data.base, weights, learner.lora_scale),
        data.uncond_embedding,
    )

    def compute(nothing: None, microbatch: tuple) -> tuple[None, tuple]:
        return nothing, jax.vmap(log_prob)(pairs(data, *microbatch))[:2]

    chosen = microbatches(images, steps, learner.train.microbatch)
    _, (log_probs, means) = jax.lax.scan(compute, None, chosen)
    image, step = (x.swapaxes(0, 1).reshape(len(images), -1) for x in chosen)

    def put(old: jax.Array, image: Any, step: Any, new: jax.Array) -> jax.Array:
        return old.at[image, step].set(new.reshape(len(image), *old.shape[2:]))

    old = data.trajectory.log_probs, jnp.zeros_like(data.trajectory.latents[:, :, 1:])
    return tuple(
        jax.vmap(put)(whole, image, step, new.swapaxes(0, 1))
        for whole, new in zip(old, (log_probs, means), strict=True)
    )
