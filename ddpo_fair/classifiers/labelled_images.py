"""Labelled images: a data set of TensorFlow Datasets, or a folder of folders."""

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ddpo_fair import files
from ddpo_fair.classifiers import image_folder, tfds_source
from ddpo_fair.classifiers.classes import GENDER, NONE, Attribute
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import tensor_files

PREPARED = "dataset_info.json"  # in the folder of a data set that TFDS has prepared
LARGEST_STORE = 2**30  # bytes of read images that are kept
# White of the modes that Pillow cuts off at 255 instead of scaling them.
WHITE = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "F": 1.0}


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A data set whose labels are understood."""

    reference: str  # as the user named it
    source: Any  # tfds.core.DatasetBuilder, or each split's files and their classes
    splits: tuple[str, ...]
    names: tuple[str, ...]  # of the classes
    image: str = "image"  # path of TFDS's feature, "/" between
    label: str = "label"  # likewise
    attribute: Attribute = GENDER  # whose classes the labels mean
    note: str = ""  # what of a folder is not read; "" if all is


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of a split, read when asked for."""

    data: LabelledImages
    name: str
    source: Sequence[Any]  # of a file and its class, or TFDS's examples, images encoded
    classes: np.ndarray  # int [N], of `data.names`
    size: tuple[int, int]  # height and width that images get
    method: int  # PIL's number of the filter

    @property
    def truth(self) -> np.ndarray:
        """What each image's class means, int [N]: one of the attribute's, or NONE."""
        return self.data.attribute.meanings(self.data.names)[self.classes]

    def file(self, row: int) -> Path | io.BytesIO:
        """The encoded image of a row."""
        item = self.source[row]
        if isinstance(item, tuple):
            return item[0]
        return io.BytesIO(tfds_source.at(item, self.data.image))

    def pixels(self, rows: Sequence[int]) -> np.ndarray:
        """Images uint8 [n, H, W, 3] of rows [n]; a UserError if one is broken."""
        return np.stack([self._kept(int(row)) for row in rows])

    @functools.cached_property
    def _kept(self) -> Callable[[int], np.ndarray]:
        """`_read`, with the images that were read last."""
        most = LARGEST_STORE // (3 * math.prod(self.size))
        return functools.lru_cache(most)(self._read)

    def _read(self, row: int) -> np.ndarray:
        name = f"image {row} of {self.name}"
        try:
            item = self.source[row]
            if isinstance(item, tuple):
                name = item[0]
            else:
                name = item.get("image/filename", b"").decode(errors="replace") or name
            with Image.open(self.file(row)) as image:
                resized = rgb(image).resize(
                    self.size[::-1], Image.Resampling(self.method)
                )
            return np.asarray(resized)
        except Exception as error:  # Pillow raises many things for a file that is none
            own = [name] if isinstance(name, Path) else []
            way_out = tensor_files.way_out(*own, otherwise="remove or replace it")
            raise UserError(
                f"--data={shown(self.data.reference)}: {name} cannot be read ({error});"
                f" {way_out}."
            ) from None


def rgb(image: Image.Image) -> Image.Image:
    """An upright RGB image of any mode, on white; a ValueError without a white."""
    most = WHITE.get(image.mode)
    if image.mode == "I":  # 32 bits, in which Pillow keeps the 16 of a PNG or PGM
        most = 65535 if image.format in ("PNG", "PPM") else 0
    upright = ImageOps.exif_transpose(image)
    if most is not None:
        grey = np.asarray(upright, np.float64)
        if not (most and grey.min() >= 0 and grey.max() <= most):
            raise ValueError(
                f"mode {image.mode} with values from {grey.min():g} to {grey.max():g},"
                " in which no white is agreed; save it with 8 or 16 bits"
            )
        upright = Image.fromarray(np.uint8(np.round(grey * (255 / most))))
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    pixels = upright.convert("LA" if upright.mode == "La" else "RGBA").convert("RGBA")
    white = Image.new("RGBA", pixels.size, "white")
    return Image.alpha_composite(white, pixels).convert("RGB")


def open_data(
    reference: str,
    label: str | None = None,
    classes: Sequence[str] = (),
    data_dir: str | None = None,
    attribute: Attribute = GENDER,
) -> LabelledImages:
    """A data set, downloaded and prepared if need be; a UserError if it cannot be had.

    The reference is a name of TensorFlow Datasets, e.g. "celeb_a"; the folder of one
    that is prepared; or a folder with a folder for each class. The label is a feature,
    e.g. "Male", None for the obvious one; `classes` is what its values mean, from 0 on,
    () for what the data set says; `data_dir` is where TFDS keeps its data sets.
    """
    folder = files.given("--data", reference)
    if folder.is_dir() and not (folder / PREPARED).is_file():
        source, own, note = image_folder.read(folder)
        if label not in (None, "label"):
            raise UserError(
                f"--data={shown(reference)}: --label={shown(label)} is none: choose one"
                " of label."
            )
        hint = image_folder.hint(folder)
        names = _class_names(own, "label", classes, reference, attribute, hint)
        data = LabelledImages(reference, source, tuple(source), names)
        return dataclasses.replace(data, attribute=attribute, note=note)
    builder = tfds_source.builder(reference, folder, data_dir)
    known = builder.info.features
    image, label = tfds_source.features(known, label, reference)
    own = tfds_source.names_of(tfds_source.at(known, label), label)
    names = _class_names(own, label, classes, reference, attribute)
    tfds_source.prepare(builder, reference)
    splits = tuple(builder.info.splits)
    return LabelledImages(reference, builder, splits, names, image, label, attribute)


def read(data: LabelledImages, split: str, size: tuple[int, int], method: int) -> Split:
    """A split of the data, see `Split`; a UserError if it, or a label, is unknown."""
    if split not in data.splits:
        raise UserError(
            f"--data={shown(data.reference)} has no split {shown(split)}, but"
            f" {', '.join(data.splits)}."
        )
    if isinstance(data.source, dict):
        source = data.source[split]
        labels = [number for _, number in source]
    else:
        source = tfds_source.examples(data.source, split, data.image, data.reference)
        labels = tfds_source.labels(
            data.source, split, source, data.label, data.reference
        )
    found = np.array(labels, np.int64)
    wrong = np.flatnonzero((found < 0) | (found >= len(data.names)))
    if len(wrong):
        raise UserError(
            f"--data={shown(data.reference)}: {data.label} of image {wrong[0]} of"
            f" {split} is {found[wrong[0]]}, but the classes are 0 to"
            f" {len(data.names) - 1} ({', '.join(data.names)}); choose another split,"
            " or name all classes with --classes."
        )
    return Split(data, split, source, found, size, method)


def _class_names(
    own: Sequence[str],
    label: str,
    given: Sequence[str],
    reference: str,
    attribute: Attribute,
    hint: str = "",
) -> tuple[str, ...]:
    """Names of the classes 0, 1, ...: `given`, or the data set's own if () is given.

    A UserError unless they fit the attribute's classes.
    """
    if given and own and len(given) != len(own):
        raise UserError(
            f"--classes={shown(','.join(given))} names {len(given)} classes, but"
            f" {label} has {len(own)} ({', '.join(own)})."
        )
    names = tuple(given) or tuple(own)
    for known, said in zip(own, given, strict=False):
        if NONE not in (both := attribute.meanings([known, said])) and len({*both}) > 1:
            raise UserError(
                f"--classes={shown(','.join(given))} says that {shown(known)} is"
                f" {shown(said)}; name them in the order of {label}: {', '.join(own)}."
            )
    if misfit := attribute.misfit(names):
        meant = attribute.meanings(names)
        example = (*attribute.classes, "none")
        if set(range(len(attribute.classes))) <= set(meant.tolist()):  # and strangers
            example = tuple(example[meaning] for meaning in meant)  # NONE is the last
        raise UserError(
            f"--data={shown(reference)}: of the classes"
            f" {', '.join(names) or '(unnamed)'} of {label} {misfit}."
            " Say what its values mean, in order, e.g."
            f" --classes={','.join(example)}.{hint}"
        )
    return names
