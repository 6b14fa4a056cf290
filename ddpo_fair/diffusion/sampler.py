"""Trajectories on all devices: `jax.pmap` over a `lax.scan` of DDIM steps."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ddpo_fair import parallel
from ddpo_fair.diffusion import ddim, stable_diffusion


@flax.struct.dataclass
class Trajectory:
    """What the learner needs of n images on each of D devices; it never leaves them."""

    latents: jax.Array  # float32 [D, n, T+1, h, w, C], latents[t] -> latents[t+1]
    log_probs: jax.Array  # float32 [D, n, T], nats per dimension
    keys: jax.Array  # [D, n] keys, from which the noise of each step comes again
    text: jax.Array  # float32 [D, n, L, D_text]


def initial_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Latents of pure noise of one image."""
    return jax.random.normal(jax.random.fold_in(key, 0), shape)


def step_noise(key: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise that step number `step` of one image's chain adds."""
    return jax.random.normal(jax.random.fold_in(key, step + 1), shape)


def denoise(
    model: stable_diffusion.Model,
    chain: ddim.Schedule,
    guidance_scale: float,
    params: Any,
    keys: jax.Array,
    text: jax.Array,
    null: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Latents [n, T+1, h, w, C] and log-probs [n, T] on one device.

    The log-probs of a deterministic step (eta = 0) are zero: it has no likelihood.

    Args:
        model: its UNet is used.
        chain: the denoising chain, T steps.
        guidance_scale: see `stable_diffusion.guided_noise`.
        params: of the UNet.
        keys: [n], one an image: its picture depends on nothing else.
        text: [n, L, D].
        null: [L, D].
    """
    shape = model.latent_shape
    num_steps = len(chain.timesteps)

    def step(latents: jax.Array, index: jax.Array) -> tuple[jax.Array, tuple]:
        now = chain[index]
        timesteps = jnp.full((len(latents),), now.timesteps)
        output = stable_diffusion.guided_noise(
            model.unet, params, latents, timesteps, text, null, guidance_scale
        )
        mean, std = ddim.transition(now, latents, output)
        noise = jax.vmap(step_noise, (0, None, None))(keys, index, shape)
        following = mean + std * noise
        safe = jnp.where(std > 0, std, 1.0)
        log_prob = ddim.log_prob(following, mean, safe)
        log_prob = jnp.where(std.reshape(1) > 0, log_prob, 0.0)
        return following, (following, log_prob)

    first = jax.vmap(initial_noise, (0, None))(keys, shape)
    _, (following, log_probs) = jax.lax.scan(step, first, jnp.arange(num_steps))
    latents = jnp.concatenate([first[None], following])
    return jnp.moveaxis(latents, 0, 1), jnp.moveaxis(log_probs, 0, 1)


def make_sampler(
    model: stable_diffusion.Model, chain: ddim.Schedule, guidance_scale: float
) -> Callable[..., Trajectory]:
    """The pmapped `(params, keys [D, n], text [D, n, L, C], null) -> Trajectory`."""

    def sample(params: Any, keys: jax.Array, text: jax.Array, null: jax.Array):
        latents, log_probs = denoise(
            model, chain, guidance_scale, params, keys, text, null
        )
        return Trajectory(latents, log_probs, keys, text)

    return parallel.pmap(sample, in_axes=(None, 0, 0, None))


def make_decoder(model: stable_diffusion.Model) -> Callable[..., jax.Array]:
    """The pmapped `(vae_params, latents [D, n, h, w, C]) -> images [D, n, H, W, 3]`."""

    def decode(params: Any, latents: jax.Array) -> jax.Array:
        return stable_diffusion.decode(model, params, latents)

    return parallel.pmap(decode, in_axes=(None, 0))
