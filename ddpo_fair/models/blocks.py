"""Blocks of convolutions and attention that UNet and VAE are built from.

Every module's name is a piece of the path of its tensors in the official files.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair.models import layers, rows


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut: [N, H, W, C] to [N, H, W, features].

    An embedding of the time, [N, E], is added between them if given.
    """

    features: int
    num_groups: int
    epsilon: float
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, time_embedding: jax.Array | None = None
    ) -> jax.Array:
        norm = (self.num_groups, self.epsilon)
        h = layers.group_norm(x, *norm, "norm1", self.dtype)
        h = layers.Conv(self.features, self.dtype, name="conv1")(jax.nn.silu(h))
        if time_embedding is not None:
            shift = layers.dense(self.features, "time_emb_proj", self.dtype)(
                jax.nn.silu(time_embedding)
            )
            h = h + shift[:, None, None, :]
        h = layers.group_norm(h, *norm, "norm2", self.dtype)
        h = layers.Conv(self.features, self.dtype, name="conv2")(jax.nn.silu(h))
        if x.shape[-1] != self.features:
            x = layers.Conv(self.features, self.dtype, 1, name="conv_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Multi-head attention of [N, L, D] to itself or to a context [N, S, E]."""

    num_heads: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        context = x if context is None else context
        size = x.shape[-1]
        h = layers.attend(
            layers.dense(size, "to_q", self.dtype, use_bias=False)(x),
            layers.dense(size, "to_k", self.dtype, use_bias=False)(context),
            layers.dense(size, "to_v", self.dtype, use_bias=False)(context),
            self.num_heads,
        )
        return layers.dense(size, "to_out.0", self.dtype)(h)


class TransformerBlock(nn.Module):
    """Attention to itself, to text [N, S, E], gated feed-forward, of [N, L, D]."""

    num_heads: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, text_states: jax.Array) -> jax.Array:
        size = x.shape[-1]
        h = layers.layer_norm(x, 1e-5, "norm1", self.dtype)
        x = x + Attention(self.num_heads, dtype=self.dtype, name="attn1")(h)
        h = layers.layer_norm(x, 1e-5, "norm2", self.dtype)
        x = x + Attention(self.num_heads, dtype=self.dtype, name="attn2")(
            h, text_states
        )
        h = layers.layer_norm(x, 1e-5, "norm3", self.dtype)
        h = layers.dense(8 * size, "ff.net.0.proj", self.dtype)(h)
        h, gate = jnp.split(h, 2, axis=-1)
        h = h * layers.ACTIVATIONS["gelu"](gate)
        return x + layers.dense(size, "ff.net.2", self.dtype)(h)


class Transformer(nn.Module):
    """Transformer over the pixels of [N, H, W, C], attending to a text [N, S, E].

    `remat` recomputes each of its layers, see `recomputed`.
    """

    num_heads: int
    num_layers: int
    num_groups: int
    use_linear_projection: bool
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(self, x: jax.Array, text_states: jax.Array) -> jax.Array:
        N, H, W, C = x.shape
        h = layers.group_norm(x, self.num_groups, 1e-6, "norm", self.dtype)
        h = self._project(h, "proj_in").reshape(N, H * W, C)
        block = recomputed(self.remat, TransformerBlock)
        block = partial(block, self.num_heads, self.dtype)
        numbers = range(self.num_layers)
        h = rows.apply(block, "transformer_blocks", numbers, h, text_states)
        return x + self._project(h.reshape(N, H, W, C), "proj_out")

    def _project(self, x: jax.Array, name: str) -> jax.Array:
        """[N, H, W, C] or, if linear, [..., C] in the same shape."""
        C = x.shape[-1]
        if self.use_linear_projection:
            return layers.dense(C, name, self.dtype)(x)
        return layers.Conv(C, self.dtype, 1, name=name)(x)


class ImageAttention(nn.Module):
    """The VAE's attention over all pixels of [N, H, W, C], one head."""

    num_groups: int
    epsilon: float
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        N, H, W, C = x.shape
        h = layers.group_norm(
            x, self.num_groups, self.epsilon, "group_norm", self.dtype
        )
        h = h.reshape(N, H * W, C)
        q, k, v = (
            layers.dense(C, name, self.dtype)(h) for name in ("to_q", "to_k", "to_v")
        )
        h = layers.attend(q, k, v, num_heads=1)
        return x + layers.dense(C, "to_out.0", self.dtype)(h).reshape(N, H, W, C)


class Level(nn.Module):
    """The resnets of one resolution, the first of them with attention behind each.

    Of x [N, H, W, C], times [N, E] if there are any, and what the attentions take: the
    states [N, H, W, features] after each layer, then the resampled one. On the way up
    the last of the skips [N, H, W, C'] are concatenated before resnets.
    """

    features: int
    num_layers: int
    norm: tuple[int, float]  # groups, epsilon
    attentions: tuple[Callable[..., nn.Module], ...] = ()  # makers, given the name
    resample: str | None = None  # "down", "up"
    padding: tuple[int, int] | None = None  # of the convolution down
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time_embedding: jax.Array | None = None,
        *context: jax.Array,
        skips: list[jax.Array] | None = None,
    ) -> list[jax.Array]:
        resnet = recomputed(self.remat, ResnetBlock)
        states = []
        for i in range(self.num_layers):
            if skips is not None:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            block = resnet(self.features, *self.norm, self.dtype, name=f"resnets.{i}")
            x = block(x, time_embedding)
            if i < len(self.attentions):
                x = self.attentions[i](name=f"attentions.{i}")(x, *context)
            states.append(x)
        if self.resample == "down":
            shape, name = (3, 2, self.padding), "downsamplers.0.conv"
            conv = layers.Conv(self.features, self.dtype, *shape, name=name)
            states.append(conv(x))
        elif self.resample == "up":
            conv = layers.Conv(self.features, self.dtype, name="upsamplers.0.conv")
            states.append(conv(layers.upsample(x)))
        return states


def recomputed(remat: bool | str, module: type) -> type:
    """The module, recomputed in the backward pass if asked."""
    if not remat:
        return module
    policy = None if remat is True else getattr(jax.checkpoint_policies, remat)
    return nn.remat(module, policy=policy)
