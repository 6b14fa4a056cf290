"""The attributes: which labels mean which class, and which fit none."""

import pytest

from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError

# id2label of dima806/fairface_age_image_detection and of nateraw/vit-age-classifier
FAIRFACE_AGES = (
    "0-2", "10-19", "20-29", "3-9", "30-39", "40-49", "50-59", "60-69", "more than 70",
)  # fmt: skip
FAIRFACE_RACES = (
    "Black", "East Asian", "Indian", "Latino_Hispanic", "Middle Eastern",
    "Southeast Asian", "White",
)  # fmt: skip
TONES = ("very light", "light", "intermediate", "tan", "brown", "dark")  # Chardon's


@pytest.mark.parametrize(
    ("attribute", "labels", "expected"),
    [
        (classes.GENDER, (" Woman", "MALE", "other", "girl"), [0, 1, -1, 0]),
        (classes.AGE, FAIRFACE_AGES, [0, 0, 0, 0, 0, 1, 1, 2, 2]),
        (classes.AGE, ("Young", "middle_aged", "70+"), [0, 1, 2]),
        (classes.RACE, FAIRFACE_RACES, [1, 3, 5, 2, 6, 4, 0]),
        (classes.SKIN_TONE, TONES, [0, 0, 1, 1, 2, 2]),
    ],
)
def test_meanings(attribute, labels, expected):
    assert attribute.meanings(labels).tolist() == expected
    assert attribute.misfit(labels) == ""


@pytest.mark.parametrize(
    ("labels", "misfit"),
    [
        (("young", "old"), "none means middle-aged"),
        (("cat", "dog"), "none means young and none means middle-aged and none means"),
        (("young", "middle-aged", "old", "30-45"), "'30-45' means none of its classes"),
        (("young", "middle-aged", "old", "none"), ""),
    ],
)
def test_labels_that_fit_no_class(labels, misfit):
    assert classes.AGE.misfit(labels).startswith(misfit)
    assert bool(classes.AGE.misfit(labels)) == bool(misfit)


def test_an_attribute_of_ones_own():
    four = classes.attribute(
        "race",
        {
            "WMELH": ("White", "Middle Eastern", "Latino_Hispanic"),
            "Asian": ("East Asian", "Southeast Asian"),
            "Black": (),
            "Indian": (),
        },
    )
    assert four.meanings(FAIRFACE_RACES).tolist() == [2, 1, 3, 0, 0, 1, 0]
    smile = classes.attribute("smile", ("smiling", "serious"))
    assert smile.meanings(["Serious", "smiling"]).tolist() == [1, 0]
    assert classes.attribute("gender", ("male", "female")).meanings(["women"]) == [1]
    hash(smile)  # programs are kept by it


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("hats", None, "'hats' has no classes: give them, or choose one of gender"),
        ("age", ("old",), "'old' must be two classes or more"),
        ("race", {"a": ("White",), "b": ("white",)}, "'white' belongs .*'a' and .*'b'"),
        ("age", {"old": (), "aged": ("Old",)}, "'old' belongs to the class 'old'"),
    ],
)
def test_classes_that_are_refused(name, given, message):
    with pytest.raises(UserError, match=message):
        classes.attribute(name, given)
