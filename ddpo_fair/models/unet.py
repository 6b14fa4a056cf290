"""UNet of Stable Diffusion 1.x and 2.x (diffusers' UNet2DConditionModel)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import errors
from ddpo_fair.models import blocks, layers, unet_config

Config = unet_config.Config


class Level(nn.Module):
    """The resnets of one resolution, each followed by attention where it has any.

    `skips` are concatenated before each resnet (on the way up); the states after
    each layer are returned (for the way down).
    """

    config: Config
    features: int
    num_layers: int
    num_heads: int | None  # None: no attention
    resample: str | None = None  # "down", "up"
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time_embedding: jax.Array,
        text_states: jax.Array,
        skips: list[jax.Array] | None = None,
    ) -> list[jax.Array]:
        c = self.config
        resnet, transformer = _block_classes(self.remat)
        states = []
        for i in range(self.num_layers):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = resnet(
                self.features,
                c.norm_num_groups,
                c.norm_eps,
                self.dtype,
                name=f"resnets.{i}",
            )(x, time_embedding)
            if self.num_heads is not None:
                x = transformer(
                    self.num_heads,
                    c.transformer_layers_per_block,
                    c.norm_num_groups,
                    c.use_linear_projection,
                    self.dtype,
                    name=f"attentions.{i}",
                )(x, text_states)
            states.append(x)
        if self.resample == "down":
            conv = layers.Conv(
                self.features, self.dtype, stride=2, name="downsamplers.0.conv"
            )
            states.append(conv(x))
        elif self.resample == "up":
            conv = layers.Conv(self.features, self.dtype, name="upsamplers.0.conv")
            states.append(conv(layers.upsample(x)))
        return states


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(
        self, x: jax.Array, time_embedding: jax.Array, text_states: jax.Array
    ) -> jax.Array:
        c = self.config
        resnet, transformer = _block_classes(self.remat)
        norm = (c.norm_num_groups, c.norm_eps, self.dtype)
        features = c.block_out_channels[-1]
        x = resnet(features, *norm, name="resnets.0")(x, time_embedding)
        x = transformer(
            c.num_heads[-1],
            c.transformer_layers_per_block,
            c.norm_num_groups,
            c.use_linear_projection,
            self.dtype,
            name="attentions.0",
        )(x, text_states)
        return resnet(features, *norm, name="resnets.1")(x, time_embedding)


class UNet(nn.Module):
    """Noise (or velocity) that the diffusion model predicts.

    Args of a call:
        latents: [N, h, w, in_channels]; h, w multiples of 2^(levels - 1).
        timesteps: [N] or a scalar.
        text_states: [N, L, cross_attention_dim].

    Returns:
        float32 [N, h, w, out_channels].

    `remat` recomputes blocks in the backward pass: True keeps only their inputs, a
    string names a policy of `jax.checkpoint_policies` without arguments.
    """

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(
        self, latents: jax.Array, timesteps: jax.Array, text_states: jax.Array
    ) -> jax.Array:
        c = self.config
        last = len(c.block_out_channels) - 1
        _check_size(latents.shape, 2**last)
        timesteps = jnp.broadcast_to(timesteps, latents.shape[:1])
        context = (self._embed(timesteps), text_states.astype(self.dtype))
        x = layers.Conv(c.block_out_channels[0], self.dtype, name="conv_in")(latents)
        skips = [x]
        for i in range(last + 1):
            kind, resample = c.down_block_types[i], "down" if i < last else None
            level = self._level(
                "down", i, i, kind == unet_config.CROSS_DOWN, 0, resample
            )
            skips += level(skips[-1], *context)
        mid = MidBlock(c, self.dtype, self.remat, name="mid_block")
        x = mid(skips[-1], *context)
        for i in range(last + 1):
            kind, resample = c.up_block_types[i], "up" if i < last else None
            level = self._level(
                "up", i, last - i, kind == unet_config.CROSS_UP, 1, resample
            )
            x = level(x, *context, skips)[-1]
            del skips[-1 - c.layers_per_block :]
        norm = layers.GroupNorm(
            c.norm_num_groups, c.norm_eps, self.dtype, name="conv_norm_out"
        )
        conv_out = layers.Conv(c.out_channels, self.dtype, name="conv_out")
        return conv_out(jax.nn.silu(norm(x))).astype(jnp.float32)

    def _level(
        self,
        way: str,
        i: int,
        depth: int,
        attends: bool,
        extra_layers: int,
        resample: str | None,
    ) -> Level:
        c = self.config
        return Level(
            c,
            c.block_out_channels[depth],
            c.layers_per_block + extra_layers,
            c.num_heads[depth] if attends else None,
            resample,
            self.dtype,
            self.remat,
            name=f"{way}_blocks.{i}",
        )

    def _embed(self, timesteps: jax.Array) -> jax.Array:
        c = self.config
        size = c.block_out_channels[0]
        h = layers.timestep_embedding(
            timesteps, size, c.flip_sin_to_cos, c.freq_shift
        ).astype(self.dtype)
        h = layers.dense(4 * size, "time_embedding.linear_1", self.dtype)(h)
        return layers.dense(4 * size, "time_embedding.linear_2", self.dtype)(
            jax.nn.silu(h)
        )


def _check_size(shape: tuple[int, ...], multiple: int) -> None:
    if shape[1] % multiple or shape[2] % multiple:
        raise errors.UserError(
            f"{unet_config.NETWORK}: latents of {shape[1]} x {shape[2]} pixels are not "
            f"multiples of {multiple}, as {multiple.bit_length()} levels need; take a "
            "resolution that is."
        )


def _block_classes(remat: bool | str) -> tuple[type, type]:
    """ResnetBlock and Transformer, recomputed in the backward pass if asked."""
    if not remat:
        return blocks.ResnetBlock, blocks.Transformer
    policy = None if remat is True else getattr(jax.checkpoint_policies, remat)
    return (
        nn.remat(blocks.ResnetBlock, policy=policy),
        nn.remat(blocks.Transformer, policy=policy),
    )
