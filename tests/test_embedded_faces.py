"""Images: repeatable, of the right size, and faithful to the attributes."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("numba")
from ddpo_fair.embedded import attributes, faces, hair, head, occupations, people, skin


def face(seed: int = 0, male: bool = True, **changes) -> attributes.Face:
    sampled = people.sample(np.random.default_rng(seed), male)
    return dataclasses.replace(sampled, yaw=0.0, pitch=0.0, roll=0.0, **changes)


def test_rendering_is_repeatable_and_of_the_asked_size():
    one, two = faces.render(face(), 32), faces.render(face(), 32)
    assert one.shape == (32, 32, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)


def test_corner_shows_the_background():
    background = np.array([[0.2, 0.4, 0.6], [0.2, 0.4, 0.6]])
    image = faces.render(face(background=background), 32)
    np.testing.assert_array_equal(image[0, 0], [51, 102, 153])  # x 255


def test_darker_tone_gives_a_darker_cheek():
    # Level 6 is a stored tone; between two tones the colour is linear.
    np.testing.assert_allclose(skin.tone(6) * 255, [122, 82, 59], rtol=1e-6)
    middle = (skin.TONES[2] + skin.TONES[3]) / 2
    np.testing.assert_allclose(skin.tone(2.5), middle, rtol=1e-6)
    cheeks = [faces.render(face(tone=tone))[34:38, 24:28].mean() for tone in (0, 3, 7)]
    assert cheeks[0] > cheeks[1] + 20 > cheeks[2] + 40


@pytest.mark.parametrize("cut", sorted({o.cut for o in occupations.ALL} | {"v"}))
def test_every_cut_shows_its_cloth(cut):
    plain = {"accent_colour": np.zeros(3), "headgear": "", "glasses": False}
    green = face(cut=cut, cloth_colour=np.array([0, 1.0, 0]), **plain)
    red = face(cut=cut, cloth_colour=np.array([1.0, 0, 0]), **plain)
    difference = np.abs(faces.render(green, 32).astype(int) - faces.render(red, 32))
    assert difference[:8].max() == 0 and difference[-3:].max() > 60


def test_hat_hides_the_crown_and_leaves_long_hair_at_the_sides():
    look = {"headgear_colour": np.array([1.0, 1, 0]), "hair": hair.LONG}
    look |= {"hair_colour": np.array([0.1, 0, 0.5]), "hair_bottom": 5.0}
    image = faces.render(face(headgear="hard hat", **look)).astype(int)
    yellow = (image[..., 0] > 120) & (image[..., 2] < 90)
    assert yellow[6:10, 26:38].all()
    blue = image[..., 2] > image[..., 0] + 25
    assert blue[40, :24].any() and blue[40, 40:].any()


def test_rotation_keeps_lengths_and_turns_the_face_aside():
    turn = faces.rotation(90, 0, 0)
    np.testing.assert_allclose(turn @ [0, 0, 1], [1, 0, 0], atol=1e-6)  # fp32
    turn = faces.rotation(20, -10, 5)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)


def test_pupils_keep_their_place_whatever_the_shape():
    for seed in range(3):
        body = head.build(face(seed, male=seed % 2 == 0))
        eyes = body.positions[body.kind == head.EYES]
        # The middle of the eyes is where `build` puts it, in fp32.
        np.testing.assert_allclose(eyes.mean(0), [0, 7.356, 1.18], atol=1e-3)
