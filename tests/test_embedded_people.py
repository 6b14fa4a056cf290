"""Attributes: gender where it should matter, and nowhere else."""

import numpy as np
import pytest

pytest.importorskip("numba")
from ddpo_fair.embedded import occupations, people

OF_THE_PICTURE = (
    *("cut", "cloth_colour", "accent_colour", "tie_colour", "headgear"),
    *("headgear_colour", "glasses", "glasses_colour", "view", "yaw", "pitch", "roll"),
    *("zoom", "shift", "light", "ambient", "warmth", "background"),
)


def draw(seed: int, male: bool, **options):
    return people.sample(np.random.default_rng(seed), male, **options)


def test_clothes_and_scene_do_not_depend_on_gender():
    for seed, occupation in enumerate(occupations.ALL):
        man = draw(seed, True, occupation=occupation)
        woman = draw(seed, False, occupation=occupation)
        for name in OF_THE_PICTURE:
            np.testing.assert_array_equal(getattr(man, name), getattr(woman, name))


def test_masculinity_lies_on_the_side_of_the_label():
    for seed in range(300):
        for male in (True, False):
            assert (draw(seed, male).masculinity > 0.5) == male


def test_seven_percent_are_ambiguous_unless_clear():
    rng = np.random.default_rng(0)
    levels = np.array([people.masculinity(rng, False, False) for _ in range(4000)])
    clear = np.array([people.masculinity(rng, False, True) for _ in range(4000)])
    # P(Beta(1.2, 9) > 0.25) = 0.1024 by scipy.stats.beta.sf; 4 sigma of 4,000 draws.
    np.testing.assert_allclose((clear > 0.25).mean(), 0.1024, atol=0.019)
    expected = 0.07 + 0.93 * 0.1024
    np.testing.assert_allclose((levels > 0.25).mean(), expected, atol=0.024)


def test_beards_belong_to_masculine_faces_only():
    faces = [draw(seed, seed % 2 == 0) for seed in range(200)]
    assert all(face.male for face in faces if face.beard + face.stubble > 0)
    assert any(face.beard > 0.5 for face in faces)
