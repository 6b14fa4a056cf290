"""Which feature of a data set is the label, and what its values mean."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, shown

MOST_LISTED = 60  # features of one message


def at(example: dict[str, Any], path: str) -> Any:
    """What an example, or a dictionary of features, holds at a path "a/b"."""
    if path in example:
        return example[path]
    head, _, rest = path.partition("/")
    return at(example[head], rest)


def features(known: Any, label: str | None, reference: str) -> tuple[str, str]:
    """Paths of the image and of the label.

    Args:
        known: `tfds.features.FeaturesDict`.
        label: as the user named it, its last part is enough; None for the obvious one.
        reference: of the data set, for messages.

    Raises:
        UserError: if either is missing, or not the only one.
    """
    import tensorflow_datasets as tfds  # the extra `data` may be missing

    leaves = dict(_leaves(known))
    images = [p for p, f in leaves.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise UserError(f"--data={shown(reference)} has no images.")
    image = "image" if "image" in images else images[0]
    labels = [p for p, f in leaves.items() if f.shape == () and _is_whole(f)]
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


def class_names(
    own: Sequence[str], label: str, given: Sequence[str], reference: str
) -> tuple[str, ...]:
    """Names of the classes 0, 1, ...; at least one means female and one male.

    Args:
        own: the data set's; () where it gives none.
        label: path of the label, for messages.
        given: the user's; () for the data set's own.
        reference: of the data set, for messages.

    Raises:
        UserError: if they do not, or it is unknown what the values mean.
    """
    if given and own and len(given) != len(own):
        raise UserError(
            f"--classes={shown(','.join(given))} names {len(given)} classes, but"
            f" {label} has {len(own)} ({', '.join(own)})."
        )
    names = tuple(given) or tuple(own)
    missing = classes.missing(names)
    if missing:
        raise UserError(
            f"--data={shown(reference)}: of the classes"
            f" {', '.join(names) or '(unnamed)'} of {label} none means"
            f" {' and none '.join(missing)}. Say what its values mean, in order, e.g."
            f" --classes={','.join(classes.CLASSES)}."
        )
    return names


def _of_attribute(label: str) -> tuple[str, ...]:
    """Names of False and True of an attribute like "Male"; () for another."""
    (meaning,) = classes.meanings([label.rpartition("/")[2]])
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


def _is_whole(feature: Any) -> bool:
    return np.issubdtype(feature.np_dtype, np.integer) or feature.np_dtype == np.bool_
