"""The classes of an image: what they are called, and when none is recognised."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ddpo_fair.errors import UserError, shown

FEMALE, MALE = 0, 1
TYPOLOGY = "typology"  # the typology angle, in place of a classifier's folder
NONE = -1  # the label of an image in which no class was recognised


@dataclasses.dataclass(frozen=True)
class Attribute:
    """What images are classified by: its classes, and how labels may spell each.

    A UserError unless there are two classes or more, and no spelling means two.
    """

    name: str
    classes: tuple[str, ...]
    spellings: tuple[frozenset[str], ...]  # of each class, as `plain` writes them

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UserError(
                f"attribute {self.name}: {shown(', '.join(self.classes))} must be two"
                " classes or more; name the others."
            )
        each = zip(self.classes, self.spellings, strict=True)
        for (first, words), (second, others) in itertools.combinations(each, 2):
            if both := sorted(words & others):
                raise UserError(
                    f"attribute {self.name}: {shown(both[0])} belongs to the class"
                    f" {shown(first)} and to {shown(second)}; leave it in one of them."
                )

    def meanings(self, labels: Iterable[str]) -> np.ndarray:
        """The class that each label means, int64 [K]; NONE for anything else."""
        known = {word: k for k, words in enumerate(self.spellings) for word in words}
        return np.array([known.get(plain(label), NONE) for label in labels], np.int64)

    def misfit(self, labels: Sequence[str]) -> str:
        """Which class no label means, or which label none (`NO_CLASS` may); or ""."""
        found = self.meanings(labels)
        missing = [name for k, name in enumerate(self.classes) if k not in found]
        if missing:
            return f"none means {' and none means '.join(missing)}"
        stray = [
            label
            for label, meaning in zip(labels, found, strict=True)
            if meaning == NONE and plain(label) not in NO_CLASS
        ]
        return f"{shown(', '.join(stray))} means none of its classes" if stray else ""


def plain(label: str) -> str:
    """A label in lower case, its words and numbers divided by one space."""
    return re.sub(r"[\s_-]+", " ", label).strip().lower()


def attribute(
    name: str, classes: Sequence[str] | Mapping[str, Iterable[str]] | None = None
) -> Attribute:
    """The attribute of a name: one of `DEFAULTS`, or any other if `classes` are given.

    They are names, or each with the labels that mean it; None for the defaults. A name
    alone has the spellings of the defaults, if it is there. A UserError without
    classes, for fewer than two, or for some that overlap.
    """
    defaults = DEFAULTS.get(name, {})
    if classes is None and not defaults:
        raise UserError(
            f"attribute {shown(name)} has no classes: give them, or choose one of"
            f" {', '.join(DEFAULTS)}."
        )
    chosen = defaults if classes is None else classes
    if not isinstance(chosen, Mapping):
        chosen = {word: defaults.get(word, ()) for word in chosen}
    spellings = [frozenset(map(plain, (word, *chosen[word]))) for word in chosen]
    return Attribute(name, tuple(chosen), tuple(spellings))


# Which labels mean a class, besides its own name. Ages and races are those of FairFace
# (Karkkainen and Joo 2021), as dima806/fairface_age_image_detection and
# nateraw/vit-age-classifier spell them; old begins at 60, as with the United Nations.
# Tones are pairs of the six that Chardon et al. (1991) name.
DEFAULTS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {
        "female": ("females", "woman", "women", "girl", "girls", "f"),
        "male": ("males", "man", "men", "boy", "boys", "m"),
    },
    "skin_tone": {
        "light": ("very light", "light skin", "light skinned"),
        "medium": ("intermediate", "tan", "medium skin", "medium skinned"),
        "dark": ("brown", "dark skin", "dark skinned"),
    },
    "age": {
        "young": ("0-2", "3-9", "10-19", "20-29", "30-39"),
        "middle-aged": ("40-49", "50-59", "middle age"),
        "old": ("60-69", "more than 70", "70+", "over 70", "elderly"),
    },
    "race": {
        "White": (),
        "Black": (),
        "Latino or Hispanic": ("latino_hispanic", "latino", "hispanic"),
        "East Asian": (),
        "Southeast Asian": (),
        "Indian": (),
        "Middle Eastern": (),
    },
}
NO_CLASS = frozenset(
    ("none", "other", "others", "unknown", "unsure", "nothing", "no face", "background")
)
GENDER, SKIN_TONE, AGE, RACE = map(attribute, DEFAULTS)
CLASSES = GENDER.classes


def labels(probabilities: np.ndarray, confidence_threshold: float = 0.7) -> np.ndarray:
    """The class of each image, or NONE, int64 [N] (paper section III-C).

    Of probabilities [N, K], rows with sum 1. A class needs one above the threshold, 0.7
    in the paper; a row with NaN gives NONE.
    """
    probabilities = np.asarray(probabilities)
    recognised = probabilities.max(axis=1) > confidence_threshold
    return np.where(recognised, np.argmax(probabilities, axis=1), NONE)


def finite(probabilities: np.ndarray) -> np.ndarray:
    """Whether each image has probabilities at all, bool [N]; a broken image has NaN."""
    return np.isfinite(probabilities).all(axis=1)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Hard memberships for `balance_loo`, float32 [N, K]; zeros for NONE."""
    labels = np.asarray(labels)
    return (labels[:, None] == np.arange(num_classes)).astype(np.float32)
