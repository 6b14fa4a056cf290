"""What a model is asked in an evaluation: more than what it was trained on."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ddpo_fair.embedded import occupations

TRAINED, HELD_OUT, EXPLICIT, GIVEN = "trained", "held_out", "explicit", "given"
SETS = (TRAINED, HELD_OUT, EXPLICIT)
GENDERS = ("female", "male")  # in the classifier's order
ARTICLE = re.compile(r"\b(an?) (?=\w)", re.IGNORECASE)
GENDERED = re.compile(
    r"\b(female|male|wom[ae]n|m[ae]n|girls?|boys?|lady|ladies|gentlem[ae]n)\b",
    re.IGNORECASE,
)
NO_FORM = "it has no 'a' or 'an' to put 'female' or 'male' behind, or says it already"


class Prompt(NamedTuple):
    """A prompt of an evaluation.

    Attributes:
        text: what the model is asked.
        set: TRAINED, HELD_OUT (other occupations, never rewarded), EXPLICIT (with a
            gender, which must stay obeyed) or GIVEN (on the command line).
        wanted: the gender an EXPLICIT prompt asks for, index into `GENDERS`; else None.
    """

    text: str
    set: str
    wanted: int | None = None


def build(
    trained: Sequence[str], sets: Sequence[str], given: Sequence[str] = ()
) -> tuple[tuple[Prompt, ...], list[str]]:
    """The prompts of the wanted sets, and a sentence for each that cannot be made.

    Args:
        trained: the run's prompts.
        sets: of `SETS`.
        given: further texts.
    """
    prompts = [Prompt(text, TRAINED) for text in trained if TRAINED in sets]
    notes = []
    if HELD_OUT in sets:
        found = held_out(trained)
        prompts += found
        if not found:
            notes.append(
                "No held-out prompts: no trained prompt has a noun to replace."
            )
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
    """A prompt with "female" and "male" before its noun.

    [] if that has no article, or the prompt says a gender itself.
    """
    place = _article(text)
    if place is None or GENDERED.search(text):
        return []
    before, after = text[: place.start()], text[place.end() :]
    return [
        Prompt(f"{before}a {gender} {after}", EXPLICIT, wanted)
        for wanted, gender in enumerate(GENDERS)
    ]


def _article(text: str) -> re.Match | None:
    """The article of who is shown: the one behind the last "of", else the first."""
    of = text.lower().rfind(" of ")
    return ARTICLE.search(text, of + 1) or ARTICLE.search(text)
