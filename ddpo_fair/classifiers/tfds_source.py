"""Data sets of TensorFlow Datasets: their images, and which feature is the label."""

import contextlib
import difflib
import json
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from ddpo_fair import errors
from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, shown

MOST_LISTED = 60  # features of one message
ANSWER_SECONDS = 5  # for a host from which a data set is downloaded


def builder(reference: str, folder: Path, data_dir: str | None) -> Any:
    """The tfds.core.DatasetBuilder of a name or a prepared folder; or a UserError."""
    try:
        import tensorflow_datasets as tfds  # the extra `data` may be missing
    except ImportError as error:
        raise UserError(
            f"--data needs the package tensorflow-datasets ({error}): pip install"
            ' "ddpo_fair[data]".'
        ) from error
    if folder.is_dir():
        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:  # whatever its parsers raise
            raise UserError(
                f"--data={shown(reference)}: dataset_info.json there says that"
                " TensorFlow Datasets has prepared this folder, but it cannot be read"
                f" ({type(error).__name__}: {errors.first_line(error)}). Prepare it"
                " again; if it is a folder of images, remove that file."
            ) from error
    known = sorted(set(tfds.list_builders(with_community_datasets=False)))
    name = reference.partition("/")[0].partition(":")[0]
    if name not in known:
        similar = difflib.get_close_matches(name, known, 4, 0.5)
        raise UserError(
            f"--data={shown(reference)} is no folder, and no data set of TensorFlow"
            f" Datasets; like it: {', '.join(similar) or 'none'}."
        )
    try:
        with _own_temporary_folder():
            return tfds.builder(
                reference, data_dir=data_dir, file_format="array_record"
            )
    except Exception as error:  # whatever a data set's own code brings up
        raise UserError(
            f"--data={shown(reference)}: TensorFlow Datasets does not take it"
            f" ({errors.first_line(error)})."
        ) from error


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Removes at its end what is made in the temporary folder: TFDS leaves it there."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        try:
            yield
        finally:
            tempfile.tempdir = before


def prepare(builder: Any, reference: str) -> None:
    """Downloads and prepares a data set if need be; raises UserError if it cannot."""
    if not Path(builder.data_dir).exists():
        _reach(builder, reference)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever a data set's own code or a server brings up
        raise UserError(
            f"--data={shown(reference)} cannot be downloaded or prepared"
            f" ({type(error).__name__}: {errors.first_line(error)}). TFDS's page of it"
            " says what it needs; --data_dir names where it is prepared already."
        ) from error


def _reach(builder: Any, reference: str) -> None:
    """Raises UserError if a file has to be fetched and its host does not answer.

    TFDS itself would try for minutes.
    """
    downloads = Path(builder.data_dir_root) / "downloads"
    by_hand = downloads / "manual"  # where TFDS looks for a file before it downloads
    had = "".join(p.read_text(errors="replace") for p in downloads.glob("*.INFO"))
    missing = {
        url: info.filename
        for url, info in (builder.url_infos or {}).items()
        if url.startswith(("http", "ftp")) and json.dumps(url) not in had
        if not (info.filename and (by_hand / info.filename).exists())
    }
    hosts = {urllib.parse.urlsplit(url).hostname for url in missing}
    for host in () if urllib.request.getproxies() else sorted(hosts):
        try:
            socket.create_connection((host, 443), ANSWER_SECONDS).close()
        except OSError as error:
            raise UserError(
                f"--data={shown(reference)}: {host} does not answer"
                f" ({error.strerror or error}), where"
                f" {', '.join(map(str, missing.values()))} would be downloaded. Try"
                f" again with a network, or fetch them by hand into {by_hand};"
                " --data_dir names another place, or where it is prepared already."
            ) from error


def examples(
    builder: Any, split: str, image: str, reference: str
) -> Sequence[dict[str, Any]]:
    """Examples of a split with encoded images: labels come without decoding any."""
    import tensorflow_datasets as tfds  # see `builder`

    skip: Any = tfds.decode.SkipDecoding()
    for part in reversed(image.split("/")):
        skip = {part: skip}
    try:
        return builder.as_data_source(split, decoders=skip)
    except NotImplementedError as error:
        raise UserError(
            f"--data={shown(reference)} was prepared in a format that cannot be read"
            " without TensorFlow: give another --data_dir, where it is prepared as"
            " array_record."
        ) from error


def labels(
    builder: Any, split: str, examples: Sequence[Any], label: str, reference: str
) -> list[int]:
    """The label of each example; a UserError names a file that is damaged."""
    found: list[int] = []
    try:
        for row in tqdm.trange(len(examples), desc=f"labels of {split}", disable=None):
            found.append(int(at(examples[row], label)))
    except Exception as error:  # array_record's, or of what it read
        info = builder.info.splits[split]
        ends = np.cumsum(info.shard_lengths)
        path = info.filepaths[np.searchsorted(ends, len(found), side="right")]
        raise UserError(
            f"--data={shown(reference)}: {path} is damaged"
            f" ({errors.first_line(error)}). Copy it again, or delete its folder to"
            " have the data set prepared again."
        ) from error
    return found


def at(example: dict[str, Any], path: str) -> Any:
    """What an example, or a dictionary of features, holds at a path "a/b"."""
    if path in example:
        return example[path]
    head, _, rest = path.partition("/")
    return at(example[head], rest)


def features(known: Any, label: str | None, reference: str) -> tuple[str, str]:
    """Paths of the image and of the label; a UserError if either is not the only one.

    `known` is a `tfds.features.FeaturesDict`; of `label` the last part is enough, and
    None means the obvious one.
    """
    import tensorflow_datasets as tfds  # see `builder`

    leaves = dict(_leaves(known))
    images = [p for p, f in leaves.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise UserError(f"--data={shown(reference)} has no images.")
    image = "image" if "image" in images else images[0]
    whole = [p for p, f in leaves.items() if np.dtype(f.np_dtype).kind in "biu"]
    labels = [path for path in whole if leaves[path].shape == ()]
    genders = [p for p in labels if _of_attribute(p)]  # "Male" and the like
    if label is None:
        named = [p for p in labels if hasattr(leaves[p], "names")]
        matches = ["label"] if "label" in labels else genders or named
    else:
        last = label.lower()
        matches = [p for p in labels if p.lower() == last]
        matches = matches or [p for p in labels if p.lower().rpartition("/")[2] == last]
    if len(matches) == 1:
        return image, matches[0]
    close = difflib.get_close_matches(label or "label", labels, MOST_LISTED, 0.4)
    listed = list(dict.fromkeys([*genders, *close, *labels]))[:MOST_LISTED]
    asked = "--label is needed" if label is None else f"--label={shown(label)} is none"
    raise UserError(
        f"--data={shown(reference)}: {asked}: choose one of"
        f" {', '.join(listed) or 'nothing: it has no labels'}."
    )


def names_of(feature: Any, label: str) -> tuple[str, ...]:
    """The data set's own names of the label's values; () where it gives none."""
    names = tuple(getattr(feature, "names", None) or ())
    return names or (_of_attribute(label) if feature.np_dtype == np.bool_ else ())


def _of_attribute(label: str) -> tuple[str, ...]:
    """Names of False and True of an attribute like "Male"; () for another."""
    (meaning,) = classes.GENDER.meanings([label.rpartition("/")[2]])
    if meaning == classes.NONE:
        return ()
    return (classes.CLASSES[1 - meaning], classes.CLASSES[meaning])


def _leaves(known: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, feature in known.items():
        if hasattr(feature, "feature"):  # a sequence
            continue
        if hasattr(feature, "items"):
            yield from _leaves(feature, f"{path}{name}/")
        else:
            yield f"{path}{name}", feature
