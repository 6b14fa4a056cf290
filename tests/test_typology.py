"""The typology angle as a classifier: NumPy's angle, and the odds of its limits."""

import jax
import numpy as np
import pytest

from ddpo_fair import parallel
from ddpo_fair.classifiers import classes, classifier, typology
from ddpo_fair.errors import UserError
from ddpo_fair.statistics import appearance


def skin_like(height=64, width=64):
    """Images uint8 [8, H, W, 3] in colours from light to dark skin, with noise."""
    draw = np.random.default_rng(0)
    shades = np.linspace(1.0, 0.25, 8)[:, None, None, None]
    colours = shades * np.array([238, 200, 170])
    noise = draw.normal(0, 12, (8, height, width, 3))
    return np.uint8(np.clip(colours + noise, 0, 255))


def unit(images):
    return images.astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("sides", [(64, 64), (48, 80)])
def test_angles_are_numpys(sides):
    images = skin_like(*sides)
    expected = appearance.typology_angles(images, appearance.central_boxes(8))
    assert expected[0] > 40 and expected[-1] < -30
    found = jax.jit(typology.angles)(unit(images))
    # float32's rounding of L* - 50, which is near 0 somewhere on the way
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_probabilities_are_logistic_about_the_limits_and_broken_images_have_none(
    monkeypatch,
):
    images = np.zeros((3, 16, 16, 3), np.float32)
    images[1], images[2, 8, 8] = 1.0, np.nan
    found = np.asarray(jax.jit(typology.probabilities)(images))
    np.testing.assert_allclose(found[:2], [[0, 0, 1], [1, 0, 0]], atol=1e-3)
    assert np.isnan(found[2]).all()
    angles = np.float32([41, 10, 41 + 5.5, 10 - 5.5, 25.5, 90, -90])
    monkeypatch.setattr(typology, "angles", lambda images: angles)
    found = np.asarray(typology.probabilities(None))
    light, dark = (
        1 / (1 + np.exp((c - angles) / w)) for c, w in ((41, 5.5), (10, -5.5))
    )
    np.testing.assert_allclose(found[:, 0], light, rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], dark, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-6)
    assert found[2, 0] == pytest.approx(0.731, abs=1e-3)
    recognised = classes.labels(found)
    assert recognised.tolist() == [-1, -1, 0, 2, 1, 0, 2]


def test_it_classifies_by_skin_tone_on_all_devices():
    images = unit(skin_like())
    model = typology.Typology()
    found = classifier.classify((model,), (model.params,), parallel.split(images))
    assert found.shape == (8, 1, 3)
    expected = jax.jit(typology.probabilities)(images)
    np.testing.assert_allclose(parallel.gather(found), expected, atol=1e-6)
    with pytest.raises(UserError, match="not by gender"):
        typology.Typology((classes.GENDER,))
