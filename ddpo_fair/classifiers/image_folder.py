"""A folder of labelled images: ROOT/SPLIT/CLASS/x.png, or ROOT/CLASS/x.png.

The first is the layout of `tfds.ImageFolder`; the second is one split, "all".
"""

import collections
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ddpo_fair.errors import UserError, shown

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
HIDDEN = (".", "__MACOSX")  # beginnings of what Jupyter and archives leave behind
ALL = "all"  # the split of a folder without splits
PURPOSES = {  # words in a split's name, as Hugging Face's datasets know them
    "train": {"train", "training"},
    "test": {"test", "testing", "eval", "evaluation"},
    "validation": {"validation", "valid", "val", "dev"},
}
CELEBA = (
    " For CelebA as its authors give it, link the images into FOLDER/female and"
    " FOLDER/male by the column Male of list_attr_celeba.txt."
)

Files = dict[str, list[tuple[Path, int]]]


def of_purpose(splits: Sequence[str], purpose: str) -> list[str]:
    """The splits whose name says, in any case, that they are for `purpose` alone."""
    words = {name: set(re.findall("[a-z]+", name.lower())) for name in splits}
    return [
        name
        for name in splits
        if [p for p, known in PURPOSES.items() if known & words[name]] == [purpose]
    ]


def read(root: Path) -> tuple[Files, list[str], str]:
    """The files of each split with their classes, the classes' names, what is skipped.

    Names that differ in their case alone are one class. A UserError if there are no
    images, or classes stand beside splits.
    """
    name = f"--data={shown(str(root))}"
    skipped: collections.Counter[str] = collections.Counter()
    try:
        tops = _folders(root, skipped)
        splits = [top for top in tops if _is_split(top)]
        places = {split.name: _folders(split, skipped) for split in splits}
        classes = [top for top in tops if top not in splits and _inside(top)[0]]
        if splits and classes:
            raise UserError(
                f"{name}: {_names(classes)} holds images itself, beside"
                f" {_names(splits)}, which holds a folder for each class. Move it into"
                " a split, or elsewhere."
            )
        places = places or {ALL: tops}
        images = {
            split: [path for place in inside for path in _of_class(place, skipped)]
            for split, inside in places.items()
        }
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error}).") from None
    known: dict[str, str] = {}
    for path in sorted(path for paths in images.values() for path in paths):
        known.setdefault(path.parent.name.lower(), path.parent.name)
    said = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common(9))
    if not known:
        raise UserError(
            f"{name} holds no images ({', '.join(SUFFIXES)}) in a folder for each"
            " class: make it FOLDER/female/x.png and FOLDER/male/y.png, or"
            f" FOLDER/train/female/x.png and so on.{said and f' Skipped: {said}.'}"
            + hint(root)
        )
    order = sorted(known)
    if not any(map(_purpose, places)) and all(map(_purpose, order)):
        raise UserError(
            f"{name} has a folder for each split ({', '.join(order)}) inside that of"
            f" each class ({', '.join(places)}): make it FOLDER/{order[0]}/"
            f"{next(iter(places))}/x.png and so on."
        )
    numbered = {
        split: [(path, order.index(path.parent.name.lower())) for path in paths]
        for split, paths in images.items()
        if paths
    }
    return numbered, [known[key] for key in order], said and f"skipped {said}"


def _is_split(place: Path) -> bool:
    """Whether a folder holds folders of images, and none itself unless its name says.

    A class may hold a subfolder, and a split an image that belongs to none.
    """
    images, folders = _inside(place)
    return (_purpose(place.name) or not images) and any(
        _inside(folder)[0] for folder in folders
    )


def _purpose(name: str) -> bool:
    """Whether a split's name says what it is for."""
    return any(of_purpose([name], purpose) for purpose in PURPOSES)


def hint(root: Path) -> str:
    """What to do with a data set that is known by a file of its own; "" for others."""
    return CELEBA * any(root.glob("list_attr_celeba*"))


def _folders(place: Path, skipped: collections.Counter[str]) -> list[Path]:
    images, folders = _inside(place, skipped)
    skipped.update(["images outside a class"] * len(images))
    return folders


def _of_class(place: Path, skipped: collections.Counter[str]) -> list[Path]:
    images, folders = _inside(place, skipped)
    skipped.update(["folders inside a class"] * len(folders))
    return images


def _inside(
    folder: Path, skipped: collections.Counter[str] | None = None
) -> tuple[list[Path], list[Path]]:
    """A folder's images and folders; what is neither is counted by its kind."""
    inside = [x for x in sorted(folder.iterdir()) if not x.name.startswith(HIDDEN)]
    folders = [path for path in inside if os.path.isdir(path)]
    kinds = {path: other_kind(path) for path in inside if path not in folders}
    if skipped is not None:
        skipped.update(filter(None, kinds.values()))
    return [path for path, kind in kinds.items() if not kind], folders


def other_kind(path: Path) -> str:
    """What a file is that is no image, as it is counted; "" for an image."""
    if not os.path.isfile(path):
        return (
            "links that lead nowhere"
            if path.is_symlink()
            else "that are no regular files"
        )
    suffix = path.suffix.lower()
    return "" if suffix in SUFFIXES else f"{suffix or 'nameless'} files"


def _names(places: Sequence[Path]) -> str:
    return ", ".join(place.name for place in places)
