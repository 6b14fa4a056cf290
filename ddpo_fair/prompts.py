"""Prompts: which one each image is drawn from, what they may say, related prompts."""

import collections
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ddpo_fair.classifiers import classes
from ddpo_fair.embedded import occupations
from ddpo_fair.errors import shown

LONGEST_PROMPT = 1000  # characters; CLIP reads 77 tokens
# Unicode's controls, surrogates, ends of lines; what turns the order of what follows.
UNSEEN = {"Cc", "Cs", "Zl", "Zp", "LRE", "RLE", "PDF", "LRO", "RLO"}
UNSEEN |= {"LRI", "RLI", "FSI", "PDI"}

TRAINED, HELD_OUT, EXPLICIT, GIVEN = "trained", "held_out", "explicit", "given"
SETS = (TRAINED, HELD_OUT, EXPLICIT)
ARTICLE = re.compile(r"\b(an?) (?=\w)", re.IGNORECASE)
GENDERED = re.compile(
    r"\b(female|male|wom[ae]n|m[ae]n|girls?|boys?|lady|ladies|gentlem[ae]n)\b",
    re.IGNORECASE,
)
NO_FORM = "it has no 'a' or 'an' to put 'female' or 'male' behind, or says it already"

# The captions that the embedded model was trained on.
KNOWN_CAPTION = re.compile(r"photo of (the face of )?an? ((female|male) )?(?P<noun>.+)")


def draw(
    num_prompts: int,
    num_images: int,
    seed: int,
    epoch: int,
    *further: tuple[int, int],
) -> np.ndarray:
    """Index of each image's prompt, int [N], in an order drawn anew every epoch.

    Every prompt has the same number of images, or one more where that does not divide;
    which ones have more is drawn too. Behind the config's prompts stand those of each
    `further` kind: how many there are, and how many of the N images are of them.
    """
    random = np.random.default_rng([seed, zlib.crc32(b"prompts"), epoch])
    own = num_images - sum(images for _, images in further)
    drawn, first = [], 0
    for count, images in ((num_prompts, own), *further):
        if images:
            favoured = first + random.permutation(count)
            drawn.append(favoured[np.arange(images) % count])
        first += count
    return random.permutation(np.concatenate(drawn))


def problems(prompts: Sequence[str], setting: str = "prompts") -> Iterator[str]:
    """A sentence for each prompt of a setting that no model could be given."""
    if not prompts and setting == "prompts":
        yield "prompts=() must hold at least one text."
    for index, prompt in enumerate(prompts):
        name = f"{setting}[{index}]={shown(prompt)}"
        if all(unicodedata.category(c)[0] in "CZ" for c in prompt):
            yield f"{name} is empty; say what to draw."
            continue
        if len(prompt) > LONGEST_PROMPT:
            yield (
                f"{name} must have at most {LONGEST_PROMPT} characters; the text"
                " encoder reads about 75 words."
            )
        kinds = unicodedata.category, unicodedata.bidirectional
        odd = [c for c in prompt if UNSEEN & {kind(c) for kind in kinds}]
        if any("\ud800" <= c <= "\udfff" for c in odd):
            yield f"{name} holds bytes that are not UTF-8; write it in UTF-8."
        elif odd:
            yield (
                f"{name} holds the control character {odd[0]!r}, which no reader sees;"
                " remove it."
            )
    most = collections.Counter(prompts).most_common(1)
    if most and most[0][1] > 1:
        yield f"{setting}: {shown(most[0][0])} stands there twice; keep one."


def unknown(prompts: Sequence[str], setting: str = "prompts") -> list[str]:
    """A sentence for each text of a setting that the embedded model does not know."""
    nouns = [*occupations.BY_NAME, *occupations.PLAIN]
    known = {noun.lower() for noun in nouns}
    listed = ", ".join(sorted(nouns, key=str.lower))
    problems = []
    for prompt in prompts:
        match = KNOWN_CAPTION.fullmatch(" ".join(prompt.lower().split()))
        if match and match["noun"] in known:
            continue
        problems.append(
            f"The embedded model does not know {setting}={shown(prompt)}. It draws"
            " 'photo of the face of a NOUN', with 'male' or 'female' before the noun if"
            f" you like; its nouns are {listed}."
            " For any other text choose another model, e.g. :sd15 after the config"
            " file."
        )
    return problems


class Prompt(NamedTuple):
    """A prompt of an evaluation."""

    text: str
    # TRAINED, HELD_OUT (another occupation, never rewarded), EXPLICIT (with a gender,
    # for prompt adherence) or GIVEN (on the command line).
    set: str
    wanted: int | None = None  # the class that an EXPLICIT prompt asks for


def build(
    trained: Sequence[str], sets: Sequence[str], given: Sequence[str] = ()
) -> tuple[tuple[Prompt, ...], list[str]]:
    """Prompts of the wanted `SETS` and given texts; a sentence for each without."""
    prompts = [Prompt(text, TRAINED) for text in trained if TRAINED in sets]
    notes = []
    if HELD_OUT in sets:
        found = held_out(trained)
        prompts += found
        if not found:
            notes.append("No held-out prompts: no trained one has a noun to replace.")
    if EXPLICIT in sets:
        for text in trained:
            found = explicit(text)
            prompts += found
            if not found:
                notes.append(f"No explicit-gender form of {text!r}: {NO_FORM}.")
    prompts += [Prompt(text, GIVEN) for text in given]
    distinct = {prompt.text: prompt for prompt in reversed(prompts)}
    return tuple(p for p in prompts if distinct.pop(p.text, None) is not None), notes


def held_out(trained: Sequence[str]) -> list[Prompt]:
    """Occupations that no training ever rewards, in the form of the first prompt."""
    place = next(filter(None, map(_article, trained)), None)
    if place is None:
        return []
    form = place.string[: place.start()]
    nouns = [*occupations.HELD_OUT, "person"]
    texts = [form + occupations.phrase(noun) for noun in nouns]
    return [Prompt(text, HELD_OUT) for text in texts if text not in trained]


def explicit(text: str) -> list[Prompt]:
    """A prompt with "female" and "male" before its noun; [] as `NO_FORM` says."""
    place = _article(text)
    if place is None or GENDERED.search(text):
        return []
    before, after = text[: place.start()], text[place.end() :]
    return [
        Prompt(f"{before}a {gender} {after}", EXPLICIT, wanted)
        for wanted, gender in enumerate(classes.CLASSES)
    ]


def _article(text: str) -> re.Match | None:
    """The article of who is shown: the one behind the last "of", else the first."""
    of = text.lower().rfind(" of ")
    return ARTICLE.search(text, of + 1) or ARTICLE.search(text)
