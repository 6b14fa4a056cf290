"""The convolution of all networks, with gradients that a CPU computes fast in loops.

XLA's CPU backend takes a convolution fast only in the layout NHWC, HWIO. Inside a loop
it leaves the gradients that JAX derives in other layouts, and takes them up to 40 times
as slowly. Here both gradients are written in terms that stay fast.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ddpo_fair import parallel

Padding = tuple[int, int]


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Convolution [N, H', W', C'] of images with a square kernel, by a fast program.

    Of x [N, H, W, C] and a kernel [k, k, C, C'] of its dtype. The stride, and the zeros
    before and after, are the same along both axes.
    """
    size = kernel.shape[0]
    if size == 1 and stride == 1 and padding == (0, 0):
        return x @ kernel[0, 0]
    if parallel.on_cpu() and stride == 1:
        return _with_fast_gradients(x, kernel, padding)
    return _convolve(x, kernel, padding, stride)


def _convolve(
    x: jax.Array, kernel: jax.Array, padding: Padding, stride: int = 1
) -> jax.Array:
    along = (stride, stride), (padding, padding)
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, *along, dimension_numbers=layout)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_fast_gradients(
    x: jax.Array, kernel: jax.Array, padding: Padding
) -> jax.Array:
    """`convolve` with stride 1, whose gradients are `_backward`'s."""
    return _convolve(x, kernel, padding)


def _backward(
    padding: Padding, inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of x [N, H, W, C] and the kernel [k, k, C, C'], the `inputs`."""
    x, kernel = inputs
    size = kernel.shape[0]
    before, after = (size - 1 - zeros for zeros in padding)
    # Without the barrier XLA folds the swap of channels into another layout.
    turned = jax.lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
    height, width = gradient.shape[1:3]

    def at(i: int, j: int) -> jax.Array:
        """Gradient [C, C'] of the kernel's weights at its place i, j."""
        seen = padded[:, i : i + height, j : j + width]
        return jnp.einsum("nhwc,nhwd->cd", seen, gradient)

    of_kernel = [jnp.stack([at(i, j) for j in range(size)]) for i in range(size)]
    return _convolve(gradient, turned, (before, after)), jnp.stack(of_kernel)


_with_fast_gradients.defvjp(
    lambda x, kernel, padding: (_convolve(x, kernel, padding), (x, kernel)), _backward
)
