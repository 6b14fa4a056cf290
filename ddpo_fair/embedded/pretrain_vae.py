"""Pretraining of the embedded autoencoder: 64 x 64 pixels to 16 x 16 x 8 latents."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import rng
from ddpo_fair.classifiers import supervised
from ddpo_fair.models import vae, weights

CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
    "norm_num_groups": 8,
    "sample_size": 64,
    "scaling_factor": 1.0,  # the latents are normalised inside, by `normalise`
}
BATCH = 16
PEAK_LEARNING_RATE = 5e-3
KL_WEIGHT = 3e-4  # per latent dimension: keeps the latents near a unit Gaussian


def scale(images: np.ndarray) -> jax.Array:
    """uint8 [N, H, W, 3] as float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def loss(
    network: vae.AutoencoderKL, params: Any, images: jax.Array, key: jax.Array
) -> jax.Array:
    """Absolute error of pixels and of their differences, plus the weighted KL.

    Args:
        network: the autoencoder.
        params: its weights.
        images: float32 [N, 64, 64, 3] in [-1, 1].
        key: of the latents' noise.

    Returns:
        float32, a scalar.
    """
    variables = {"params": params}
    mean, log_var = network.apply(variables, images, method="encode")
    noise = jax.random.normal(key, mean.shape)
    latents = mean + jnp.exp(0.5 * log_var) * noise
    error = network.apply(variables, latents, method="decode") - images
    edges = (
        jnp.abs(jnp.diff(error, axis=1)).mean()
        + jnp.abs(jnp.diff(error, axis=2)).mean()
    )
    kl = 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var).mean()
    return jnp.abs(error).mean() + 0.5 * edges + KL_WEIGHT * kl


def train(folder: Path, images: np.ndarray, num_steps: int, seed: int) -> Any:
    """The weights of the autoencoder trained on `images`, uint8 [N, 64, 64, 3]."""
    network = vae.AutoencoderKL(vae.Config.from_dict(CONFIG))
    sample = jnp.zeros((1, 64, 64, 3))
    params = jax.jit(network.init)(rng.key(seed, "vae", "init"), sample)["params"]

    def batch(step: int) -> jax.Array:
        draw = np.random.default_rng([seed, 1, step])
        rows = images[draw.integers(0, len(images), BATCH)]
        return scale(rows[:, :, ::-1] if draw.random() < 0.5 else rows)

    return supervised.fit(
        "vae",
        folder,
        params,
        supervised.optimizer(PEAK_LEARNING_RATE, num_steps),
        partial(loss, network),
        batch,
        seed,
        num_steps,
        decay=0.998,
    )


def encode(params: Any, images: np.ndarray) -> np.ndarray:
    """Latent means float32 [N, 16, 16, 8] of images uint8 [N, 64, 64, 3]."""
    network = vae.AutoencoderKL(vae.Config.from_dict(CONFIG))
    mean = jax.jit(lambda x: network.apply({"params": params}, x, method="encode")[0])
    starts = range(0, len(images), 100)
    return np.concatenate(
        [np.asarray(mean(scale(images[i : i + 100]))) for i in starts]
    )


def normalise(params: Any, images: np.ndarray) -> Any:
    """The same autoencoder with latents of zero mean and unit variance per channel.

    Images, uint8 [N, 64, 64, 3], say what mean and variance are.

    The change of units is folded into the 1 x 1 convolutions on both sides of the
    latents, hence `scaling_factor` is 1 and every reader of the folder agrees.
    """
    latents = encode(params, images)
    mean, std = latents.mean((0, 1, 2)), latents.std((0, 1, 2))
    quant, post = dict(params["quant_conv"]), dict(params["post_quant_conv"])
    units = jnp.concatenate([1 / std, jnp.ones_like(std)])
    shift = jnp.concatenate([-mean / std, -2 * jnp.log(std)])
    quant = {"kernel": quant["kernel"] * units, "bias": quant["bias"] * units + shift}
    bias = post["bias"] + jnp.einsum("c,hwco->o", mean, post["kernel"])
    post = {"kernel": post["kernel"] * std[:, None], "bias": bias}
    return {**params, "quant_conv": quant, "post_quant_conv": post}


def read(folder: Path) -> Any:
    """The weights of a saved autoencoder, as every reader of the folder gets them."""
    network = vae.AutoencoderKL(vae.Config.from_dict(CONFIG))
    return weights.load(folder, weights.init_template(network, (1, 64, 64, 3)))
