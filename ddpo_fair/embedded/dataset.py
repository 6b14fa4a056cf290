"""Captioned images of faces, each a function of a seed and an index."""

import numpy as np

from ddpo_fair.embedded import attributes, faces, occupations, people

# Kinds of captions and their shares.
FACE, GENDERED, PLAIN, FAR = "face", "gendered", "plain", "far"
KINDS = {FACE: 0.66, GENDERED: 0.19, PLAIN: 0.09, FAR: 0.06}
BENCHMARK_WEIGHT = 3.0  # the benchmark's occupations are shown this often
NUM_TRAIN = 24_000  # indices 0 to 23,999 of seed 0
FIRST_TEST, NUM_TEST = 1_000_000, 2_000  # held out: never trained on


def describe(kind: str, noun: str, male: bool) -> str:
    """The caption of a kind of image of a noun (an occupation, man, person...)."""
    if kind == FAR:
        return f"photo of {occupations.phrase(noun)}"
    if kind == GENDERED:
        noun = f"{'male' if male else 'female'} {noun}"
    return f"photo of the face of {occupations.phrase(noun)}"


def draw(seed: int, index: int) -> tuple[str, str, attributes.Face]:
    """Kind of caption, noun and face of one example."""
    rng = np.random.default_rng([seed, index])
    kind = list(KINDS)[rng.choice(len(KINDS), p=list(KINDS.values()))]
    if kind == PLAIN:
        noun = list(occupations.PLAIN)[rng.integers(len(occupations.PLAIN))]
        occupation, men = None, occupations.PLAIN[noun]
    else:
        weights = np.array(
            [
                BENCHMARK_WEIGHT if occupation.name in occupations.BENCHMARK else 1.0
                for occupation in occupations.ALL
            ]
        )
        chosen = rng.choice(len(weights), p=weights / weights.sum())
        occupation = occupations.ALL[chosen]
        noun, men = occupation.name, occupation.men
    male = bool(rng.random() < (0.5 if kind == GENDERED else men))
    clear = kind == GENDERED or noun in ("man", "woman")
    face = people.sample(rng, male, occupation, far=kind == FAR, clear=clear)
    return kind, noun, face


def example(seed: int, index: int, size: int = 64) -> dict:
    """One captioned image; the same for the same seed and index.

    Returns:
        image: uint8 [size, size, 3].
        caption: str, e.g. "photo of the face of a mechanical engineer".
        kind: str, a key of `KINDS`.
        occupation: str, also "person", "man" or "woman".
        male: bool, the label.
        masculinity: float in [0, 1]; above 1/2 if and only if male.
        age: float, 0 young to 1 old.
        skin_tone: float, 0 light to 7 dark.
        ancestry: float32 [3], African, Asian, European; sums to 1.
        view: str, near, far, turned away or out of frame.
    """
    kind, noun, face = draw(seed, index)
    return {
        "image": faces.render(face, size),
        "caption": describe(kind, noun, face.male),
        "kind": kind,
        "occupation": noun,
        "male": face.male,
        "masculinity": face.masculinity,
        "age": float(face.age),
        "skin_tone": float(face.tone),
        "ancestry": face.ancestry.astype(np.float32),
        "view": face.view,
    }
