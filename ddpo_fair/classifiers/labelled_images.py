"""Labelled pictures: a data set of TensorFlow Datasets, or a folder of folders."""

import dataclasses
import difflib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from PIL import Image, ImageOps

from ddpo_fair import files
from ddpo_fair.classifiers import label_names
from ddpo_fair.classifiers.label_names import at
from ddpo_fair.errors import UserError, shown

PREPARED = "dataset_info.json"  # in the folder of a data set that TFDS has prepared
LARGEST_STORE = 2**30  # bytes of read pictures that are kept


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set whose labels are understood."""

    reference: str  # as the user named it
    builder: Any  # tfds.core.DatasetBuilder
    image: str  # path of the feature, "/" between
    label: str
    names: tuple[str, ...]  # of the classes

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.builder.info.splits)


@dataclasses.dataclass(frozen=True)
class Split:
    """Pictures of a split, read when asked for.

    Attributes:
        data: whose they are.
        name: of the split.
        source: `[i]` is an example with encoded picture.
        classes: int [N], of `data.names`.
        size: height and width that pictures get.
        method: PIL's number of the filter.
        store: uint8 [N, H, W, 3] of those read before; None if they are too many.
        seen: bool [N], which.
    """

    data: Data
    name: str
    source: Sequence[dict[str, Any]]
    classes: np.ndarray
    size: tuple[int, int]
    method: int
    store: np.ndarray | None
    seen: np.ndarray

    def pixels(self, rows: Sequence[int]) -> np.ndarray:
        """Pictures uint8 [n, H, W, 3]; the sides' proportion is not kept.

        Raises:
            UserError: names a picture that cannot be read.
        """
        return np.stack([self._one(int(row)) for row in rows])

    def _one(self, row: int) -> np.ndarray:
        if self.store is None:
            return self._read(row)
        if not self.seen[row]:
            self.store[row] = self._read(row)
            self.seen[row] = True
        return self.store[row]

    def _read(self, row: int) -> np.ndarray:
        example = self.source[row]
        try:
            with Image.open(io.BytesIO(at(example, self.data.image))) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
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
            name = name.decode(errors="replace") or f"picture {row} of {self.name}"
            raise UserError(
                f"--data={shown(self.data.reference)}: {name} cannot be read ({error});"
                " remove or replace it."
            ) from None


def open_data(
    reference: str,
    label: str | None = None,
    classes: Sequence[str] = (),
    data_dir: str | None = None,
) -> Data:
    """A data set, downloaded and prepared if need be.

    Args:
        reference: a name of TensorFlow Datasets, e.g. "celeb_a"; the folder of one that
            is prepared; or a folder with a folder for each class.
        label: the feature, e.g. "label" or "Male"; None for the obvious one.
        classes: what its values mean, from 0 on; () for what the data set says.
        data_dir: where TFDS keeps its data sets; None for its own choice.

    Raises:
        UserError: for an unknown data set or feature, or one that cannot be had.
    """
    builder = _builder(reference, data_dir)
    image, label = label_names.features(builder.info.features, label, reference)
    names = label_names.class_names(builder.info.features, label, classes, reference)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever a data set's own code or a server brings up
        raise UserError(
            f"--data={shown(reference)} cannot be downloaded or prepared"
            f" ({type(error).__name__}: {_first_line(error)}). TFDS's page of it says"
            " what it needs; --data_dir names where it is prepared already."
        ) from error
    return Data(reference, builder, image, label, names)


def read(data: Data, split: str, size: tuple[int, int], method: int) -> Split:
    """A split of the data with all its labels.

    Raises:
        UserError: for an unknown split, or labels that are none.
    """
    import tensorflow_datasets as tfds

    if split not in data.splits:
        raise UserError(
            f"--data={shown(data.reference)} has no split {shown(split)}, but"
            f" {', '.join(data.splits)}."
        )
    skip: Any = tfds.decode.SkipDecoding()  # labels come without decoding pictures
    for part in reversed(data.image.split("/")):
        skip = {part: skip}
    try:
        source = data.builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        raise UserError(
            f"--data={shown(data.reference)} was prepared in a format that cannot be"
            " read without TensorFlow: give another --data_dir, where it is prepared"
            " as array_record."
        ) from error
    rows = tqdm.trange(len(source), desc=f"labels of {split}", disable=None)
    found = np.array([int(at(source[row], data.label)) for row in rows], np.int64)
    wrong = np.flatnonzero((found < 0) | (found >= len(data.names)))
    if len(wrong):
        raise UserError(
            f"--data={shown(data.reference)}: {data.label} of picture {wrong[0]} of"
            f" {split} is {found[wrong[0]]}, but the classes are 0 to"
            f" {len(data.names) - 1} ({', '.join(data.names)}); choose another split,"
            " or name all classes with --classes."
        )
    shape = (len(found), *size, 3)
    store = np.empty(shape, np.uint8) if np.prod(shape) <= LARGEST_STORE else None
    seen = np.zeros(len(found), bool)
    return Split(data, split, source, found, size, method, store, seen)


def _builder(reference: str, data_dir: str | None) -> Any:
    folder = files.given("--data", reference)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"--data needs the package tensorflow-datasets ({error}): pip install"
            ' "ddpo_fair[data]".'
        ) from error
    if folder.is_dir() and (folder / PREPARED).is_file():
        return tfds.builder_from_directory(folder)
    if folder.is_dir():
        from ddpo_fair.classifiers import image_folder

        return image_folder.ImageFolder(folder)
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
    return (str(error).strip().splitlines() or ["without a word"])[0].rstrip(".:")
