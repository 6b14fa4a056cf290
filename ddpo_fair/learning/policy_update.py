"""The update: one jitted program that accumulates a gradient and takes an optax step.

The gradient of one update runs over its share of the epoch's images and a random
subset of their denoising steps, in microbatches, inside one `lax.scan`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpo_fair import parallel
from ddpo_fair.diffusion import gaussian_step, sampler, stable_diffusion
from ddpo_fair.learning import losses
from ddpo_fair.learning.learner import (
    PROGRAMS,
    Learner,
    TrainState,
    computed,
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
    # float32 [D, n], of the penalty on the KL to the base policy; None is for none.
    kl_weights: jax.Array | None = None


def pairs(data: EpochData, images: jax.Array, steps: jax.Array) -> dict[str, jax.Array]:
    """What the loss needs of images and steps, int32 [D, b]: arrays [D, b, ...]."""

    def of_device(trajectory, advantages, kl_weights, images, steps):
        again = trajectory.means
        given = {} if again is None else {"old_mean": again[images, steps]}
        if kl_weights is not None:
            given["kl_weight"] = kl_weights[images]
        return given | {
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
    each = data.trajectory, data.advantages, data.kl_weights, images, steps
    return jax.vmap(of_device)(*each)


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
        policy.model.denoiser,
        params,
        batch["latents"],
        now.timesteps,
        batch["text"],
        uncond_embedding,
        policy.guidance_scale,
    )
    mean, std = gaussian_step.transition(now, batch["latents"], output)
    return gaussian_step.log_prob(batch["next_latents"], mean, std), mean, std


def surrogate_loss(
    learner: Learner,
    params: Any,
    uncond_embedding: jax.Array,
    batch: dict[str, jax.Array],
    base: Any = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], tuple]]:
    """Mean loss of a microbatch, its metrics, and its log-probs [b] and means.

    The metrics are means, but `ratio_deviation`, a maximum. The penalty on the KL to
    the base policy, whose UNet has the weights `base`, is paired with the ratio: it is
    on KL / dimensions, see `losses`.
    """
    policy, shape = learner.policy, learner.policy.model.latent_shape
    log_prob, mean, std = step_log_prob(policy, params, uncond_embedding, batch)
    old_mean = batch.get("old_mean")
    if old_mean is None:
        noise = jax.vmap(sampler.step_noise, (0, 0, None))(
            batch["keys"], batch["step"], shape
        )
        old_mean = batch["next_latents"] - std * noise
    kl = gaussian_step.kl(mean, old_mean, std)
    ratio = jnp.exp(log_prob - batch["log_prob"])
    step = losses.Step(ratio, kl, batch["advantage"], int(np.prod(shape)))
    objective = getattr(losses, learner.train.objective)
    gain, restrained = objective(step, learner.train)
    loss, of_base = -gain, {}
    if (weights := batch.get("kl_weight")) is not None:
        _, base_mean, _ = step_log_prob(policy, base, uncond_embedding, batch)
        base_kl = gaussian_step.kl(mean, base_mean, std)
        loss = loss + weights * base_kl / step.num_dims
        of_base = {"base_kl": base_kl.mean()}
    where = {
        "clip_fraction": losses.clipped(step, learner.train),
        "trust_region_fraction": losses.outside(step, learner.train),
        "restrained_fraction": restrained,
    }
    metrics = {
        "loss": loss.mean(),
        "kl": kl.mean(),
        **{name: images.mean(dtype=jnp.float32) for name, images in where.items()},
        "ratio_deviation": jnp.abs(ratio - 1.0).max(),
        **of_base,
    }
    return loss.mean(), (metrics, (log_prob, mean))


@functools.lru_cache(maxsize=PROGRAMS)
def program(learner: Learner) -> Callable[..., tuple]:
    """The jitted `_update` of a learner; it starts and does not wait."""
    return jax.jit(
        functools.partial(_update, learner),
        donate_argnums=0,
        out_shardings=(learner.sharding, None, None),  # None: the compiler's choice
    )


def _update(
    learner: Learner,
    state: TrainState,
    data: EpochData,
    images: jax.Array,
    steps: jax.Array,
    learn: jax.Array | bool = True,
) -> tuple[TrainState, dict[str, jax.Array], tuple]:
    """The state after an update, and its metrics: means, but `ratio_deviation`.

    Args:
        learner: whose update it is.
        state: before it; it is used up.
        data: of the epoch.
        images: int32 [D, m], places on their own device.
        steps: int32 [D, m, S], of each of these images.
        learn: with `recompute_log_probs` only; whether to change the state.

    Returns:
        The state; the metrics; and, with `recompute_log_probs`, log-probs [turns, D, b]
        and means of its pairs.
    """
    weights, vjp = jax.vjp(
        functools.partial(trained_weights, learner, data.base), state.params
    )
    gradient_of = functools.partial(_gradient, learner, len(images))
    if len(images) > 1 and learner.policy.model.denoiser.dtype != jnp.float32:
        # Left to XLA, devices would add in 16 bits what each has added up in 32.
        axes = None, EpochData(None, 0, 0, None, 0), 0, 0, None
        gradient_of = parallel.on_each(gradient_of, axes, 1)
    if data.base:
        weights = computed(learner, weights)  # once, not in every turn
    total, (metrics, again) = gradient_of(weights, data, images, steps, learn)
    count = len(metrics["loss"])
    (gradient,) = vjp(jax.tree.map(lambda g: g / count, total))
    summary = {name: values.mean() for name, values in metrics.items()}
    summary["ratio_deviation"] = metrics["ratio_deviation"].max()
    return *_step(learner, state, gradient, summary, learn), again


def _gradient(
    learner: Learner,
    num_devices: int,
    weights: Any,
    data: EpochData,
    images: jax.Array,
    steps: jax.Array,
    learn: jax.Array | bool,
) -> tuple[Any, tuple]:
    """The sum of the microbatches' gradients; metrics and log-probs of each.

    Of the images on all devices, or of one device's part of their mean.
    """

    def loss_of(microbatch: tuple, weights: Any) -> tuple[jax.Array, tuple]:
        params = in_place(data.base, weights)
        loss = functools.partial(
            surrogate_loss, learner, params, data.uncond_embedding, base=data.base
        )
        losses, found = jax.vmap(loss)(pairs(data, *microbatch))
        return losses.sum() / num_devices, found

    def added(total: Any, gradient: Any) -> Any:
        return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, gradient)

    def accumulate(total: Any, microbatch: tuple) -> tuple[Any, tuple]:
        loss = functools.partial(loss_of, microbatch)
        one, backward, (metrics, again) = jax.vjp(loss, weights, has_aux=True)

        def learned() -> Any:
            return added(total, *backward(jnp.ones_like(one)))

        if not learner.train.recompute_log_probs:
            return learned(), (metrics, ())
        # Among several devices a condition would keep XLA from adding their gradients
        # up once, behind the loop.
        alone = len(images) == 1
        new = jax.lax.cond(learn, learned, lambda: total) if alone else learned()
        return new, (metrics, again)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), weights)
    chosen = microbatches(images, steps, learner.train.microbatch)
    return jax.lax.scan(accumulate, zeros, chosen)


def _step(
    learner: Learner,
    state: TrainState,
    gradient: Any,
    summary: dict[str, jax.Array],
    learn: jax.Array | bool,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The optimizer's step, if it shall learn and everything about it is finite."""
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
    take = finite & learn if learner.train.recompute_log_probs else finite
    return jax.tree.map(lambda x, y: jnp.where(take, x, y), new, state), summary


def with_old_policy(
    learner: Learner, state: TrainState, data: EpochData, chosen: Sequence[tuple]
) -> tuple[TrainState, EpochData]:
    """State, and data with log-probs and means by the program that will compare them.

    Two programs round differently, in bfloat16 by several nats of KL on a GPU, which
    ratio and KL would take for a change of the policy. So the old ones come from the
    update itself, which learns nothing in these calls. It costs a forward pass of each
    pair, but a whole update on several devices in float32. `chosen` are images and
    steps of each update; the state is used up.
    """
    trajectory = with_means(data.trajectory)
    blank = data.replace(trajectory=trajectory)
    for images, steps in chosen:
        state, _, found = program(learner)(state, blank, images, steps, False)
        places = microbatches(images, steps, learner.train.microbatch)
        trajectory = _put(trajectory, places, found)
    return state, data.replace(trajectory=trajectory)


def with_means(trajectory: sampler.Trajectory) -> sampler.Trajectory:
    """The trajectory, or its shapes, with room for means: zeros."""
    latents = trajectory.latents
    D, n, states, *shape = latents.shape
    room = D, n, states - 1, *shape
    if isinstance(latents, jax.ShapeDtypeStruct):
        means = jax.ShapeDtypeStruct(room, jnp.float32, sharding=latents.sharding)
    else:
        means = jnp.zeros(room, device=latents.sharding)
    return trajectory.replace(means=means)


@jax.jit
def _put(
    trajectory: sampler.Trajectory, places: tuple, found: tuple
) -> sampler.Trajectory:
    """Log-probs and means [turns, D, b, ...] at images and steps [turns, D, b]."""
    image, step = (x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in places)

    def put(old: jax.Array, image: Any, step: Any, new: jax.Array) -> jax.Array:
        return old.at[image, step].set(new.reshape(len(image), *old.shape[2:]))

    log_probs, means = (
        jax.vmap(put)(whole, image, step, new.swapaxes(0, 1))
        for whole, new in zip(
            (trajectory.log_probs, trajectory.means), found, strict=True
        )
    )
    return trajectory.replace(log_probs=log_probs, means=means)
