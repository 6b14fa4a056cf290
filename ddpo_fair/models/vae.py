"""Autoencoder of Stable Diffusion (diffusers' AutoencoderKL)."""

import dataclasses
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


class MidBlock(nn.Module):
    """Resnet, attention if the config has it, resnet, of [N, h, w, C]."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = (self.config.norm_num_groups, EPSILON, self.dtype)
        x = blocks.ResnetBlock(x.shape[-1], *norm, name="resnets.0")(x)
        if self.config.mid_block_add_attention:
            x = blocks.ImageAttention(*norm, name="attentions.0")(x)
        return blocks.ResnetBlock(x.shape[-1], *norm, name="resnets.1")(x)


class Encoder(nn.Module):
    """Images [N, H, W, 3] to mean and log-variance, [N, h, w, 2 latent_channels]."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        c, norm = self.config, (self.config.norm_num_groups, EPSILON)
        last = len(c.block_out_channels) - 1
        x = layers.Conv(c.block_out_channels[0], self.dtype, name="conv_in")(images)
        for i, features in enumerate(c.block_out_channels):
            x = blocks.Level(
                features,
                c.layers_per_block,
                norm,
                resample="down" if i < last else None,
                padding=(0, 1),
                dtype=self.dtype,
                name=f"down_blocks.{i}",
            )(x)[-1]
        x = MidBlock(c, self.dtype, name="mid_block")(x)
        x = layers.group_norm(x, *norm, "conv_norm_out", self.dtype)
        conv_out = layers.Conv(2 * c.latent_channels, self.dtype, name="conv_out")
        return conv_out(jax.nn.silu(x))


class Decoder(nn.Module):
    """Latents [N, h, w, latent_channels] to images [N, H, W, 3]."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        c, norm = self.config, (self.config.norm_num_groups, EPSILON)
        last = len(c.block_out_channels) - 1
        x = layers.Conv(c.block_out_channels[-1], self.dtype, name="conv_in")(latents)
        x = MidBlock(c, self.dtype, name="mid_block")(x)
        for i, features in enumerate(reversed(c.block_out_channels)):
            x = blocks.Level(
                features,
                c.layers_per_block + 1,
                norm,
                resample="up" if i < last else None,
                dtype=self.dtype,
                name=f"up_blocks.{i}",
            )(x)[-1]
        x = layers.group_norm(x, *norm, "conv_norm_out", self.dtype)
        return layers.Conv(c.out_channels, self.dtype, name="conv_out")(jax.nn.silu(x))


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] to latents and back; scaling and shift are the caller's."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
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
