"""Flags that the commands about classifiers share: which images, which labels."""

import argparse
import math
from typing import Any

from ddpo_fair.errors import shown

RENDERS = "stereotyped_faces"  # a data set that the package itself makes


def open_data(options: argparse.Namespace) -> Any:
    """The data set that the flags name; see `labelled_images.open_data`."""
    from ddpo_fair.classifiers import labelled_images

    if options.data.partition("/")[0] == RENDERS:
        from ddpo_fair.embedded import tfds_faces  # noqa: F401 - TFDS then knows it
    classes = [name.strip() for name in (options.classes or "").split(",")]
    return labelled_images.open_data(
        options.data, options.label, [c for c in classes if c], options.data_dir
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """The flags that say which images, and what their labels mean."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        help="a name of TensorFlow Datasets, e.g. celeb_a; or a folder with a folder"
        " for each class, FOLDER/female/x.png or FOLDER/train/female/x.png",
    )
    add("--label", help="the data set's label, e.g. Male; the obvious one if not given")
    add("--classes", help="what its values mean, from 0 on, e.g. female,male,none")
    add("--data_dir", help="where TensorFlow Datasets keeps data sets")


def share(text: str) -> float:
    """A number from 0 to below 1, for `type=`."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} must be a number from 0 to below 1"
        )
    return number


def rate(text: str) -> float:
    """A learning rate, for `type=`."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 10:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} must be a number above 0 and at most 10"
        )
    return number
