"""A folder of images with a folder for each class: ROOT/SPLIT/CLASS/x.png.

The layout is that of `tfds.ImageFolder`, which needs TensorFlow itself. Without splits,
ROOT/CLASS/x.png, all images are one, "all".
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from ddpo_fair.errors import UserError, shown

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
ALL = "all"  # the split of a folder without splits


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """A split: `[i]` is an example as TFDS has it, its file read when asked for."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]  # of the classes

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {"image": path.read_bytes(), "image/filename": os.fsencode(path)}

    @property
    def labels(self) -> list[int]:
        """The class of each image."""
        return [self.names.index(path.parent.name) for path in self.paths]


def splits(root: Path) -> dict[str, ImageFiles]:
    """The images of each split, in the order of their paths; opens none.

    Raises:
        UserError: if there are no images in folders.
    """
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
    names = {path.parent.name for paths in found.values() for path in paths}
    if not names:
        raise UserError(
            f"--data={shown(str(root))} holds no images ({', '.join(SUFFIXES)}) in a"
            " folder for each class: make it FOLDER/female/x.png and FOLDER/male/y.png,"
            " or FOLDER/train/female/x.png and so on."
        )
    classes = tuple(sorted(names))
    return {name: ImageFiles(paths, classes) for name, paths in found.items() if paths}
