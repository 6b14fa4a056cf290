"""The convolution's gradients, against PyTorch's."""

import jax
import numpy as np
import parity
import pytest

from ddpo_fair.models import convolution


@pytest.mark.parametrize(
    ("size", "stride", "padding", "height", "width"),
    [
        (3, 1, (1, 1), 8, 6),
        (3, 2, (1, 1), 8, 5),  # the UNet's way down; with a remainder
        (3, 2, (0, 1), 8, 8),  # the VAE's
        (3, 1, (0, 0), 5, 7),
        (1, 1, (0, 0), 4, 4),
        (1, 2, (0, 0), 5, 4),
        (4, 4, (0, 0), 8, 12),  # the ViT's patches
        (5, 1, (2, 1), 7, 9),
    ],
)
def test_gradients_are_those_of_pytorch(torch, size, stride, padding, height, width):
    drawn = np.random.default_rng(0)
    x = drawn.standard_normal((2, height, width, 3), np.float32)
    kernel = drawn.standard_normal((size, size, 3, 4), np.float32)

    images = parity.to_torch(torch, x).requires_grad_()
    weight = parity.to_torch(torch, kernel.transpose(3, 0, 1, 2)).requires_grad_()
    padded = torch.nn.functional.pad(images, (*padding, *padding))
    expected = torch.nn.functional.conv2d(padded, weight, stride=stride)
    towards = drawn.standard_normal(parity.to_numpy(expected).shape, np.float32)
    expected.backward(parity.to_torch(torch, towards))

    def convolve(x, kernel):
        return convolution.convolve(x, kernel, stride, padding)

    found, pull_back = jax.vjp(convolve, x, kernel)
    of_images, of_kernel = pull_back(towards)
    close = 1e-6
    assert parity.relative_error(found, parity.to_numpy(expected)) < close
    assert parity.relative_error(of_images, parity.to_numpy(images.grad)) < close
    of_weight = parity.to_numpy(weight.grad).transpose(1, 2, 3, 0)
    assert parity.relative_error(of_kernel, of_weight) < close
