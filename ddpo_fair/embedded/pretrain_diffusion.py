"""Pretraining of the embedded text encoder and UNet, together, on the VAE's latents."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import rng
from ddpo_fair.classifiers import supervised
from ddpo_fair.diffusion import ddim
from ddpo_fair.embedded import pretrain_tokenizer
from ddpo_fair.models import clip, unet

UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 4,
    "block_out_channels": [48, 96, 128],
    "center_input_sample": False,
    "cross_attention_dim": 64,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 8,
    "out_channels": 8,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 16,
    "sample_size": 16,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 64,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": pretrain_tokenizer.MAX_LENGTH,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 64,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}
BATCH = 64
PEAK_LEARNING_RATE = 4e-3
EMPTY_PROMPTS = 0.1  # share of captions dropped, for classifier-free guidance


def text_config(vocab_size: int) -> dict:
    """The text encoder's `config.json`; the vocabulary ends with begin and end."""
    end = vocab_size - 1
    tokens = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    return {**TEXT, "vocab_size": vocab_size, **tokens}


def configs(vocab_size: int) -> dict[str, dict]:
    """The config.json of each network that is trained here."""
    return {"unet": UNET, "text_encoder": text_config(vocab_size)}


def networks(vocab_size: int) -> tuple[clip.TextEncoder, unet.UNet]:
    """The two networks that are trained here."""
    text = clip.TextEncoder(clip.Config.from_dict(text_config(vocab_size)))
    return text, unet.UNet(unet.Config.from_dict(UNET))


def quiet(params: Any) -> Any:
    """The initial UNet with zeros where a residual branch ends: it starts still.

    Source: the zero modules of https://github.com/openai/guided-diffusion.
    """

    def zero(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path]
        last = names[-2] in ("conv2", "proj_out", "conv_out")
        return jnp.zeros_like(leaf) if last else leaf

    return jax.tree_util.tree_map_with_path(zero, params)


def loss(
    text: clip.TextEncoder, net: unet.UNet, params: Any, batch: tuple, key: jax.Array
) -> jax.Array:
    """Mean squared error of v = sqrt(alpha) noise - sqrt(1 - alpha) latents, a scalar.

    The timesteps of a batch are spread evenly over the schedule: less noisy than
    random.

    Args:
        text: the text encoder.
        net: the UNet.
        params: {"text_encoder", "unet"}.
        batch: latents float32 [N, 16, 16, 8] and tokens int32 [N, 16].
        key: of timesteps and noise.
    """
    latents, ids = batch
    keys = jax.random.split(key, 2)
    n = len(latents)
    offset = jax.random.uniform(keys[0], ())
    timesteps = ((jnp.arange(n) + offset) / n * 1000).astype(jnp.int32)
    alpha = jnp.asarray(ddim.alphas_cumprod(SCHEDULER), jnp.float32)[timesteps][
        :, None, None, None
    ]
    noise = jax.random.normal(keys[1], latents.shape)
    noisy = jnp.sqrt(alpha) * latents + jnp.sqrt(1.0 - alpha) * noise
    states = text.apply({"params": params["text_encoder"]}, ids)
    output = net.apply({"params": params["unet"]}, noisy, timesteps, states)
    target = jnp.sqrt(alpha) * noise - jnp.sqrt(1.0 - alpha) * latents
    return jnp.mean((output - target) ** 2)


def batch(
    latents: np.ndarray,
    caption_ids: np.ndarray,
    empty_ids: np.ndarray,
    seed: int,
    step: int,
) -> tuple[jax.Array, jax.Array]:
    """Latents and tokens of a step, as `loss` has them; arguments as for `train`."""
    draw = np.random.default_rng([seed, 3, step])
    rows = draw.integers(0, latents.shape[1], BATCH)
    pixels = latents[draw.integers(0, 2, BATCH), rows]
    dropped = draw.random((BATCH, 1)) < EMPTY_PROMPTS
    tokens = np.where(dropped, empty_ids, caption_ids[rows])
    return jnp.asarray(pixels, jnp.float32), jnp.asarray(tokens, jnp.int32)


def train(
    folder: Path,
    latents: np.ndarray,
    caption_ids: np.ndarray,
    empty_ids: np.ndarray,
    num_steps: int,
    seed: int,
    vocab_size: int,
) -> Any:
    """The weights {"text_encoder", "unet"}, averaged.

    Args:
        folder: of the stage's checkpoints.
        latents: float16 [2, N, 16, 16, 8], of the images and of their mirror images.
        caption_ids: int [N, 16], tokens of each image's caption.
        empty_ids: int [16], tokens of the empty prompt.
        num_steps: updates.
        seed: of the run.
        vocab_size: of the tokenizer.
    """
    text, net = networks(vocab_size)
    keys = [rng.key(seed, "diffusion", "init", part) for part in ("text", "unet")]
    sample = jnp.zeros((1, *latents.shape[2:])), jnp.zeros((1,), jnp.int32)
    states = jnp.zeros((1, pretrain_tokenizer.MAX_LENGTH, TEXT["hidden_size"]))
    ids = jnp.zeros((1, pretrain_tokenizer.MAX_LENGTH), jnp.int32)
    params = {
        "text_encoder": jax.jit(text.init)(keys[0], ids)["params"],
        "unet": quiet(jax.jit(net.init)(keys[1], *sample, states)["params"]),
    }

    data = latents, caption_ids, empty_ids
    return fit(
        "diffusion", folder, params, partial(loss, text, net), data, num_steps, seed
    )


def fit(
    purpose: str,
    folder: Path,
    params: Any,
    loss: Callable[[Any, Any, jax.Array], jax.Array],
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_steps: int,
    seed: int,
) -> Any:
    """The averaged weights of `supervised.fit`; the data are the first of `batch`."""
    transform = supervised.optimizer(PEAK_LEARNING_RATE, num_steps)
    draw = partial(batch, *data, seed)
    return supervised.fit(
        purpose, folder, params, transform, loss, draw, seed, num_steps
    )
