"""Autoencoder of Stable Diffusion (diffusers' AutoencoderKL)."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair.models import blocks, layers, options

PLACE = "AutoencoderKL: config.json"
EPSILON = 1e-6  # of every norm, fixed in diffusers' Encoder and Decoder

# Options that are understood only at these values.
FIXED = {"act_fn": ("silu", "swish")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of config.json, under their names there; defaults are diffusers'."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32  # image pixels
    scaling_factor: float = 0.18215  # of the latents, applied by the caller
    shift_factor: float | None = None  # taken from them before; likewise
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    # Whether 16 bits are too few for it. Diffusers takes it as true where it is left
    # out, but then only decodes float16 so; 1.x and 2.x need it not, 3 never reads it.
    force_upcast: bool = False

    @classmethod
    def from_dict(cls, json_dict: dict[str, Any]) -> "Config":
        """Config of a parsed config.json; a UserError names what is not supported."""
        config = options.read(cls, json_dict, PLACE, FIXED)
        levels, scale = len(config.block_out_channels), config.scaling_factor
        down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
        scales = "from 0.001 to 1000; it is 0.18215 in Stable Diffusion 1 and 2"
        rules = (
            options.among(config, "down_block_types", [down]),
            options.among(config, "up_block_types", [up]),
            options.among(config, "in_channels", (3,)),  # red, green, blue
            options.among(config, "out_channels", (3,)),
            options.divides(config, "norm_num_groups", "block_out_channels"),
            ("scaling_factor", 0.001 <= scale <= 1000, scales),
        )
        options.check(PLACE, vars(config), rules)
        return config


class Coder(nn.Module):
    """The encoder ("down") or the decoder ("up"), of and to images [N, H, W, C]."""

    config: Config
    way: str
    features: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, down = self.config, self.way == "down"
        norm = (c.norm_num_groups, EPSILON)
        channels = c.block_out_channels if down else c.block_out_channels[::-1]
        x = layers.Conv(channels[0], self.dtype, name="conv_in")(x)
        if not down:
            x = self._mid_block(x)
        for i, features in enumerate(channels):
            x = blocks.Level(
                features,
                c.layers_per_block + (0 if down else 1),
                norm,
                resample=self.way if i < len(channels) - 1 else None,
                padding=(0, 1),
                dtype=self.dtype,
                name=f"{self.way}_blocks.{i}",
            )(x)[-1]
        if down:
            x = self._mid_block(x)
        x = layers.group_norm(x, *norm, "conv_norm_out", self.dtype)
        conv_out = layers.Conv(self.features, self.dtype, name="conv_out")
        return conv_out(jax.nn.silu(x))

    def _mid_block(self, x: jax.Array) -> jax.Array:
        norm = (self.config.norm_num_groups, EPSILON)
        attention = partial(blocks.ImageAttention, *norm, self.dtype)
        attentions = (attention,) if self.config.mid_block_add_attention else ()
        level = blocks.Level(
            *(x.shape[-1], 2, norm, attentions), dtype=self.dtype, name="mid_block"
        )
        return level(x)[-1]


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] to latents and back; scaling and shift are the caller's."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.encoder = Coder(c, "down", 2 * c.latent_channels, self.dtype)
        self.decoder = Coder(c, "up", c.out_channels, self.dtype)
        if c.use_quant_conv:
            self.quant_conv = layers.Conv(2 * c.latent_channels, self.dtype, 1)
        if c.use_post_quant_conv:
            self.post_quant_conv = layers.Conv(c.latent_channels, self.dtype, 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstruction [N, H, W, 3] from the mean of the latents."""
        return self.decode(self.encode(images)[0])

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the latents, float32 [N, h, w, latent_channels].

        Of images [N, H, W, 3] in [-1, 1]; H, W multiples of 2^(levels - 1).
        """
        moments = self.encoder(images)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_var = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        # bounds of diffusers' DiagonalGaussianDistribution
        return mean, jnp.clip(log_var, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images float32 [N, H, W, 3] in about [-1, 1], not clipped, of latents.

        They are [N, h, w, latent_channels], divided by the scaling factor and shifted.
        """
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)
