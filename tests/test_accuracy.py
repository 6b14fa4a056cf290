"""The classifier's test: figures by hand and by scikit-learn's definitions."""

import numpy as np
import pytest

from ddpo_fair.statistics import accuracy, intervals

FEMALE, MALE, NONE = 0, 1, -1


def measured():
    """Ten images: four female, four male, two without a face."""
    truth = np.array([FEMALE] * 4 + [MALE] * 4 + [NONE] * 2)
    p_female = np.array([0.9, 0.8, 0.6, 0.2, 0.1, 0.1, 0.4, 0.05, 0.95, 0.55])
    return accuracy.measure(truth, np.stack([p_female, 1 - p_female], 1), 0.7)


def test_the_papers_accuracies_by_hand():
    found = measured()
    np.testing.assert_array_equal(found["confusion"], [[2, 1, 1], [0, 3, 1], [1, 0, 1]])
    assert found["images"] == 10
    expected = {
        "accuracy": (6, 10),  # 2 + 3 + 1 on the diagonal
        "accuracy_without_none": (5, 6),  # of 2 + 1 + 0 + 3
        "accuracy_of_faces": (5, 8),
        "accuracy_forced": (7, 8),  # .6 counts as female, .4 as male
        "none_among_faces": (2, 8),
    }
    for name, counts in expected.items():
        wilson = intervals.wilson(*counts)
        figures = [found[name][key] for key in ("estimate", "low", "high")]
        assert figures == pytest.approx(list(wilson)), name
    assert found["recognised"]["female"]["estimate"] == 0.5
    assert found["recognised"]["none"]["estimate"] == 0.5


def test_calibration_by_hand():
    found = measured()
    # Of eight faces: .6 .6 right; .8 right, .8 wrong; .9 .9 .9 right; .95 right.
    gaps = [2 * (1 - 0.6), abs(1 - 2 * 0.8), 3 * (1 - 0.9), 1 - 0.95]
    # Bins of 1/15: (.533, .6], (.733, .8], (.867, .933], (.933, 1].
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 8)
    assert [b["images"] for b in found["reliability"]] == [2, 2, 3, 1]
    assert [b["accuracy"] for b in found["reliability"]] == [1, 0.5, 1, 1]
    seen = np.array([[0.5, 0.5], [0.9, 0.1]])
    found = accuracy.measure(np.array([NONE, NONE]), seen, 0.7)
    assert "calibration_error" not in found
    assert found["accuracy"]["estimate"] == 0.5
    assert "2 images" in accuracy.sentence(found)


def test_three_classes_by_hand():
    truth = np.array([0, 0, 1, 1, 2, NONE])
    seen = [[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0]]
    seen = np.array([*seen, [0.9, 0.1, 0.0], [0.0, 0.2, 0.8], [0.4, 0.3, 0.3]])
    found = accuracy.measure(truth, seen, 0.7, ("light", "medium", "dark"))
    expected = [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(found["confusion"], expected)
    assert found["classes"] == ["light", "medium", "dark", "none"]
    shares = {
        "accuracy": (4, 6),
        "accuracy_without_none": (3, 4),
        "accuracy_of_faces": (3, 5),
        "accuracy_forced": (4, 5),
        "none_among_faces": (1, 5),
    }
    for name, counts in shares.items():
        assert found[name] == intervals.wilson(*counts)._asdict(), name
    assert found["recognised"]["light"]["estimate"] == 0.5
    # Of five faces: .5 and .8, .8 and one .9 right, the other .9 wrong.
    gaps = [1 - 0.5, 2 * (1 - 0.8), 2 * abs(0.5 - 0.9)]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 5)
