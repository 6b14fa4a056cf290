"""The classes of renders: limits of the literature, by its own formulas."""

import numpy as np
import pytest

from ddpo_fair.classifiers import classes, typology
from ddpo_fair.embedded import dataset, ground_truth, skin


def albedo_angle(tone):
    """The typology angle of the skin's colour before any light falls on it."""
    colour = np.float64(skin.tone(tone))
    linear = np.where(
        colour > 0.04045, ((colour + 0.055) / 1.055) ** 2.4, colour / 12.92
    )
    _, y, z = np.cbrt(linear @ typology.TO_XYZ.T / typology.WHITE)
    return np.degrees(np.arctan2(116 * y - 66, 200 * (y - z)))


def test_limits_of_skin_tone_are_chardons():
    light, dark = ground_truth.LIMITS["skin_tone"]
    assert albedo_angle(light) == pytest.approx(41, abs=0.05)
    assert albedo_angle(dark) == pytest.approx(10, abs=0.05)
    angles = [albedo_angle(tone) for tone in np.linspace(0, 7, 99)]
    assert (np.diff(angles) < 0).all()


def test_limits_of_age_are_40_and_60_years():
    years = 25 + 65 * np.array(ground_truth.LIMITS["age"])
    np.testing.assert_allclose(years, [40, 60])


def test_classes_follow_the_render():
    columns = {
        "male": np.array([True, False, True]),
        "skin_tone": np.array([1.0, 3.0, 6.0]),
        "age": np.array([0.9, 0.4, 0.1]),
        "view": np.array(["near", "far", "turned away"]),
    }
    expected = {"gender": [1, 0, -1], "skin_tone": [0, 1, -1], "age": [2, 1, -1]}
    for name, numbers in expected.items():
        assert ground_truth.classes(name, columns).tolist() == numbers


def test_every_class_is_common():
    faces = [dataset.draw(0, index)[2] for index in range(1000)]
    columns = {
        "age": np.array([face.age for face in faces]),
        "skin_tone": np.array([face.tone for face in faces]),
        "view": np.array([face.view for face in faces]),
    }
    for attribute in (classes.SKIN_TONE, classes.AGE):
        found = ground_truth.classes(attribute.name, columns)
        shares = np.bincount(found[found >= 0], minlength=3) / np.sum(found >= 0)
        assert len(shares) == len(attribute.classes) and shares.min() > 0.15
