"""Which prompt each image of an epoch is drawn from, and what prompts may say."""

import collections
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ddpo_fair.errors import shown

LONGEST_PROMPT = 1000  # characters; CLIP reads 77 tokens
UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # Unicode's controls, surrogates, ends of lines

# The captions that the embedded model was trained on.
KNOWN_CAPTION = re.compile(r"photo of (the face of )?an? ((female|male) )?(?P<noun>.+)")


def draw(
    num_prompts: int,
    num_images: int,
    seed: int,
    epoch: int,
    num_explicit: int = 0,
    explicit_images: int = 0,
) -> np.ndarray:
    """Index of each image's prompt, int [N], in an order drawn anew every epoch.

    Every prompt has the same number of images, or one more where that does not divide;
    which ones have more is drawn too.

    Args:
        num_prompts: 0 to num_prompts - 1 are the prompts of the config.
        num_images: N, of the epoch.
        seed: of the run.
        epoch: its number.
        num_explicit: the following indices are prompts that say whom they want.
        explicit_images: how many of the N are of those.
    """
    random = np.random.default_rng([seed, zlib.crc32(b"prompts"), epoch])
    favoured = random.permutation(num_prompts)
    drawn = favoured[np.arange(num_images - explicit_images) % num_prompts]
    if explicit_images:
        explicit = num_prompts + random.permutation(num_explicit)
        turns = explicit[np.arange(explicit_images) % num_explicit]
        drawn = np.concatenate([drawn, turns])
    return random.permutation(drawn)


def fixed(num_prompts: int, num_images: int) -> np.ndarray:
    """Index of each evaluation image's prompt, int [N]: in turns."""
    return np.arange(num_images) % num_prompts


def problems(prompts: Sequence[str]) -> Iterator[str]:
    """A sentence for each prompt that no model could be given."""
    if not prompts:
        yield "prompts=() must hold at least one text."
    for index, prompt in enumerate(prompts):
        name = f"prompts[{index}]={shown(prompt)}"
        if all(unicodedata.category(c)[0] in "CZ" for c in prompt):
            yield f"{name} is empty; say what to draw."
            continue
        if len(prompt) > LONGEST_PROMPT:
            yield (
                f"{name} must have at most {LONGEST_PROMPT} characters; the text"
                " encoder reads about 75 words."
            )
        odd = [c for c in prompt if unicodedata.category(c) in UNSEEN]
        if odd:
            yield (
                f"{name} holds the control character {odd[0]!r}, which no reader sees;"
                " remove it."
            )
    most = collections.Counter(prompts).most_common(1)
    if most and most[0][1] > 1:
        yield f"prompts: {shown(most[0][0])} stands there twice; keep one."


def unknown(prompts: Sequence[str], nouns: Iterable[str]) -> list[str]:
    """A sentence for each prompt that the embedded model was never taught.

    Args:
        prompts: checked before to hold text.
        nouns: the occupations (and man, woman, person) that it knows.
    """
    known = {noun.lower(): noun for noun in nouns}
    listed = ", ".join(sorted(known.values(), key=str.lower))
    problems = []
    for prompt in prompts:
        match = KNOWN_CAPTION.fullmatch(" ".join(prompt.lower().split()))
        if match and match["noun"] in known:
            continue
        problems.append(
            f"The embedded model does not know prompts={shown(prompt)}. It draws"
            " 'photo of the face of a NOUN', with 'male' or 'female' before the noun if"
            f" you like; its nouns are {listed}."
            " For any other text choose another model, e.g. :sd15 after the config"
            " file."
        )
    return problems
