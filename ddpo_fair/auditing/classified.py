"""What classifiers say of image files, which stream through in batches."""

import copy
import dataclasses
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict
from PIL import Image

from ddpo_fair import parallel
from ddpo_fair.auditing import kept_answers
from ddpo_fair.classifiers import (
    audit_classifier,
    classes,
    classifier,
    labelled_images,
    supervised,
)
from ddpo_fair.errors import UserError, first_line
from ddpo_fair.training import assembly, description

FIT = -1  # instead of a filter's number: inside a size, with its own shape
BATCH = 32  # of each device
READERS = 4  # threads that decode, a batch each
KEPT = "classified.jsonl"


Form = tuple[tuple[int, int], int]  # height and width, PIL's number of the filter
# Pixels uint8 [H, W, 3] in each form, and how many faces.
Decoded = tuple[list[np.ndarray], int]


class Classified(NamedTuple):
    """What was said of N files."""

    labels: dict[str, np.ndarray]  # by attribute, int [N], class or NONE
    audit: dict[str, np.ndarray]  # likewise, of the audit classifiers
    faces: np.ndarray | None  # int [N], how many were found, if one was to be cropped
    unreadable: dict[int, str]  # numbers of files, and why
    rows: list[int]  # numbers of all others


@dataclasses.dataclass(frozen=True)
class Dlib:
    """The audit classifier dlib, which finds the faces itself."""

    attributes: tuple[classes.Attribute, ...] = (classes.GENDER,)
    params: tuple[()] = ()
    size: tuple[int, int] = (512, 512)  # at most; it takes 60 ms an image of 256
    method: int = FIT


Model = classifier.AnyClassifier | Dlib


class Models(NamedTuple):
    """Classifiers of images, on the devices, and what they are, as JSON."""

    own: tuple[Model, ...]
    audit: tuple[Model, ...] = ()
    known: dict[str, dict[str, str]] = MappingProxyType({})


def load(config: ConfigDict, audits: Mapping[str, str]) -> Models:
    """The classifiers of a config's attributes, and the audit classifiers of some."""
    second = copy.deepcopy(config)
    second.attributes = {
        name: config.attributes[name].copy_and_resolve_references()
        for name, reference in audits.items()
        if reference != audit_classifier.DLIB
    }
    for name, one in second.attributes.items():
        one.classifier = audits[name]
    known: list[dict[str, str]] = []
    try:
        for each in (config, second):
            fields = {x: f"attributes.{x}.classifier" for x in each.attributes}
            found = {x: description.identity(each, y) for x, y in fields.items()}
            known.append({x: y["fingerprint"] for x, y in found.items()})
        for name, _ in known[0].items() & known[1].items():
            raise UserError(f"that of {name} is --classifier; give one to disagree.")
    except UserError as error:
        raise UserError(f"{'--audit-classifier: ' * bool(known)}{error}") from error
    own, others = (assembly.load_classifiers(x, jnp.float32) for x in (config, second))
    if audit_classifier.DLIB in audits.values():
        audit_classifier.choose(audit_classifier.DLIB)  # raises where it is missing
        others = (*others, Dlib())
    return Models(own, others, {"own": known[0], "audit": {**audits, **known[1]}})


def classify(
    models: Models,
    images: Sequence[Path | io.BytesIO],
    confidence: float,
    faces: bool = False,
    output: Path | None = None,
) -> Classified:
    """The labels of files; a class needs a probability above `confidence`.

    With `faces` the largest of each image is cropped, and NONE is said without any.
    Answers are kept in `output`, and those that are there are not asked for again. A
    UserError if no file can be read.
    """
    size = BATCH * parallel.num_devices()
    each = [(x, parallel.replicate(x.params)) for x in (*models.own, *models.audit)]
    names = [[x.name for one in part for x in one.attributes] for part in models[:2]]
    # Of each image how many faces, then its labels.
    answers = np.full((len(images), 1 + len(names[0]) + len(names[1])), classes.NONE)
    kept = None
    if output is not None:
        settings = {"confidence": confidence, "faces": faces, **models.known}
        kept = kept_answers.KeptAnswers(output / KEPT, settings)
    todo, unreadable = [], dict[int, str]()
    for row, image in enumerate(images):
        if kept and (known := kept.of(image)):
            answers[row] = known
        else:
            todo.append(row)
    forms = sorted({form_of(model) for model, _ in each})
    if faces:
        audit_classifier.choose(audit_classifier.DLIB)  # raises where it is missing

    def read(number: int) -> dict[int, Decoded | str]:
        rows = todo[number * size : (number + 1) * size]
        return {row: _read(images[row], forms, faces) for row in rows}

    total, batches = len(images), -(-len(todo) // size)
    with (
        warnings.catch_warnings(action="ignore"),  # Pillow's, of what it reads
        tqdm.tqdm(total=total, desc="images", disable=None) as bar,
    ):
        bar.update(total - len(todo))
        for batch in supervised.ahead(read, 0, batches, READERS):
            unreadable |= {row: x for row, x in batch.items() if isinstance(x, str)}
            good = {row: x for row, x in batch.items() if row not in unreadable}
            if good:
                said = _labels(each, forms, list(good.values()), confidence, size)
                answers[list(good)] = said
                if kept:
                    kept.add([images[row] for row in good], said.tolist())
            bar.update(len(batch))
    if len(unreadable) == len(images):
        raise UserError(
            f"None of {len(images):,} files can be read, the first, {images[0]}, for:"
            f" {unreadable[0]}. Save them as PNG, JPEG, WebP, GIF or TIFF."
        )
    columns = iter(answers.T[1:])
    labels = [{name: next(columns) for name in part} for part in names]
    good = [row for row in range(len(images)) if row not in unreadable]
    return Classified(*labels, answers[:, 0] if faces else None, unreadable, good)


def _labels(
    each: Sequence[tuple[Model, Any]],
    forms: Sequence[Form],
    decoded: Sequence[Decoded],
    confidence: float,
    size: int,
) -> np.ndarray:
    """Of n images how many faces, and all classifiers' labels: int [n, 1 + A]."""
    pixels, faces = zip(*decoded, strict=True)
    pixels = dict(zip(forms, zip(*pixels, strict=True), strict=True))
    columns = [np.array(faces)]
    for model, params in each:
        own = _probabilities(model, params, pixels[form_of(model)], size)
        labels = (classes.labels(found, confidence) for found in own.values())
        columns += [np.where(columns[0] > 0, x, classes.NONE) for x in labels]
    return np.stack(columns, axis=1)


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


def form_of(model: Model) -> Form:
    settings = getattr(model, "preprocessing", model)  # a Typology has its own
    return tuple(settings.size), settings.method


def _read(path: Path | io.BytesIO, forms: Sequence[Form], faces: bool) -> Decoded | str:
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
