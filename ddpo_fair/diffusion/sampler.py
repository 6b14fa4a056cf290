"""Trajectories on all devices: `jax.pmap` over a `lax.scan` of DDIM steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import parallel
from ddpo_fair.diffusion import gaussian_step, stable_diffusion

PROGRAMS = 16  # compiled ones kept: an evaluation has a sampler for each setting


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A model and how it samples; programs are compiled for the object."""

    model: stable_diffusion.Model  # its weights are arguments of the programs
    schedule: gaussian_step.Schedule  # of T denoising steps
    guidance_scale: float  # see `stable_diffusion.guided_noise`

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.schedule.timesteps)


@flax.struct.dataclass
class Trajectory:
    """What the learner needs of n images on each of D devices; it never leaves them."""

    latents: jax.Array  # float32 [D, n, T+1, h, w, C], latents[t] -> latents[t+1]
    log_probs: jax.Array  # float32 [D, n, T], nats per dimension
    keys: jax.Array  # [D, n] keys, from which the noise of each step comes again
    text: jax.Array  # float32 [D, n, L, D_text]
    # float32 [D, n, T, h, w, C] of each step's Gaussian, where the learner has computed
    # it again; None is for the sampler's own, which the noise gives back.
    means: jax.Array | None = None


def initial_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Latents of pure noise of one image, float32 of `shape` (h, w, C)."""
    return jax.random.normal(jax.random.fold_in(key, 0), shape)


def step_noise(key: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise that step number `step` of one image adds, float32 of `shape`."""
    return jax.random.normal(jax.random.fold_in(key, step + 1), shape)


def denoise(
    policy: Policy,
    params: Any,
    keys: jax.Array,
    text: jax.Array,
    uncond_embedding: jax.Array,
) -> Trajectory:
    """The trajectories of n images on one device; leaves without the axis D.

    The log-probs of a deterministic step (eta = 0) are zero: it has no likelihood.

    Args:
        policy: whose network and schedule of T steps are used.
        params: of the network.
        keys: [n], one an image: nothing else makes two images of a prompt differ.
        text: float32 [n, L, C], embeddings of the prompts.
        uncond_embedding: float32 [L, C], of the empty prompt.
    """
    shape = policy.model.latent_shape

    def step(latents: jax.Array, index: jax.Array) -> tuple[jax.Array, tuple]:
        now = policy.schedule[index]
        timesteps = jnp.full((len(latents),), now.timesteps)
        output = stable_diffusion.guided_noise(
            policy.model.denoiser,
            params,
            latents,
            timesteps,
            text,
            uncond_embedding,
            policy.guidance_scale,
        )
        mean, std = gaussian_step.transition(now, latents, output)
        noise = jax.vmap(step_noise, (0, None, None))(keys, index, shape)
        next_latents = mean + std * noise
        safe = jnp.where(std > 0, std, 1.0)
        log_prob = gaussian_step.log_prob(next_latents, mean, safe)
        log_prob = jnp.where(std.reshape(1) > 0, log_prob, 0.0)
        return next_latents, (next_latents, log_prob)

    first = jax.vmap(initial_noise, (0, None))(keys, shape)
    _, (rest, log_probs) = jax.lax.scan(step, first, jnp.arange(policy.num_steps))
    latents = jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, 1)
    return Trajectory(latents, jnp.moveaxis(log_probs, 0, 1), keys, text)


def sample(
    policy: Policy,
    params: Any,
    keys: jax.Array,
    text: jax.Array,
    uncond_embedding: jax.Array,
) -> Trajectory:
    """Trajectories of n images on each of D devices; starts them and does not wait.

    As `denoise`, but of keys [D, n] and text [D, n, L, C].
    """
    return sampling_program(policy)(params, keys, text, uncond_embedding)


@functools.lru_cache(maxsize=PROGRAMS)
def sampling_program(policy: Policy) -> Callable[..., Trajectory]:
    """The pmapped `sample` of a policy, of its other arguments."""
    program = functools.partial(denoise, policy)
    return parallel.pmap(program, in_axes=(None, 0, 0, None))


def decode(
    model: stable_diffusion.Model, vae_params: Any, latents: jax.Array
) -> jax.Array:
    """Images float32 [D, n, H, W, 3] in [0, 1] of final latents [D, n, h, w, C]."""
    return decoding_program(model)(vae_params, latents)


@functools.lru_cache(maxsize=PROGRAMS)
def decoding_program(model: stable_diffusion.Model) -> Callable[..., jax.Array]:
    """The pmapped `decode` of a model, of its other arguments."""
    program = functools.partial(stable_diffusion.decode, model)
    return parallel.pmap(program, in_axes=(None, 0))


def image_keys(key: jax.Array, numbers: np.ndarray) -> jax.Array:
    """Keys [D, N/D] of images numbered int [N]: `key` with the number folded in."""
    placed = parallel.split(numbers.reshape(-1).astype(np.int32))
    return _fold_in(np.asarray(jax.random.key_data(key)), placed)


def _keys(key_data: jax.Array, numbers: jax.Array) -> jax.Array:
    key = jax.random.wrap_key_data(key_data)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


_fold_in = parallel.pmap(_keys, in_axes=(None, 0))
