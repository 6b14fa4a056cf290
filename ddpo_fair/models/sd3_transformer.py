"""Transformer of Stable Diffusion 3 and 3.5 (diffusers' SD3Transformer2DModel).

Image and text tokens have weights of their own and attend to each other; the time and
the pooled text shift, scale and gate every layer (Esser et al. 2024, arXiv 2403.03206).
"""

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import errors
from ddpo_fair.models import blocks, layers, options, rows

PLACE = "SD3Transformer2DModel: config.json"
EPSILON = 1e-6  # of every norm, fixed in diffusers


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of config.json, under their names there; defaults are diffusers'."""

    sample_size: int = 128  # latent pixels
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096  # of the text states
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    pos_embed_max_size: int = 96  # patches along a side
    dual_attention_layers: tuple[int, ...] | None = None
    qk_norm: str | None = None

    @classmethod
    def from_dict(cls, json_dict: dict[str, Any]) -> "Config":
        """Config of a parsed config.json; a UserError names what is not supported."""
        given = {n: v for n, v in json_dict.items() if v not in ([], ())}
        config = options.read(cls, given, PLACE, {})
        joint, most = config.joint_attention_dim, config.pos_embed_max_size
        grid = config.sample_size // config.patch_size
        rules = (
            options.among(config, "caption_projection_dim", (config.size,)),
            options.among(config, "qk_norm", (None, "rms_norm")),
            options.divides(config, "patch_size", "sample_size"),
            ("sample_size", grid <= most, f"at most {most} patches"),
            ("pooled_projection_dim", config.pooled_projection_dim <= joint, "smaller"),
            ("attention_head_dim", config.size % 4 == 0, "a multiple of 4"),
        )
        options.check(PLACE, vars(config), rules)
        return config

    @property
    def size(self) -> int:
        """Of a token's state."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def cross_attention_dim(self) -> int:
        """Of the text states, under the UNet's name."""
        return self.joint_attention_dim


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """States [N, L, D], normalised without weights, times 1 + scale, plus shift.

    Both are [N, 1, D].
    """
    centred = x.astype(jnp.float32)
    centred -= centred.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + EPSILON)).astype(x.dtype)
    return normal * (1 + scale) + shift


def dense(
    x: jax.Array, features: int, name: str, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """A dense layer called `name` of [..., D], as of one matrix; for modules.

    On a CPU its gradient takes half the time that it takes over several axes.
    """
    flat = layers.dense(features, name, dtype)(x.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], features)


class JointAttention(nn.Module):
    """Attention of image tokens [N, L, D] and text tokens [N, S, D] to all of them.

    The last text token counts `last_counts` times. Returns what each gets; the text
    None where it is given as None, or is not read.
    """

    num_heads: int
    has_norm: bool
    reads_text: bool  # whether the layer after it does
    last_counts: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        heads, bias = self._project(x, "to_{}", "norm_{}"), None
        if text is not None:
            others = self._project(text, "add_{}_proj", "norm_added_{}")
            pairs = zip(heads, others, strict=True)
            heads = [jnp.concatenate(pair, axis=1) for pair in pairs]
            if self.last_counts > 1:  # that so many equal keys add up to
                last = np.float32(heads[1].shape[1] * [0])
                last[-1] = math.log(self.last_counts)
                bias = jnp.asarray(last, self.dtype)[None, None, None]
        h = layers.attend(*heads, self.num_heads, bias=bias)
        h, of_text = jnp.split(h, [x.shape[1]], axis=1)
        h = dense(h, x.shape[-1], "to_out.0", self.dtype)
        if text is None or not self.reads_text:
            return h, None
        return h, dense(of_text, x.shape[-1], "to_add_out", self.dtype)

    def _project(self, x: jax.Array, layer: str, norm: str) -> list[jax.Array]:
        """Query, key and value [N, L, D]; the first two normalised head by head."""
        found = []
        for name in "qkv":
            h = dense(x, x.shape[-1], layer.format(name), self.dtype)
            if self.has_norm and name != "v":
                each = h.reshape(*h.shape[:2], self.num_heads, -1)
                each = layers.rms_norm(each, EPSILON, norm.format(name), self.dtype)
                h = each.reshape(h.shape)
            found.append(h)
        return found


class JointBlock(nn.Module):
    """A layer over image tokens [N, L, D] and text tokens [N, S, D].

    Of an embedding [N, 1, D] of time and pooled text. The last layer drops the text; a
    dual one has a second attention, of the image tokens alone.
    """

    num_heads: int
    has_norm: bool
    is_dual: bool
    is_last: bool
    last_counts: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self, states: tuple[jax.Array, jax.Array], embedding: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x, text = states
        count = 9 if self.is_dual else 6
        shift, scale, gate, *of_ff = self._modulations("norm1", count, embedding)
        of_ff, of_dual = of_ff[:3], of_ff[3:]
        if self.is_last:
            scale_2, shift_2 = self._modulations("norm1_context", 2, embedding)
        else:
            shift_2, scale_2, gate_2, *of_ff_2 = self._modulations(
                "norm1_context", 6, embedding
            )
        attention = (
            *(self.num_heads, self.has_norm, not self.is_last, self.last_counts),
            self.dtype,
        )
        h, of_text = JointAttention(*attention, name="attn")(
            modulate(x, shift, scale), modulate(text, shift_2, scale_2)
        )
        after = x + gate * h
        if self.is_dual:
            shift, scale, gate = of_dual
            h = JointAttention(*attention, name="attn2")(
                modulate(x, shift, scale), None
            )[0]
            after = after + gate * h
        after = self._feed_forward("ff", after, *of_ff)
        if not self.is_last:
            text = self._feed_forward("ff_context", text + gate_2 * of_text, *of_ff_2)
        return after, text

    def _modulations(
        self, name: str, count: int, embedding: jax.Array
    ) -> list[jax.Array]:
        """So many shifts, scales and gates, [N, 1, D] each."""
        size = count * embedding.shape[-1]
        h = dense(embedding, size, f"{name}.linear", self.dtype)
        return jnp.split(h, count, axis=-1)

    def _feed_forward(
        self, name: str, x: jax.Array, shift: Any, scale: Any, gate: Any
    ) -> jax.Array:
        size = x.shape[-1]
        h = modulate(x, shift, scale)
        h = dense(h, 4 * size, f"{name}.net.0.proj", self.dtype)
        h = layers.ACTIVATIONS["gelu_new"](h)
        return x + gate * dense(h, size, f"{name}.net.2", self.dtype)


class SD3Transformer(nn.Module):
    """Velocity that the flow's model predicts; called as `unet.UNet` is.

    Float32 [N, h, w, out_channels], of latents [N, h, w, in_channels], timesteps [N] or
    a scalar, and text [N, S + 1, joint_attention_dim]: the states and, as the last of
    them, the pooled projections, filled up with zeros. The last state counts as
    `last_counts` equal ones, which stay equal in every layer: T5's zeros where it is
    missing. `remat` as for the UNet.
    """

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False
    last_counts: int = 1

    @nn.compact
    def __call__(
        self, latents: jax.Array, timesteps: jax.Array, text: jax.Array
    ) -> jax.Array:
        c = self.config
        x = self._patches(latents)
        timesteps = jnp.broadcast_to(timesteps, latents.shape[:1])
        pooled = text[:, -1, : c.pooled_projection_dim]
        embedding = self._embed(timesteps, pooled)[:, None]
        states = dense(text[:, :-1], c.size, "context_embedder", self.dtype)
        last_counts = self.last_counts
        if x.shape[1] >= layers.LONG:  # which has no bias
            last = jnp.repeat(states[:, -1:], last_counts - 1, axis=1)
            states, last_counts = jnp.concatenate([states, last], axis=1), 1
        block = blocks.recomputed(self.remat, JointBlock)
        kinds = [
            (i in (c.dual_attention_layers or ()), i == c.num_layers - 1)
            for i in range(c.num_layers)
        ]
        for kind, alike in itertools.groupby(range(c.num_layers), kinds.__getitem__):
            make = partial(
                block,
                c.num_attention_heads,
                c.qk_norm is not None,
                *kind,
                last_counts,
                self.dtype,
            )
            x, states = rows.apply(
                make, "transformer_blocks", list(alike), (x, states), embedding
            )
        h = dense(embedding, 2 * c.size, "norm_out.linear", self.dtype)
        scale, shift = jnp.split(h, 2, axis=-1)
        size = c.patch_size**2 * c.out_channels
        h = dense(modulate(x, shift, scale), size, "proj_out", self.dtype)
        N, H, W, _ = latents.shape
        p = c.patch_size
        h = h.reshape(N, H // p, W // p, p, p, c.out_channels).swapaxes(2, 3)
        return h.reshape(N, H, W, c.out_channels).astype(jnp.float32)

    def _patches(self, latents: jax.Array) -> jax.Array:
        """Tokens [N, L, D], with the middle of the table of positions added."""
        c = self.config
        p, most = c.patch_size, c.pos_embed_max_size
        N, H, W, _ = latents.shape
        h, w = H // p, W // p
        if H % p or W % p or max(h, w) > most:
            raise errors.UserError(
                f"SD3Transformer2DModel: latents of {H} x {W} pixels are not multiples"
                f" of {p}, at most {most * p}; take a resolution that is."
            )
        x = layers.Conv(c.size, self.dtype, p, p, (0, 0), name="pos_embed.proj")(
            latents
        )
        shape = (1, most**2, c.size)
        table = self.param("pos_embed.pos_embed", nn.initializers.normal(0.02), shape)
        # A buffer in diffusers: it is not trained.
        table = jax.lax.stop_gradient(table).reshape(most, most, c.size)
        top, left = (most - h) // 2, (most - w) // 2
        middle = table[top : top + h, left : left + w].reshape(1, h * w, c.size)
        return x.reshape(N, h * w, c.size) + middle.astype(self.dtype)

    def _embed(self, timesteps: jax.Array, pooled: jax.Array) -> jax.Array:
        """[N, D] of timesteps [N] and pooled projections, activated."""
        waves = layers.timestep_embedding(timesteps, 256, True, 0)
        total = 0
        for name, h in (("timestep_embedder", waves), ("text_embedder", pooled)):
            place = f"time_text_embed.{name}.linear"
            h = dense(h, self.config.size, f"{place}_1", self.dtype)
            h = dense(jax.nn.silu(h), self.config.size, f"{place}_2", self.dtype)
            total = total + h
        return jax.nn.silu(total)
