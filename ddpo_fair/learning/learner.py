"""The update: one jitted program that accumulates a gradient and takes an optax step.

The gradient of one update runs over its share of the epoch's images and a random
subset of their denoising steps, in microbatches, inside one `lax.scan`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import losses
from ddpo_fair.models import lora


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the compiled update depends on; see `config.defaults` for the meaning."""

    objective: str
    surrogate: losses.Settings
    guidance_scale: float
    updates_per_epoch: int
    steps_per_update: int  # denoising steps of each image in one update
    last_step: int  # steps from this one on are left out of the loss
    microbatch: int  # images per device in one forward and backward pass
    lora_scale: float
    recompute: bool = False  # the old log-probs, see `old_log_probs`


@flax.struct.dataclass
class TrainState:
    """What changes in training: weights (all of the UNet's, or LoRA's), optimizer."""

    params: Any
    optimizer: Any
    updates: jax.Array  # int32, taken so far


def optimizer(settings: Any, total_updates: int) -> optax.GradientTransformation:
    """AdamW with a clipped global norm, warm-up and an optional decay.

    Args:
        settings: `config.train`.
        total_updates: of the whole run, for the decay.
    """
    warmup, floor = settings.warmup_updates, settings.final_learning_rate

    def rate(update: jax.Array) -> jax.Array:
        warm = jnp.minimum(1.0, (update + 1) / max(1, warmup))
        progress = jnp.clip(update / max(1, total_updates), 0.0, 1.0)
        return settings.learning_rate * warm * (1.0 + (floor - 1.0) * progress)

    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            rate,
            b1=settings.adam_beta1,
            b2=settings.adam_beta2,
            eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
        ),
    )


def merged(base: Any, params: Any, settings: Settings) -> Any:
    """The UNet's weights: `params` itself, or `base` with the LoRA `params` in it."""
    return in_place(base, trained_weights(base, params, settings), settings)


def trained_weights(base: Any, params: Any, settings: Settings) -> Any:
    """The weights whose gradient is taken: `params`, or the kernels that LoRA adapts.

    The gradients of all others, a third of the work, are never asked for.
    """
    if settings.lora_scale == 0.0:
        return params
    kernels = lora.adapted(base, params, settings.lora_scale)
    return jax.lax.optimization_barrier(kernels)  # rounded alike in every program


def in_place(base: Any, weights: Any, settings: Settings) -> Any:
    """The UNet's weights, with those of `trained_weights` in their places."""
    return weights if settings.lora_scale == 0.0 else lora.replace(base, weights)


def selection(key: jax.Array, settings: Settings, num_devices: int, n: int) -> tuple:
    """Which images and which of their steps each update of an epoch uses.

    Both depend on an image's place in the epoch alone, not on the number of devices:
    of every U neighbours each update gets one.

    Returns:
        images int32 [U, D, n/U], places on their own device; steps int32
        [U, D, n/U, S], distinct steps of each image, drawn anew for every image.
    """
    keys = jax.random.split(key, 2)
    U, N, T = settings.updates_per_epoch, num_devices * n, settings.last_step
    turns = jnp.broadcast_to(jnp.arange(U)[None], (N // U, U))
    turns = jax.random.permutation(keys[0], turns, axis=1, independent=True)
    images = turns.reshape(num_devices, n // U, U) + jnp.arange(0, n, U)[None, :, None]
    images = jnp.moveaxis(images, 2, 0)  # [U, D, n/U]
    steps = jnp.broadcast_to(jnp.arange(T)[None], (N, T))
    steps = jax.random.permutation(keys[1], steps, axis=1, independent=True)
    steps = steps[:, : settings.steps_per_update].reshape(num_devices, n, -1)
    return images, steps[jnp.arange(num_devices)[None, :, None], images]


def pairs(
    trajectory: sampler.Trajectory,
    advantages: jax.Array,
    images: jax.Array,
    steps: jax.Array,
) -> dict[str, jax.Array]:
    """What the loss needs of a device's pairs of an image and a step, [b, ...].

    Args:
        trajectory: of the device's images, [n, ...].
        advantages: float32 [n].
        images: int32 [b].
        steps: int32 [b].
    """
    return {
        "latents": trajectory.latents[images, steps],
        "following": trajectory.latents[images, steps + 1],
        "log_prob": trajectory.log_probs[images, steps],
        "keys": trajectory.keys[images],
        "text": trajectory.text[images],
        "advantage": advantages[images],
        "step": steps,
    }


def taken_step(
    model: stable_diffusion.Model,
    chain: ddim.Schedule,
    settings: Settings,
    params: Any,
    null: jax.Array,
    batch: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probs [B] of a microbatch's steps under `params`; their means and stds."""
    now = chain[batch["step"]]
    output = stable_diffusion.guided_noise(
        model.unet,
        params,
        batch["latents"],
        now.timesteps,
        batch["text"],
        null,
        settings.guidance_scale,
    )
    mean, std = ddim.transition(now, batch["latents"], output)
    return ddim.log_prob(batch["following"], mean, std), mean, std


def surrogate_loss(
    model: stable_diffusion.Model,
    chain: ddim.Schedule,
    settings: Settings,
    params: Any,
    null: jax.Array,
    batch: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss of a microbatch [B] and its metrics (means, but `ratio_deviation`)."""
    log_prob, mean, std = taken_step(model, chain, settings, params, null, batch)
    noise = jax.vmap(sampler.step_noise, (0, 0, None))(
        batch["keys"], batch["step"], model.latent_shape
    )
    old_mean = batch["following"] - std * noise
    kl = ddim.kl(mean, old_mean, std)
    objective = losses.OBJECTIVES[settings.objective]
    surrogate = objective(
        log_prob, batch["log_prob"], kl, batch["advantage"], settings.surrogate
    )
    ratio = jnp.exp(log_prob - batch["log_prob"])
    metrics = {
        "loss": surrogate.loss.mean(),
        "kl": kl.mean(),
        "clip_fraction": surrogate.clipped.mean(dtype=jnp.float32),
        "trust_region_fraction": surrogate.outside.mean(dtype=jnp.float32),
        "restrained_fraction": surrogate.restrained.mean(dtype=jnp.float32),
        "ratio_deviation": jnp.abs(ratio - 1.0).max(),
    }
    return surrogate.loss.mean(), metrics


def rounding(settings: Settings) -> dict[str, bool]:
    """Compiler options of the learner's programs: whether all round alike.

    XLA may leave out a rounding to bfloat16 where it fuses, which is faster but
    differs from program to program.
    """
    return {"xla_allow_excess_precision": False} if settings.recompute else {}


def make_update(
    model: stable_diffusion.Model,
    chain: ddim.Schedule,
    settings: Settings,
    transform: optax.GradientTransformation,
    placement: TrainState | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted update.

    It maps (state, base, trajectory, advantages [D, n], images [D, m],
    steps [D, m, S], null) to the new state and the metrics of this update. Where loss,
    gradient or new weights are not finite the state stays as it was, and the metric
    `skipped_updates` is 1.

    Args:
        model: its networks; weights are arguments of the update.
        chain: of the denoising steps.
        settings: what is compiled.
        transform: of `optimizer`.
        placement: sharding of each array of the state; None: the same on every device.
    """
    kept = {} if placement is None else {"out_shardings": (placement, None)}

    @partial(jax.jit, donate_argnums=0, compiler_options=rounding(settings), **kept)
    def update(state, base, trajectory, advantages, images, steps, null):
        weights, pull_back = jax.vjp(
            lambda params: trained_weights(base, params, settings), state.params
        )

        def loss_of(weights, turn):
            params = in_place(base, weights, settings)
            # Device by device: an index or a concatenation across the devices' axis
            # would gather everything everywhere.
            batch = jax.vmap(pairs)(trajectory, advantages, *turn)
            loss = partial(surrogate_loss, model, chain, settings, params, null)
            losses, metrics = jax.vmap(loss)(batch)
            return losses.mean(), metrics

        def accumulate(total, turn):
            gradient, metrics = jax.grad(loss_of, has_aux=True)(weights, turn)
            return jax.tree.map(jnp.add, total, gradient), metrics

        zeros = jax.tree.map(jnp.zeros_like, weights)
        turns = in_turns(images, steps, settings.microbatch)
        total, metrics = jax.lax.scan(accumulate, zeros, turns)
        count = len(metrics["loss"])
        (gradient,) = pull_back(jax.tree.map(lambda g: g / count, total))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes float and int
            changes, opt = transform.update(gradient, state.optimizer, state.params)
        new = TrainState(
            optax.apply_updates(state.params, changes), opt, state.updates + 1
        )
        summary = {name: values.mean() for name, values in metrics.items()}
        summary["ratio_deviation"] = metrics["ratio_deviation"].max()
        summary["grad_norm"] = optax.tree.norm(gradient)
        sound = jnp.isfinite(summary["loss"]) & jnp.isfinite(summary["grad_norm"])
        sound &= jnp.isfinite(optax.tree.norm(new.params))
        summary["skipped_updates"] = 1.0 - sound.astype(jnp.float32)
        return keep_sound(sound, new, state), summary

    return update


def keep_sound(sound: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """`new` if `sound`, else `old`; decided on the devices, so nobody waits."""
    return jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, old)


def in_turns(
    images: jax.Array, steps: jax.Array, microbatch: int
) -> tuple[jax.Array, jax.Array]:
    """Images and steps of each microbatch, int32 [k, D, microbatch] both.

    Step by step, so that a microbatch holds different images.

    Args:
        images: int32 [D, m].
        steps: int32 [D, m, S].
        microbatch: divides m * S.
    """
    num_devices, _, per_image = steps.shape
    flat_steps = steps.swapaxes(1, 2).reshape(num_devices, -1)  # [D, S * m]
    flat_images = jnp.tile(images, (1, per_image))
    return tuple(
        flat.reshape(num_devices, -1, microbatch).swapaxes(0, 1)
        for flat in (flat_images, flat_steps)
    )
