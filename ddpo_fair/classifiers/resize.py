"""Resizing exactly as Pillow does, on the device.

Pillow resizes one axis after the other with integer weights and rounds to 256 levels
each time (src/libImaging/Resample.c). A weight matrix of an axis is computed once, in
NumPy; the device multiplies with it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

NEAREST, BILINEAR, BICUBIC = 0, 2, 3  # PIL's numbers of the filters
SUPPORT = {BILINEAR: 1.0, BICUBIC: 2.0}
PRECISION_BITS = 22  # of Pillow's integer weights: 32 - 8 - 2
HALF_BITS = PRECISION_BITS // 2


def resize(
    pixels: jax.Array, height: int, width: int, method: int = BILINEAR
) -> jax.Array:
    """Images [N, height, width, C], equal to Pillow's to the last bit.

    Of pixels float32 [N, H, W, C], whole numbers from 0 to 255; `method` is PIL's
    number of the filter.
    """
    pixels = _along(pixels, 2, width, method)
    return _along(pixels, 1, height, method)


def _along(pixels: jax.Array, axis: int, length: int, method: int) -> jax.Array:
    if pixels.shape[axis] == length:
        return pixels
    # Whole numbers below 2^24 are exact in float32, so weights of 22 bits are split in
    # two and multiplied with pixels of 8 bits.
    weights = integer_weights(pixels.shape[axis], length, method)
    upper = np.round(weights / 2**HALF_BITS)
    lower = weights - upper * 2**HALF_BITS
    matrix = jnp.asarray(np.stack([upper, lower]), jnp.float32)  # [2, out, in]
    images = "nhic" if axis == 2 else "niwc"
    equation = f"poi,{images}->p{images.replace('i', 'o')}"
    upper, lower = jnp.einsum(equation, matrix, pixels, precision="highest").astype(
        jnp.int32
    )
    total = upper * 2**HALF_BITS + lower + 2 ** (PRECISION_BITS - 1)
    return jnp.clip(total >> PRECISION_BITS, 0, 255).astype(jnp.float32)


@functools.cache
def integer_weights(num_in: int, num_out: int, method: int) -> np.ndarray:
    """Pillow's weights of one axis times 2^22: whole numbers, float64 [out, in]."""
    scale = num_in / num_out
    places = np.arange(num_in)
    if method == NEAREST:
        # Summed up one by one, as Pillow does: at whole numbers rounding decides.
        steps = np.full(num_out, scale)
        steps[0] = scale * 0.5
        chosen = np.floor(np.cumsum(steps))[:, None] == places
        return chosen * 2.0**PRECISION_BITS
    stretch = max(scale, 1.0)  # antialiasing: the filter widens with the step
    support = SUPPORT[method] * stretch
    centres = (np.arange(num_out)[:, None] + 0.5) * scale
    first = np.maximum(np.trunc(centres - support + 0.5), 0)
    inside = (places >= first) & (places < np.trunc(centres + support + 0.5))
    values = _filter((places - centres + 0.5) / stretch, method) * inside
    values = values / values.sum(axis=1, keepdims=True) * 2**PRECISION_BITS
    return np.trunc(values + np.copysign(0.5, values))  # C's int(value +- 0.5)


def _filter(x: np.ndarray, method: int) -> np.ndarray:
    x = np.abs(x)
    if method == BILINEAR:
        return np.maximum(1.0 - x, 0.0)
    a = -0.5  # Keys' cubic, as Pillow has it
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
