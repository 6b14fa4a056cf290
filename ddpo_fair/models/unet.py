"""UNet of Stable Diffusion 1.x and 2.x (diffusers' UNet2DConditionModel)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import errors
from ddpo_fair.models import blocks, layers, unet_config

Config = unet_config.Config


class Level(nn.Module):
    """The resnets of one resolution, each followed by attention where it has any.

    Args of a call:
        x: [N, H, W, C].
        time_embedding: [N, 4 block_out_channels[0]].
        text_states: [N, L, cross_attention_dim].
        skips: on the way up, states [N, H, W, C']; the last ones are concatenated
            before the resnets.

    Returns:
        The states [N, H, W, features] after each layer, then the resampled one.
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
        norm = (c.norm_num_groups, c.norm_eps, self.dtype)
        states = []
        for i in range(self.num_layers):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = resnet(self.features, *norm, name=f"resnets.{i}")(x, time_embedding)
            if self.num_heads is not None:
                shape = (self.num_heads, *c.transformer)
                x = transformer(*shape, self.dtype, name=f"attentions.{i}")(
                    x, text_states
                )
            states.append(x)
        if self.resample is not None:
            states.append(blocks.resample(x, self.resample, self.features, self.dtype))
        return states


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution; arguments as of `Level`."""

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
        shape = (c.num_heads[-1], *c.transformer)
        x = transformer(*shape, self.dtype, name="attentions.0")(x, text_states)
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
        levels = range(len(c.block_out_channels))
        _check_size(latents.shape, 2 ** levels[-1])
        timesteps = jnp.broadcast_to(timesteps, latents.shape[:1])
        context = (self._embed(timesteps), text_states.astype(self.dtype))
        x = layers.Conv(c.block_out_channels[0], self.dtype, name="conv_in")(latents)
        skips = [x]
        for i in levels:
            skips += self._level("down", i)(skips[-1], *context)
        mid = MidBlock(c, self.dtype, self.remat, name="mid_block")
        x = mid(skips[-1], *context)
        for i in levels:
            x = self._level("up", i)(x, *context, skips)[-1]
            del skips[-1 - c.layers_per_block :]
        x = layers.group_norm(
            x, c.norm_num_groups, c.norm_eps, "conv_norm_out", self.dtype
        )
        conv_out = layers.Conv(c.out_channels, self.dtype, name="conv_out")
        return conv_out(jax.nn.silu(x)).astype(jnp.float32)

    def _level(self, way: str, i: int) -> Level:
        """Level number `i` of the way "down", finest first, or "up", coarsest first."""
        c = self.config
        last = len(c.block_out_channels) - 1
        down = way == "down"
        depth = i if down else last - i
        kind = (c.down_block_types if down else c.up_block_types)[i]
        attends = kind in (unet_config.CROSS_DOWN, unet_config.CROSS_UP)
        return Level(
            c,
            c.block_out_channels[depth],
            c.layers_per_block + (0 if down else 1),
            c.num_heads[depth] if attends else None,
            way if i < last else None,
            self.dtype,
            self.remat,
            name=f"{way}_blocks.{i}",
        )

    def _embed(self, timesteps: jax.Array) -> jax.Array:
        """[N, 4 block_out_channels[0]] of timesteps [N]."""
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
