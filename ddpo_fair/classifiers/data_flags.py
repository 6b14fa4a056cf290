"""Flags that the commands about classifiers share: which images, which labels."""

import sys
from collections.abc import Callable, Sequence

from absl import flags

from ddpo_fair.classifiers import classes, image_folder, labelled_images
from ddpo_fair.classifiers.labelled_images import LabelledImages
from ddpo_fair.errors import UserError, shown

RENDERS = "stereotyped_faces"  # a data set that the package itself makes


def open_data(options: flags.FlagValues) -> LabelledImages:
    """The data set that the flags name; see `labelled_images.open_data`."""
    if options.data.partition("/")[0] == RENDERS:
        from ddpo_fair.embedded import tfds_faces  # noqa: F401 - TFDS then knows it
    names = map(str.strip, (options.classes or "").split(","))
    given = options.data, options.label, [*filter(None, names)], options.data_dir
    data = labelled_images.open_data(*given, classes.attribute(options.attribute))
    if data.note:
        print(f"--data={shown(options.data)}: {data.note}.", file=sys.stderr)
    return data


def training_split(data: LabelledImages) -> str:
    """The split to train on: whose name says so, or the only one; or a UserError."""
    found = image_folder.of_purpose(data.splits, "train") or data.splits
    return only(found, data, "split", "to train on")


def test_split(
    data: LabelledImages, flag: str, trained: str | None = None
) -> str | None:
    """The split to test on, besides that trained on; None if no name says so."""
    for purpose in ("test", "validation"):
        found = image_folder.of_purpose(data.splits, purpose)
        if found := [split for split in found if split != trained]:
            return only(found, data, flag, "to test on")
    return None


def only(found: Sequence[str], data: LabelledImages, flag: str, what: str) -> str:
    """The one split that was found; a UserError asks for `flag` unless it is one."""
    if len(found) != 1:
        raise UserError(
            f"--data={shown(data.reference)} has the splits {', '.join(data.splits)};"
            f" give --{flag}, the one {what}."
        )
    return found[0]


def define(texts: Callable[..., None]) -> None:
    """Defines the flags that say which images, and what their labels mean."""
    texts(
        "data",
        None,
        "A name of TensorFlow Datasets, e.g. celeb_a; or a folder with a folder for"
        " each class, FOLDER/female/x.png or FOLDER/train/female/x.png",
    )
    texts("attribute", "gender", "To classify by: gender, skin_tone, age or race")
    texts("label", None, "The data set's label, e.g. Male; the obvious one")
    texts("classes", None, "What its values mean, from 0 on, e.g. female,male,none")
    texts("data_dir", None, "Where TensorFlow Datasets keeps data sets")
