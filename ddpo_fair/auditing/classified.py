"""What classifiers say of image files, which stream through in batches."""

import concurrent.futures
import copy
import dataclasses
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict
from PIL import Image

from ddpo_fair import parallel
from ddpo_fair.classifiers import (
    audit_classifier,
    classes,
    classifier,
    labelled_images,
)
from ddpo_fair.errors import UserError, first_line
from ddpo_fair.training import assembly

FIT = -1  # instead of a filter's number: inside a size, with its own shape
BATCH = 32  # of each device
READERS = 4  # threads that decode


class Classified(NamedTuple):
    """What was said of N files.

    Attributes:
        labels: by attribute, int [N], class or NONE.
        audit: likewise, of the audit classifiers.
        faces: int [N], how many faces were found, where one was to be cropped.
        unreadable: numbers of files, and why.
        rows: int [n], numbers of all others.
    """

    labels: dict[str, np.ndarray]
    audit: dict[str, np.ndarray]
    faces: np.ndarray | None
    unreadable: dict[int, str]
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dlib:
    """The audit classifier dlib, which finds the faces itself."""

    attributes: tuple[classes.Attribute, ...] = (classes.GENDER,)
    params: tuple[()] = ()
    size: tuple[int, int] = (512, 512)  # at most; it takes 60 ms an image of 256
    method: int = FIT


Model = classifier.AnyClassifier | Dlib


def load(config: ConfigDict) -> tuple[Model, ...]:
    """The classifiers of a config's attributes, on the devices."""
    return assembly.load_classifiers(config, jnp.float32)


def load_audit(config: ConfigDict, audits: Mapping[str, str]) -> tuple[Model, ...]:
    """The audit classifiers, by attribute, of a config's attributes."""
    config = copy.deepcopy(config)
    config.attributes = {
        name: config.attributes[name].copy_and_resolve_references()
        for name, reference in audits.items()
        if reference != audit_classifier.DLIB
    }
    for name, one in config.attributes.items():
        one.classifier = audits[name]
    own = assembly.load_classifiers(config, jnp.float32)
    if audit_classifier.DLIB not in audits.values():
        return own
    audit_classifier.choose(audit_classifier.DLIB)  # raises where it is missing
    return (*own, Dlib())


def classify(
    models: Sequence[Model],
    images: Sequence[Path | io.BytesIO],
    confidence: float,
    audits: Sequence[Model] = (),
    faces: bool = False,
) -> Classified:
    """The labels of files; a class needs a probability above `confidence`.

    With `faces` the largest of each image is cropped, and NONE is said without any.

    Raises:
        UserError: if none can be read.
    """
    size = BATCH * parallel.num_devices()
    each = [(one, parallel.replicate(one.params)) for one in (*models, *audits)]
    labels: tuple[dict, dict] = {}, {}
    for own, found in zip((models, audits), labels, strict=True):
        for attribute in (x for model in own for x in model.attributes):
            found[attribute.name] = np.full(len(images), classes.NONE)
    unreadable: dict[int, str] = {}
    forms = sorted({form_of(model) for model, _ in each})
    if faces:
        audit_classifier.choose(audit_classifier.DLIB)  # raises where it is missing
    num_faces = np.ones(len(images), np.int64)
    bar = tqdm.tqdm(total=len(images), desc="images", disable=None)
    for rows, pixels, seen, faults in _batches(images, forms, size, faces):
        num_faces[rows] = seen
        for number, (model, params) in enumerate(each if len(rows) else ()):
            answers = _probabilities(model, params, pixels[form_of(model)], size)
            for name, own in answers.items():
                found = labels[number >= len(models)]
                said = classes.labels(own, confidence)
                found[name][rows] = np.where(seen > 0, said, classes.NONE)
        unreadable |= faults
        bar.update(len(rows) + len(faults))
    bar.close()
    if len(unreadable) == len(images):
        raise UserError(
            f"None of {len(images):,} files can be read, the first, {images[0]}, for:"
            f" {unreadable[0]}. Save them as PNG, JPEG, WebP, GIF or TIFF."
        )
    good = [row for row in range(len(images)) if row not in unreadable]
    return Classified(*labels, num_faces if faces else None, unreadable, np.array(good))


def _probabilities(
    model: Model, params: Any, pixels: Sequence[np.ndarray], size: int
) -> dict[str, np.ndarray]:
    """Of n images, in batches of `size`: float [n, K] by attribute."""
    if isinstance(model, Dlib):
        female = audit_classifier.find_faces(pixels).p_female
        each = np.nan_to_num(np.stack([female, 1 - female], axis=1))
        return {classes.GENDER.name: each}
    padded = np.resize(np.array(pixels, np.float32), (size, *pixels[0].shape))
    placed = parallel.split(padded / np.float32(255))
    found = parallel.gather(classifier.classify((model,), (params,), placed))
    return classifier.by_attribute((model,), found[: len(pixels)])


Form = tuple[tuple[int, int], int]  # height and width, PIL's number of the filter


def form_of(model: Model) -> Form:
    settings = getattr(model, "preprocessing", model)  # a Typology has its own
    return tuple(settings.size), settings.method


def _batches(
    images: Sequence[Path | io.BytesIO], forms: Sequence[Form], size: int, faces: bool
) -> Iterator[
    tuple[np.ndarray, dict[Form, list[np.ndarray]], np.ndarray, dict[int, str]]
]:
    """Rows int [n], their pixels in each form, faces int [n], why others are broken."""
    with (
        warnings.catch_warnings(action="ignore"),  # Pillow's, of what it reads
        concurrent.futures.ThreadPoolExecutor(READERS) as pool,
    ):
        started: list[Any] = []

        def start(first: int) -> None:
            batch = images[first : first + size]
            started.append([pool.submit(_read, path, forms, faces) for path in batch])

        start(0)
        for first in range(0, len(images), size):
            start(first + size)  # is decoded while this batch is classified
            found = [one.result() for one in started.pop(0)]
            good = [k for k, one in enumerate(found) if not isinstance(one, str)]
            pixels = {
                form: [found[k][0][i] for k in good] for i, form in enumerate(forms)
            }
            seen = np.array([found[k][1] for k in good], np.int64)
            faults = {first + k: x for k, x in enumerate(found) if isinstance(x, str)}
            rows = first + np.array(good, np.int64)
            yield rows, pixels, seen, faults


def _read(
    path: Path | io.BytesIO, forms: Sequence[Form], faces: bool
) -> tuple[list[np.ndarray], int] | str:
    """Pixels uint8 [H, W, 3] in each form, how many faces; or why there are none.

    The audit classifier dlib gets whole images all the same.
    """
    try:
        with Image.open(path) as image:
            whole = labelled_images.rgb(image)
        own, seen = audit_classifier.crop_face(whole) if faces else (whole, 1)
        each = ((whole if form[1] == FIT else own, form) for form in forms)
        return [np.asarray(_resized(image, *form)) for image, form in each], seen
    except Exception as error:  # Pillow raises many things for a file that is none
        return first_line(error).replace(str(path), getattr(path, "name", ""))


def _resized(image: Image.Image, size: tuple[int, int], method: int) -> Image.Image:
    if method == FIT:
        scale = min(1, size[0] / max(image.size))
        return image.resize([max(1, round(scale * side)) for side in image.size])
    return image.resize(size[::-1], Image.Resampling(method))
