"""Layers that the networks share: NHWC, float32 parameters.

`dtype` is the dtype of the computation. Statistics of the norms and the softmax
of the attention are float32 whatever it is.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import parallel
from ddpo_fair.models import convolution

# PyTorch's default for Linear and Conv2d: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

LONG = 1024  # states; the logits of fewer are small
LOGITS = 2**26  # at once, where they are written out: 0.27 GB

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,  # by tanh
    # 1.702: Hendrycks and Gimpel 2016, as OpenAI's CLIP was trained
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


def dense(
    features: int, name: str, dtype: jax.typing.DTypeLike, use_bias: bool = True
) -> nn.Dense:
    """Dense layer over the last axis, called `name`."""
    return nn.Dense(
        features, use_bias=use_bias, dtype=dtype, kernel_init=kernel_init, name=name
    )


class Conv(nn.Module):
    """Convolution with bias of [N, H, W, C]; 3 x 3, padded to keep H and W, if unsaid.

    `padding` is the number of zeros before and after, the same along both axes.
    """

    features: int
    dtype: jax.typing.DTypeLike = jnp.float32
    kernel_size: int = 3
    stride: int = 1
    padding: tuple[int, int] | None = None  # (kernel_size - 1) / 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padding = self.padding or 2 * ((self.kernel_size - 1) // 2,)
        y = convolution.convolve(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding
        )
        return y + bias.astype(self.dtype)[None, None, None]


def group_norm(
    x: jax.Array,
    num_groups: int,
    epsilon: float,
    name: str,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Images [N, H, W, C], normalised over [H, W, C / num_groups], in `dtype`."""
    norm = nn.GroupNorm(num_groups, epsilon=epsilon, use_fast_variance=False, name=name)
    # In float32 by us: strict promotion forbids how flax mixes other dtypes with it.
    return norm(x.astype(jnp.float32)).astype(dtype)


def layer_norm(
    x: jax.Array, epsilon: float, name: str, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """States [N, L, D], normalised over the last axis, in `dtype`."""
    norm = nn.LayerNorm(epsilon, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(dtype)  # see `group_norm`


def rms_norm(
    x: jax.Array, epsilon: float, name: str, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """States [..., D], divided by their root mean square, in `dtype`."""
    norm = nn.RMSNorm(epsilon, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(dtype)  # see `group_norm`


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    num_heads: int,
    is_causal: bool = False,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Scaled dot-product attention [N, L, D]; every attention of the program.

    Of a query [N, L, D], key and value [N, S, D]; `num_heads` divides D. If causal,
    position i sees positions 0..i only. The logits are scaled by 1 / sqrt(D / heads)
    if unsaid, and get the bias [1, heads, L, S].
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], num_heads, -1)  # [N, L, heads, D/heads]

    heads = [split(x) for x in (query, key, value)]
    length = query.shape[1]
    long = length >= LONG and key.shape[1] == length and bias is None
    flash = long and _has_flash_attention(heads[0])
    # Of a loop XLA would count one turn.
    if long and not (flash or is_causal or parallel.counted()):
        return _attend_in_turns(*heads, scale).reshape(query.shape)
    how: dict[str, Any] = {"implementation": "cudnn" if flash else None}
    if odd := flash and length % 2:  # of which JAX has no gradient: Stable Diffusion 3
        heads = [jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in heads]
        lengths = jnp.full(len(query), length, jnp.int32)
        how |= {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    # Inside, JAX promotes bfloat16 logits to float32, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        output = jax.nn.dot_product_attention(
            *heads, bias, scale=scale, is_causal=is_causal, **how
        )
    return (output[:, :length] if odd else output).reshape(query.shape)


def _attend_in_turns(
    query: jax.Array, key: jax.Array, value: jax.Array, scale: float | None
) -> jax.Array:
    """Attention [N, L, heads, size] of a few heads at once, for the logits' memory.

    Going back, their logits are computed again.
    """
    N, L, heads, size = query.shape
    at_once = math.gcd(N * heads, 1 << (LOGITS // L**2 | 1).bit_length() - 1)

    def turns(x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2).reshape(-1, at_once, L, 1, size)

    @jax.checkpoint
    def attention(x: tuple) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):  # see `attend`
            return jax.nn.dot_product_attention(*x, scale=scale)

    output = jax.lax.map(attention, tuple(map(turns, (query, key, value))))
    return output.reshape(N, heads, L, size).swapaxes(1, 2)


def _has_flash_attention(query: jax.Array) -> bool:
    """Whether cuDNN has it for a query [N, L, heads, size].

    JAX would always take XLA, which writes L x L logits for every head: 0.5 GB an image
    at 64 x 64 latents in float32. cuDNN wants 16 bits and heads of 8, 16, ... 128.
    """
    size = query.shape[3]
    fits = size % 8 == 0 and size <= 128 and query.dtype in (jnp.bfloat16, jnp.float16)
    return fits and parallel.has_flash_attention()


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward of [N, L, D], normalised first."""

    config: Any  # of `clip` or `vit`
    # Of the two norms; query, key, value and output; the two layers that feed forward.
    names: tuple[tuple[str, ...], ...]
    dtype: jax.typing.DTypeLike = jnp.float32
    use_bias: bool = True  # of query, key and value; the others always have one
    is_causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, (norms, (*attention, output), (up, down)) = self.config, self.names
        h = layer_norm(x, c.layer_norm_eps, norms[0], self.dtype)
        h = attend(
            *(dense(c.hidden_size, n, self.dtype, self.use_bias)(h) for n in attention),
            c.num_attention_heads,
            self.is_causal,
        )
        x = x + dense(c.hidden_size, output, self.dtype)(h)
        h = layer_norm(x, c.layer_norm_eps, norms[1], self.dtype)
        h = dense(c.intermediate_size, up, self.dtype)(h)
        return x + dense(c.hidden_size, down, self.dtype)(ACTIVATIONS[c.hidden_act](h))


def upsample(x: jax.Array) -> jax.Array:
    """Images [N, 2H, 2W, C], each pixel repeated."""
    N, H, W, C = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (N, H, 2, W, 2, C))
    return x.reshape(N, 2 * H, 2 * W, C)


def timestep_embedding(
    timesteps: jax.Array, size: int, flip_sin_to_cos: bool, freq_shift: float
) -> jax.Array:
    """Sines and cosines of the timesteps [N]: float32 [N, size] (Ho et al. 2020).

    The lowest frequency is 10000^(-(h-1)/(h-freq_shift)), h = size/2; flipped, the
    cosines come first, as Stable Diffusion has them.
    """
    half = size // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    frequencies = jnp.exp(-math.log(10000.0) * exponents)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)
