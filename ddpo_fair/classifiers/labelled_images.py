"""Labelled images: a data set of TensorFlow Datasets, or a folder of folders.

A folder has a folder for each class, ROOT/SPLIT/CLASS/x.png, which is the layout of
`tfds.ImageFolder`, or ROOT/CLASS/x.png, which is one split, "all".
"""

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from PIL import Image, ImageOps

from ddpo_fair import files
from ddpo_fair.classifiers import classes, tfds_source
from ddpo_fair.errors import UserError, shown

PREPARED = "dataset_info.json"  # in the folder of a data set that TFDS has prepared
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
ALL = "all"  # the split of a folder without splits
LARGEST_STORE = 2**30  # bytes of read images that are kept


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A data set whose labels are understood.

    Attributes:
        reference: as the user named it.
        source: tfds.core.DatasetBuilder, or each split's files and their classes.
        splits: their names.
        names: of the classes.
        image: path of TFDS's feature, "/" between.
        label: likewise.
    """

    reference: str
    source: Any
    splits: tuple[str, ...]
    names: tuple[str, ...]
    image: str = "image"
    label: str = "label"


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of a split, read when asked for.

    Attributes:
        data: whose they are.
        name: of the split.
        source: `[i]` is a file and its class, or an example of TFDS, image encoded.
        classes: int [N], of `data.names`.
        size: height and width that images get.
        method: PIL's number of the filter.
    """

    data: LabelledImages
    name: str
    source: Sequence[Any]
    classes: np.ndarray
    size: tuple[int, int]
    method: int

    @property
    def truth(self) -> np.ndarray:
        """What each image's class means, int [N]: FEMALE, MALE or NONE."""
        return classes.meanings(self.data.names)[self.classes]

    def pixels(self, rows: Sequence[int]) -> np.ndarray:
        """Images uint8 [n, H, W, 3] of rows [n]; the sides' proportion is not kept.

        Raises:
            UserError: names an image that cannot be read.
        """
        return np.stack([self._kept(int(row)) for row in rows])

    @functools.cached_property
    def _kept(self) -> Callable[[int], np.ndarray]:
        """`_read`, with the images that were read last."""
        most = LARGEST_STORE // (3 * math.prod(self.size))
        return functools.lru_cache(most)(self._read)

    def _read(self, row: int) -> np.ndarray:
        item = self.source[row]
        if isinstance(item, tuple):
            name, file = item[0], item[0]
        else:
            name = item.get("image/filename", b"").decode(errors="replace")
            name = name or f"image {row} of {self.name}"
            file = io.BytesIO(tfds_source.at(item, self.data.image))
        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            resized = upright.resize(self.size[::-1], Image.Resampling(self.method))
            return np.asarray(resized)
        # Pillow raises many things for a file that is none.
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            raise UserError(
                f"--data={shown(self.data.reference)}: {name} cannot be read ({error});"
                " remove or replace it."
            ) from None


def open_data(
    reference: str,
    label: str | None = None,
    classes: Sequence[str] = (),
    data_dir: str | None = None,
) -> LabelledImages:
    """A data set, downloaded and prepared if need be.

    Args:
        reference: a name of TensorFlow Datasets, e.g. "celeb_a"; the folder of one that
            is prepared; or a folder with a folder for each class.
        label: the feature that is the label, e.g. "Male"; None for the obvious one.
        classes: what its values mean, from 0 on; () for what the data set says.
        data_dir: where TFDS keeps its data sets; None for its own choice.

    Raises:
        UserError: for an unknown data set or feature, or one that cannot be had.
    """
    folder = files.given("--data", reference)
    if folder.is_dir() and not (folder / PREPARED).is_file():
        source, own = _folder(folder)
        if label not in (None, "label"):
            raise UserError(
                f"--data={shown(reference)}: --label={shown(label)} is none: choose one"
                " of label."
            )
        names = _class_names(own, "label", classes, reference)
        return LabelledImages(reference, source, tuple(source), names)
    builder = tfds_source.builder(reference, folder, data_dir)
    known = builder.info.features
    image, label = tfds_source.features(known, label, reference)
    own = tfds_source.names_of(tfds_source.at(known, label), label)
    names = _class_names(own, label, classes, reference)
    tfds_source.prepare(builder, reference)
    splits = tuple(builder.info.splits)
    return LabelledImages(reference, builder, splits, names, image, label)


def read(data: LabelledImages, split: str, size: tuple[int, int], method: int) -> Split:
    """A split of the data with all its labels.

    Args:
        data: of `open_data`.
        split: its name.
        size: height and width that images get.
        method: PIL's number of the filter.

    Raises:
        UserError: for an unknown split, or labels that are none.
    """
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
        rows = tqdm.trange(len(source), desc=f"labels of {split}", disable=None)
        labels = [int(tfds_source.at(source[row], data.label)) for row in rows]
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


def _folder(root: Path) -> tuple[dict[str, list[tuple[Path, int]]], list[str]]:
    """The files of each split, each with its class, by path; the classes' names."""
    try:
        inside = [path for path in sorted(root.iterdir()) if path.is_dir()]
        flat = not any(path.is_dir() for place in inside for path in place.iterdir())
        places = {ALL: root} if flat else {path.name: path for path in inside}
        images = {
            name: [
                path
                for path in sorted(place.glob("*/*"))
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            ]
            for name, place in places.items()
        }
    except OSError as error:
        raise UserError(
            f"--data={shown(str(root))} cannot be read ({error})."
        ) from None
    names = sorted({path.parent.name for paths in images.values() for path in paths})
    if not names:
        raise UserError(
            f"--data={shown(str(root))} holds no images ({', '.join(SUFFIXES)}) in a"
            " folder for each class: make it FOLDER/female/x.png and FOLDER/male/y.png,"
            " or FOLDER/train/female/x.png and so on."
        )
    numbered = {
        split: [(path, names.index(path.parent.name)) for path in paths]
        for split, paths in images.items()
        if paths
    }
    return numbered, names


def _class_names(
    own: Sequence[str], label: str, given: Sequence[str], reference: str
) -> tuple[str, ...]:
    """Names of the classes 0, 1, ...: `given`, or the data set's own if () is given.

    Raises:
        UserError: unless at least one means female and one male.
    """
    if given and own and len(given) != len(own):
        raise UserError(
            f"--classes={shown(','.join(given))} names {len(given)} classes, but"
            f" {label} has {len(own)} ({', '.join(own)})."
        )
    names = tuple(given) or tuple(own)
    if missing := classes.missing(names):
        raise UserError(
            f"--data={shown(reference)}: of the classes"
            f" {', '.join(names) or '(unnamed)'} of {label} none means"
            f" {' and none '.join(missing)}. Say what its values mean, in order, e.g."
            f" --classes={','.join(classes.CLASSES)}."
        )
    return names
