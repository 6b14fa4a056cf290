"""What learns: the weights and the optimizer, and which images and steps it uses."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ddpo_fair.diffusion import sampler
from ddpo_fair.models import lora

PROGRAMS = 4  # compiled ones kept: of a run, and of those before it in one process


@flax.struct.dataclass
class TrainState:
    """What changes in training: weights (all of the UNet's, or LoRA's), optimizer."""

    params: Any
    optimizer: Any
    updates: jax.Array  # int32, taken so far


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """What an update depends on; programs are compiled for the object."""

    policy: sampler.Policy  # with the guidance that is trained
    train: ConfigDict  # `config.train`
    steps_per_update: int  # denoising steps of each image in one update
    optimizer: optax.GradientTransformation  # of `make_optimizer`
    # Of each array of the state; None: the same on every device.
    sharding: TrainState | None = None

    @property
    def trained_steps(self) -> np.ndarray:
        """Numbers of the steps with noise but the `skip_last_steps` last, int [S]."""
        last = self.policy.num_steps - self.train.skip_last_steps
        return np.flatnonzero(np.asarray(self.policy.schedule.std)[:last])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW with a clipped global norm, warm-up, and a decay over the run's updates."""
    train = config.train
    total_updates = config.epochs * train.inner_epochs * train.updates_per_epoch
    warmup, floor = train.warmup_updates, train.final_learning_rate

    def rate(update: jax.Array) -> jax.Array:
        warm = jnp.minimum(1.0, (update + 1) / max(1, warmup))
        progress = jnp.clip(update / max(1, total_updates), 0.0, 1.0)
        return train.learning_rate * warm * (1.0 + (floor - 1.0) * progress)

    return optax.chain(
        optax.clip_by_global_norm(train.max_grad_norm),
        optax.adamw(
            rate,
            b1=train.adam_beta1,
            b2=train.adam_beta2,
            eps=train.adam_epsilon,
            weight_decay=train.weight_decay,
        ),
    )


def unet_params(learner: Learner, base: Any, params: Any) -> Any:
    """The UNet's weights that sample: `params`, or `base` with the adapters in it."""
    # Put in place outside: a compiled program would copy all the others.
    return in_place(base, _computed(learner, base, params)) if base else params


@functools.partial(jax.jit, static_argnums=0)
def _computed(learner: Learner, base: Any, params: Any) -> Any:
    return computed(learner, trained_weights(learner, base, params))


def trained_weights(learner: Learner, base: Any, params: Any) -> Any:
    """The weights whose gradient is taken: `params`, or the kernels that LoRA adapts.

    The gradients of all others, a third of the work, are never asked for.
    """
    if not base:
        return params
    kernels = lora.adapted(base, params, learner.train.lora.scale)
    return jax.lax.optimization_barrier(kernels)  # rounded alike in every program


def computed(learner: Learner, kernels: Any) -> Any:
    """Kernels that LoRA adapts in the dtype to which their layers cast them."""
    dtype = learner.policy.model.denoiser.dtype
    return jax.tree.map(lambda x: x.astype(dtype), kernels)


def in_place(base: Any, weights: Any) -> Any:
    """The UNet's weights, with those of `trained_weights` in their places."""
    return lora.replace(base, weights) if base else weights


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def selection(
    key: jax.Array, learner: Learner, num_devices: int, n: int
) -> tuple[jax.Array, jax.Array]:
    """Which images and which of their steps each update of an epoch uses.

    Both depend on an image's place in the epoch alone, not on the number of devices:
    of every U neighbours each update gets one.

    Args:
        key: one PRNG key.
        learner: has U = `train.updates_per_epoch` and S = `steps_per_update`.
        num_devices: D, of all hosts.
        n: images on each.

    Returns:
        images int32 [U, D, n/U], places on their own device; steps int32
        [U, D, n/U, S], distinct steps of each image, drawn anew for every image.
    """
    keys = jax.random.split(key, 2)
    U, N = learner.train.updates_per_epoch, num_devices * n
    steps = learner.trained_steps
    turns = jnp.broadcast_to(jnp.arange(U)[None], (N // U, U))
    turns = jax.random.permutation(keys[0], turns, axis=1, independent=True)
    images = turns.reshape(num_devices, n // U, U) + jnp.arange(0, n, U)[None, :, None]
    images = jnp.moveaxis(images, 2, 0)  # [U, D, n/U]
    steps = jnp.broadcast_to(steps[None], (N, len(steps)))
    steps = jax.random.permutation(keys[1], steps, axis=1, independent=True)
    steps = steps[:, : learner.steps_per_update].reshape(num_devices, n, -1)
    return images, steps[jnp.arange(num_devices)[None, :, None], images]


def microbatches(
    images: jax.Array, steps: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Images and steps of each microbatch, int32 [k, D, size], of [D, m] and [D, m, S].

    Step by step, so that a microbatch holds different images.
    """
    num_devices, _, per_image = steps.shape
    flat_steps = steps.swapaxes(1, 2).reshape(num_devices, -1)  # [D, S * m]
    flat_images = jnp.tile(images, (1, per_image))
    return tuple(
        flat.reshape(num_devices, -1, size).swapaxes(0, 1)
        for flat in (flat_images, flat_steps)
    )
