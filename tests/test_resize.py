"""Resizing and normalising equal Pillow's and transformers'."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpo_fair.classifiers import classifier, resize


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


@pytest.mark.parametrize("method", [resize.BILINEAR, resize.BICUBIC])
def test_preprocessing_equals_transformers(method):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    processor = ViTImageProcessorPil(
        resample=method,
        image_mean=list(mean),
        image_std=list(std),
        size={"height": 32, "width": 32},
    )
    pixels = images(72, 72)
    settings = classifier.Preprocessing((32, 32), method, 1 / 255, mean, std)
    found = classifier.preprocess(settings, jnp.asarray(pixels, jnp.float32) / 255.0)
    expected = processor(list(pixels), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(
        found, expected.transpose(0, 2, 3, 1), atol=1e-5
    )  # float32 rounding; a level of 256 would be 0.0171
