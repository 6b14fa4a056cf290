"""Resizing equals Pillow's."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpo_fair.classifiers import resize


def images(height, width):
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    edges = np.zeros_like(noise)
    edges[:, height // 3 :, : width // 2] = 255  # bicubic overshoots here
    return np.concatenate([noise, edges])


@pytest.mark.parametrize("method", [resize.NEAREST, resize.BILINEAR, resize.BICUBIC])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((64, 64), (28, 28)),
        ((64, 48), (24, 56)),  # one axis shrinks, the other grows
        ((30, 41), (77, 19)),
        ((16, 32), (16, 16)),  # one axis stays
    ],
)
def test_resizing_equals_pillow_to_the_last_bit(before, after, method):
    pixels = images(*before)
    found = resize.resize(jnp.asarray(pixels, jnp.float32), *after, method)
    expected = [
        np.asarray(Image.fromarray(one).resize(after[::-1], method)) for one in pixels
    ]
    np.testing.assert_array_equal(found, np.stack(expected))


@pytest.mark.parametrize(
    ("num_in", "num_out"), [(512, 224), (1024, 224), (64, 224), (512, 384)]
)
@pytest.mark.parametrize("method", [resize.BILINEAR, resize.BICUBIC])
def test_weights_equal_pillow_at_real_sizes(num_in, num_out, method):
    """One row of pixels, so that the test is quick."""
    row = images(1, num_in)[0]
    weights = resize.integer_weights(num_in, num_out, method)
    total = weights @ row[0].astype(np.float64) + 2**21  # exact in float64
    found = np.clip(np.floor(total / 2**22), 0, 255)
    resized = Image.fromarray(row).resize((num_out, 1), method)
    np.testing.assert_array_equal(found, np.asarray(resized)[0])


def test_halves_of_the_weights_are_exact_in_float32():
    """The largest sums stay below 2^24 even when a filter spans 40 pixels."""
    weights = resize.integer_weights(2048, 224, resize.BICUBIC)
    upper = np.round(weights / 2**11)
    lower = weights - upper * 2**11
    assert 255 * np.abs(upper).sum(1).max() < 2**24
    assert 255 * np.abs(lower).sum(1).max() < 2**24
