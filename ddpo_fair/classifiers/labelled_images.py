"""Labelled images: a data set of TensorFlow Datasets, or a folder of folders."""

import dataclasses
import difflib
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
from ddpo_fair.classifiers import image_folder, label_names
from ddpo_fair.errors import UserError, shown

PREPARED = "dataset_info.json"  # in the folder of a data set that TFDS has prepared
LARGEST_STORE = 2**30  # bytes of read images that are kept


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A data set whose labels are understood.

    Attributes:
        reference: as the user named it.
        source: tfds.core.DatasetBuilder, or the splits of a folder by name.
        splits: their names.
        image: path of the feature, "/" between.
        label: likewise.
        names: of the classes.
    """

    reference: str
    source: Any
    splits: tuple[str, ...]
    image: str
    label: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of a split, read when asked for.

    Attributes:
        data: whose they are.
        name: of the split.
        source: `[i]` is an example with encoded image.
        classes: int [N], of `data.names`.
        size: height and width that images get.
        method: PIL's number of the filter.
    """

    data: LabelledImages
    name: str
    source: Sequence[dict[str, Any]]
    classes: np.ndarray
    size: tuple[int, int]
    method: int

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
        example = self.source[row]
        try:
            encoded = io.BytesIO(label_names.at(example, self.data.image))
            with Image.open(encoded) as image:
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
            name = example.get("image/filename", b"")
            name = name.decode(errors="replace") or f"image {row} of {self.name}"
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
        splits = image_folder.splits(folder)
        if label not in (None, "label"):
            raise UserError(
                f"--data={shown(reference)}: --label={shown(label)} is none: choose one"
                " of label."
            )
        own = next(iter(splits.values())).names
        names = label_names.class_names(own, "label", classes, reference)
        return LabelledImages(reference, splits, tuple(splits), "image", "label", names)
    builder = _builder(reference, folder, data_dir)
    known = builder.info.features
    image, label = label_names.features(known, label, reference)
    own = label_names.names_of(label_names.at(known, label), label)
    names = label_names.class_names(own, label, classes, reference)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever a data set's own code or a server brings up
        raise UserError(
            f"--data={shown(reference)} cannot be downloaded or prepared"
            f" ({type(error).__name__}: {_first_line(error)}). TFDS's page of it says"
            " what it needs; --data_dir names where it is prepared already."
        ) from error
    splits = tuple(builder.info.splits)
    return LabelledImages(reference, builder, splits, image, label, names)


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
        classes = np.array(source.labels, np.int64)
    else:
        source = _examples(data, split)
        rows = tqdm.trange(len(source), desc=f"labels of {split}", disable=None)
        labels = [int(label_names.at(source[row], data.label)) for row in rows]
        classes = np.array(labels, np.int64)
    wrong = np.flatnonzero((classes < 0) | (classes >= len(data.names)))
    if len(wrong):
        raise UserError(
            f"--data={shown(data.reference)}: {data.label} of image {wrong[0]} of"
            f" {split} is {classes[wrong[0]]}, but the classes are 0 to"
            f" {len(data.names) - 1} ({', '.join(data.names)}); choose another split,"
            " or name all classes with --classes."
        )
    return Split(data, split, source, classes, size, method)


def _examples(data: LabelledImages, split: str) -> Sequence[dict[str, Any]]:
    """TFDS's examples with encoded images: labels come without decoding any."""
    import tensorflow_datasets as tfds  # the extra `data` may be missing

    skip: Any = tfds.decode.SkipDecoding()
    for part in reversed(data.image.split("/")):
        skip = {part: skip}
    try:
        return data.source.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        raise UserError(
            f"--data={shown(data.reference)} was prepared in a format that cannot be"
            " read without TensorFlow: give another --data_dir, where it is prepared"
            " as array_record."
        ) from error


def _builder(reference: str, folder: Path, data_dir: str | None) -> Any:
    """The tfds.core.DatasetBuilder of a name or of a prepared folder."""
    try:
        import tensorflow_datasets as tfds  # the extra `data` may be missing
    except ImportError as error:
        raise UserError(
            f"--data needs the package tensorflow-datasets ({error}): pip install"
            ' "ddpo_fair[data]".'
        ) from error
    if folder.is_dir():
        return tfds.builder_from_directory(folder)
    known = sorted(set(tfds.list_builders(with_community_datasets=False)))
    name = reference.partition("/")[0].partition(":")[0]
    if name not in known:
        similar = difflib.get_close_matches(name, known, 4, 0.5)
        raise UserError(
            f"--data={shown(reference)} is no folder, and no data set of TensorFlow"
            f" Datasets; like it: {', '.join(similar) or 'none'}."
        )
    try:
        return tfds.builder(reference, data_dir=data_dir, file_format="array_record")
    except (ImportError, ValueError, AssertionError) as error:
        raise UserError(
            f"--data={shown(reference)}: TensorFlow Datasets does not take it"
            f" ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".:")
