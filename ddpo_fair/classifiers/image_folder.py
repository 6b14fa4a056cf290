"""A folder of pictures with a folder for each class, as TensorFlow Datasets has it.

Layout and features are those of `tfds.ImageFolder`, which needs TensorFlow itself:
ROOT/SPLIT/CLASS/x.png. Without splits, ROOT/CLASS/x.png, all pictures are one, "all".
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, NoReturn

import tensorflow_datasets as tfds

from ddpo_fair.errors import UserError, shown

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
ALL = "all"  # the split of a folder without splits


@dataclasses.dataclass(frozen=True)
class Files:
    """A split: `[i]` is {"image", "label", "image/filename"}, read when asked for."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    features: tfds.features.FeaturesDict
    decoders: dict[str, Any]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        example = {
            "image": path.read_bytes(),
            "label": self.labels[index],
            "image/filename": os.fspath(path).encode(),
        }
        return self.features.decode_example_np(example, decoders=self.decoders)


class ImageFolder(tfds.core.DatasetBuilder, skip_registration=True):
    """`tfds.ImageFolder` without TensorFlow, read by `as_data_source`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, root: str | os.PathLike) -> None:
        """Lists the files; opens none.

        Raises:
            UserError: if there are no pictures in folders.
        """
        self._files = _list(Path(root))
        super().__init__(data_dir=root)
        self._data_dir = os.fspath(root)
        names = {path.parent.name for paths in self._files.values() for path in paths}
        self.info.features["label"].names = sorted(names)
        splits = [
            tfds.core.SplitInfo(name=name, shard_lengths=[len(paths)], num_bytes=0)
            for name, paths in self._files.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(splits))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(),
            "image/filename": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def as_data_source(self, split: str, *, decoders: dict | None = None) -> Files:
        """The files of a split.

        Args:
            split: a name, without slices.
            decoders: as everywhere in TFDS, e.g. `{"image": SkipDecoding()}`.
        """
        features = self.info.features
        paths = self._files[split]
        labels = tuple(features["label"].str2int(path.parent.name) for path in paths)
        return Files(paths, labels, features, decoders or {})

    def _as_dataset(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("tfds.ImageFolder, with TensorFlow, makes a Dataset.")

    def _download_and_prepare(self, **_: Any) -> None:
        """Nothing is to be done: the files are there."""

    def download_and_prepare(self, **_: Any) -> None:
        """Nothing is to be done: the files are there."""


def _list(root: Path) -> dict[str, tuple[Path, ...]]:
    """The pictures of each split, in the order of their paths."""
    try:
        inside = [path for path in sorted(root.iterdir()) if path.is_dir()]
        flat = not any(path.is_dir() for place in inside for path in place.iterdir())
        places = {ALL: root} if flat else {path.name: path for path in inside}
        found = {
            name: tuple(
                path
                for path in sorted(place.glob("*/*"))
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            )
            for name, place in places.items()
        }
    except OSError as error:
        raise UserError(
            f"--data={shown(str(root))} cannot be read ({error})."
        ) from None
    found = {name: paths for name, paths in found.items() if paths}
    if not found:
        raise UserError(
            f"--data={shown(str(root))} holds no pictures ({', '.join(SUFFIXES)}) in a"
            " folder for each class: make it FOLDER/female/x.png and FOLDER/male/y.png,"
            " or FOLDER/train/female/x.png and so on."
        )
    return found
