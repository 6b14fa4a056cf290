"""Pretraining of the embedded flow model: a small Stable Diffusion 3, of two CLIPs."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import rng
from ddpo_fair.diffusion import networks
from ddpo_fair.embedded import pretrain_diffusion, pretrain_vae
from ddpo_fair.models import layers

TEXT = {
    **pretrain_diffusion.TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
}
TRANSFORMER = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 32,
    "caption_projection_dim": 160,
    "dual_attention_layers": [],
    "in_channels": 8,
    "joint_attention_dim": 2 * TEXT["hidden_size"],
    "num_attention_heads": 5,
    "num_layers": 6,
    "out_channels": 8,
    "patch_size": 2,
    "pooled_projection_dim": 2 * TEXT["projection_dim"],
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
    "sample_size": 16,
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
}
INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": [None, None],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": [None, None],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "image_encoder": [None, None],
    "feature_extractor": [None, None],
}
TRAINED = (networks.TRANSFORMER, networks.TEXT, networks.TEXT_2)


def configs(vocab_size: int) -> dict[str, dict[str, Any]]:
    """The config.json of each network, by part."""
    text = {**pretrain_diffusion.text_config(vocab_size), **TEXT}
    return {
        networks.TRANSFORMER: TRANSFORMER,
        "vae": {**pretrain_vae.CONFIG, "shift_factor": 0.0},
        networks.TEXT: text,
        networks.TEXT_2: text,
    }


def positions() -> jax.Array:
    """The fixed table of positions, [1, P, D]: waves of the row, then of the column."""
    size, side = TRANSFORMER["caption_projection_dim"], TRANSFORMER["sample_size"] // 2
    waves = layers.timestep_embedding(jnp.arange(side), size // 2, False, 0)
    rows, columns = jnp.repeat(waves, side, axis=0), jnp.tile(waves, (side, 1))
    return jnp.concatenate([columns, rows], axis=-1)[None]


def still(params: Any) -> Any:
    """The initial transformer with gates of zero, and its table of positions.

    Source: adaLN-zero of Peebles and Xie 2023, arXiv 2212.09748.
    """

    def change(path: tuple, leaf: jax.Array) -> jax.Array:
        *_, layer, _ = ("", *(entry.key for entry in path))
        if layer == "":
            return positions()
        gates = layer.startswith("norm") and layer.endswith("linear")
        return jnp.zeros_like(leaf) if gates else leaf

    return jax.tree_util.tree_map_with_path(change, params)


def initial(nets: networks.Networks, seed: int) -> dict[str, Any]:
    """The weights of the parts in `TRAINED` before training."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), networks.inputs(nets))
    params = {
        part: jax.jit(nets[part].init)(rng.key(seed, "flow", part), *zeros[part])
        for part in TRAINED
    }
    params = {part: made["params"] for part, made in params.items()}
    return params | {networks.TRANSFORMER: still(params[networks.TRANSFORMER])}


def loss(nets: networks.Networks, params: Any, batch: tuple, key: jax.Array) -> Any:
    """Mean squared error of the velocity noise - latents, a scalar.

    The times are logit-normal (Esser et al. 2024, arXiv 2403.03206, section 3.1), those
    of a batch spread evenly over its quantiles.

    Args:
        nets: the networks.
        params: theirs, of the parts in `TRAINED`.
        batch: latents float32 [N, 16, 16, 8] and tokens int32 [N, 16].
        key: of times and noise.
    """
    latents, ids = batch
    keys = jax.random.split(key, 2)
    n = len(latents)
    quantiles = (jnp.arange(n) + jax.random.uniform(keys[0], (), minval=1e-3)) / n
    time = jax.nn.sigmoid(jax.scipy.special.ndtri(quantiles))
    noise = jax.random.normal(keys[1], latents.shape)
    wide = time[:, None, None, None]
    outputs = {
        part: nets[part].apply({"params": params[part]}, ids)
        for part in networks.text_parts(nets)
    }
    output = nets[networks.TRANSFORMER].apply(
        {"params": params[networks.TRANSFORMER]},
        (1 - wide) * latents + wide * noise,
        SCHEDULER["num_train_timesteps"] * time,
        networks.join_text(nets, outputs),
    )
    return jnp.mean(jnp.square(output - (noise - latents)))


def train(
    folder: Path,
    latents: np.ndarray,
    caption_ids: np.ndarray,
    empty_ids: np.ndarray,
    num_steps: int,
    seed: int,
    vocab_size: int,
) -> Any:
    """The weights of the parts in `TRAINED`, averaged.

    Arguments as for `pretrain_diffusion.train`.
    """
    nets = networks.of_configs(configs(vocab_size), jnp.float32)
    data = latents, caption_ids, empty_ids
    return pretrain_diffusion.fit(
        "flow", folder, initial(nets, seed), partial(loss, nets), data, num_steps, seed
    )
