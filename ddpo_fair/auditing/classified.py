"""What classifiers say of image files, which stream through in batches."""

import concurrent.futures
import copy
import dataclasses
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
    data_flags,
    labelled_images,
)
from ddpo_fair.errors import UserError, first_line, shown
from ddpo_fair.evaluation import classifier_evaluation
from ddpo_fair.statistics import accuracy, correction
from ddpo_fair.training import assembly

FIT = -1  # instead of a filter's number: inside a size, with its own shape
BATCH = 32  # of each device
READERS = 4  # threads that decode


class Classified(NamedTuple):
    """What was said of N files.

    Attributes:
        labels: by attribute, int [N], class or NONE.
        audit: likewise, of the audit classifiers.
        unreadable: numbers of files, and why.
        rows: int [n], numbers of all others.
    """

    labels: dict[str, np.ndarray]
    audit: dict[str, np.ndarray]
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
    images: Sequence[Path],
    confidence: float,
    audits: Sequence[Model] = (),
) -> Classified:
    """The labels of files; a class needs a probability above `confidence`.

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
    forms = sorted({_form(model) for model, _ in each})
    bar = tqdm.tqdm(total=len(images), desc="images", disable=None)
    for rows, pixels, faults in _batches(images, forms, size):
        for number, (model, params) in enumerate(each if len(rows) else ()):
            answers = _probabilities(model, params, pixels[_form(model)], size)
            for name, own in answers.items():
                found = labels[number >= len(models)]
                found[name][rows] = classes.labels(own, confidence)
        unreadable |= faults
        bar.update(len(rows) + len(faults))
    bar.close()
    if len(unreadable) == len(images):
        raise UserError(
            f"None of {len(images):,} files can be read, the first, {images[0]}, for:"
            f" {unreadable[0]}. Save them as PNG, JPEG, WebP, GIF or TIFF."
        )
    good = [row for row in range(len(images)) if row not in unreadable]
    return Classified(*labels, unreadable, np.array(good))


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


def _form(model: Model) -> Form:
    settings = getattr(model, "preprocessing", model)  # a Typology has its own
    return tuple(settings.size), settings.method


def _batches(
    images: Sequence[Path], forms: Sequence[Form], size: int
) -> Iterator[tuple[np.ndarray, dict[Form, list[np.ndarray]], dict[int, str]]]:
    """Rows int [n], their pixels in each form, and why others cannot be read."""
    with (
        warnings.catch_warnings(action="ignore"),  # Pillow's, of what it reads
        concurrent.futures.ThreadPoolExecutor(READERS) as pool,
    ):
        started: list[Any] = []

        def start(first: int) -> None:
            batch = images[first : first + size]
            started.append([pool.submit(_read, path, forms) for path in batch])

        start(0)
        for first in range(0, len(images), size):
            start(first + size)  # is decoded while this batch is classified
            found = [one.result() for one in started.pop(0)]
            good = [k for k, one in enumerate(found) if not isinstance(one, str)]
            pixels = {form: [found[k][i] for k in good] for i, form in enumerate(forms)}
            faults = {first + k: x for k, x in enumerate(found) if isinstance(x, str)}
            rows = first + np.array(good, np.int64)
            yield rows, pixels, faults


def _read(path: Path, forms: Sequence[Form]) -> list[np.ndarray] | str:
    """Pixels uint8 [H, W, 3] in each form, or why there are none."""
    try:
        with Image.open(path) as image:
            whole = labelled_images.rgb(image)
        return [np.asarray(_resized(whole, *form)) for form in forms]
    except Exception as error:  # Pillow raises many things for a file that is none
        return first_line(error).replace(str(path), path.name)


def _resized(image: Image.Image, size: tuple[int, int], method: int) -> Image.Image:
    if method == FIT:
        scale = min(1, size[0] / max(image.size))
        return image.resize([max(1, round(scale * side)) for side in image.size])
    return image.resize(size[::-1], Image.Resampling(method))


def calibrate(
    models: Sequence[classifier.AnyClassifier],
    name: str,
    folder: str,
    confidence: float,
) -> np.ndarray:
    """An attribute's confusion matrix int [K, K] on a folder with one for each class.

    `confusion[true, said]` of recognised images; of the split that is for tests, if one
    says so, else of all.

    Raises:
        UserError: if it cannot be read, or nothing can be corrected with it.
    """
    owners = {one.name: (model, one) for model in models for one in model.attributes}
    model, attribute = owners[name]
    total = np.zeros((len(attribute.classes) + 1,) * 2, np.int64)
    try:
        data = labelled_images.open_data(folder, attribute=attribute)
        test = data_flags.test_split(data, "split")
        for part in (test,) if test else data.splits:
            split = labelled_images.read(data, part, *_form(model))
            rows = np.arange(len(split.truth))
            found = classifier_evaluation.classify(model, split, rows)
            own = classifier.by_attribute((model,), found)[name]
            said = classes.labels(own, confidence)
            total += accuracy.confusion(split.truth, said, len(total))
        correction.check(total[:-1, :-1], attribute.classes)
    except UserError as error:
        text = str(error).partition(" Say what its values")[0]
        text = text.removeprefix(f"--data={shown(folder)}").removeprefix(":").strip()
        raise UserError(
            f"--calibration={shown(folder)}, which has a folder for each of"
            f" {', '.join(attribute.classes)}: {text}"
        ) from error
    return total[:-1, :-1]
