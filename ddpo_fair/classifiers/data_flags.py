"""Flags that the commands about classifiers share: which images, which labels."""

import functools
from collections.abc import Callable
from typing import Any

from absl import flags

TESTS = ("test", "validation")  # splits that are not trained on, the first one wins
RENDERS = "stereotyped_faces"  # a data set that the package itself makes


def open_data(options: flags.FlagValues) -> Any:
    """The data set that the flags name; see `labelled_images.open_data`."""
    from ddpo_fair.classifiers import labelled_images

    if options.data.partition("/")[0] == RENDERS:
        from ddpo_fair.embedded import tfds_faces  # noqa: F401 - TFDS then knows it
    classes = [name.strip() for name in (options.classes or "").split(",")]
    return labelled_images.open_data(
        options.data, options.label, [c for c in classes if c], options.data_dir
    )


def test_split(data: Any, trained: str | None = None) -> str | None:
    """The data's own split to test on, if it has one besides that trained on."""
    return next((s for s in TESTS if s in data.splits and s != trained), None)


def read(data: Any, split: str, settings: Any) -> Any:
    """A split in the size of a classifier's preprocessing; see `labelled_images`."""
    from ddpo_fair.classifiers import labelled_images

    return labelled_images.read(data, split, settings.size, settings.method)


def define(values: flags.FlagValues) -> tuple[Callable[..., None], ...]:
    """Defines the flags that say which images, and what their labels mean.

    Returns:
        What defines further flags in `values`: a text, a whole number, a number.
    """
    texts, whole, number = (
        functools.partial(one, flag_values=values)
        for one in (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float)
    )
    texts(
        "data",
        None,
        "A name of TensorFlow Datasets, e.g. celeb_a; or a folder with a folder for"
        " each class, FOLDER/female/x.png or FOLDER/train/female/x.png",
    )
    texts("label", None, "The data set's label, e.g. Male; the obvious one")
    texts("classes", None, "What its values mean, from 0 on, e.g. female,male,none")
    texts("data_dir", None, "Where TensorFlow Datasets keeps data sets")
    return texts, whole, number
