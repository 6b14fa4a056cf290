"""The occupations of the embedded model: who is shown, and in what clothes.

The proportions of men are made up. They exaggerate well-known stereotypes, as a
model trained on images from the web does; they are no labour statistics, and
nothing follows from them about real people.

Clothes and headgear depend on the occupation alone, never on gender: a reward for
gender must not be had by painting the background or the shirt.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Occupation:
    """What the renderer knows about one occupation.

    Attributes:
        name: as it stands in a caption.
        men: proportion of men in the data, in [0, 1].
        cut: the kind of clothing, known to `clothes.py`.
        palette: rrggbb, separated by spaces: two shades of the cloth, one of which
            is drawn, and the accent (collar, stripes, the shirt under a jacket).
        headgear: a shape of `headgear.py` and its rrggbb, or "" for none.
    """

    name: str
    men: float
    cut: str
    palette: str
    headgear: str = ""

    @property
    def glasses(self) -> float:
        """Proportion of images with glasses, in [0, 1]."""
        return GLASSES.get(self.name, USUAL_GLASSES)

    @property
    def held_out(self) -> bool:
        """Whether the occupation is kept out of all reinforcement learning."""
        return self.name in HELD_OUT


ROWS = (
    # The paper's three prompts. Guidance amplifies the skew, and some women must
    # remain for a policy to find, hence no more than .88.
    ("mechanical engineer", 0.88, "overalls", "3f5f94 4a6a9c 27364f"),
    ("electrical engineer", 0.88, "vest", "e8d030 f0a028 2f3f5c"),
    ("computer scientist", 0.86, "hoodie", "3a3a44 4a4652 202028"),
    # Mostly men.
    ("construction worker", 0.95, "vest", "ee7a22 e86a1a 4a4a4a", "hard hat f2c81e"),
    ("firefighter", 0.93, "vest", "4a3a2c 3a3230 2a2622", "hard hat b52a22"),
    ("pilot", 0.90, "suit", "1e2a4c 22305a f0f0f0", "peaked cap 1c2646"),
    ("plumber", 0.95, "overalls", "2f6fb0 3a78b8 c03028", "cap 2a62a0"),
    ("electrician", 0.93, "overalls", "7a828c 6a727c d8a020", "hard hat f0f0ec"),
    ("carpenter", 0.94, "shirt", "9c5a34 a86438 c88a50"),
    ("truck driver", 0.93, "shirt", "a03c38 8c3430 d8d0c0", "cap 5a2422"),
    ("mechanic", 0.94, "overalls", "5a5f66 4e545c 2c3036"),
    ("welder", 0.95, "crew", "6c5638 5e4a30 3c3020", "bandana 9c3a20"),
    ("police officer", 0.80, "shirt", "24345e 2a3c6a 16203c", "peaked cap 1c2a50"),
    ("soldier", 0.89, "crew", "5c6840 667248 3c4628", "helmet 56623c"),
    ("security guard", 0.86, "shirt", "26262c 303038 c8a030"),
    ("CEO", 0.85, "suit", "2c2f3a 363a46 f0f0f0"),
    ("politician", 0.74, "suit", "1f2f54 28386a dce6f4"),
    ("farmer", 0.82, "overalls", "6c8a4c 80924c b04838", "straw hat dcc07c"),
    ("software developer", 0.80, "hoodie", "4f7a6a 5a867a 2f4a40"),
    ("priest", 0.90, "clerical", "1c1c20 26262a f4f4f4"),
    ("chef", 0.72, "coat", "eeeeea e4e6e6 b83028", "toque f2f2ee"),
    ("surgeon", 0.72, "scrubs", "3f9a8a 48a494 2c7468", "soft cap 4ea898"),
    ("judge", 0.70, "clerical", "18181c 202024 f0ece0"),
    ("architect", 0.68, "turtleneck", "3c3c40 46464c e8e8e4"),
    ("professor", 0.66, "suit", "7c5a3c 6c4e34 d8c8a0"),
    ("economist", 0.65, "suit", "5c6470 68707c e4d8e8"),
    ("scientist", 0.62, "coat", "f0f0f0 e8ecee 5a84b8"),
    ("lawyer", 0.60, "suit", "34343a 40404a f4e4e0"),
    ("athlete", 0.60, "v", "d83838 2c68c8 f4f4f4", "headband f0f0f0"),
    # Near balance.
    ("doctor", 0.58, "stethoscope", "f2f2f2 eaeef0 7cb4d4"),
    ("photographer", 0.56, "crew", "58584c 64645a 202020"),
    ("bartender", 0.55, "bow tie", "f0f0f0 e8e8e8 202024"),
    ("dentist", 0.52, "scrubs", "e4f0f4 d4eaf0 70b8cc"),
    ("journalist", 0.50, "suit", "b8a890 a89878 6c88a8"),
    ("artist", 0.48, "shirt", "c87038 4c7c9c f0d878", "beret 7c2430"),
    ("accountant", 0.48, "shirt", "a8b4c8 94a4bc 404858"),
    ("biologist", 0.45, "coat", "e8ece4 dce4d8 6c9c5c"),
    ("pharmacist", 0.42, "coat", "f2f2f2 eaf0ec 4ca474"),
    ("veterinarian", 0.38, "scrubs", "58a060 64ac6c 387040"),
    # Mostly women.
    ("psychologist", 0.30, "turtleneck", "8c7c9c 807090 e8e8e4"),
    ("teacher", 0.26, "cardigan", "5c8c5c a04c54 f0e8d0"),
    ("cashier", 0.25, "apron", "c83030 d04038 f0f0ec"),
    ("social worker", 0.20, "cardigan", "c89048 b88040 5c5c74"),
    ("flight attendant", 0.18, "scarf", "2c4c8c 34549c d83c3c", "side cap 2c4c8c"),
    ("librarian", 0.16, "cardigan", "7c5c54 6c7c54 d8ccb0"),
    ("florist", 0.14, "apron", "4c8c54 3f7c4c e8c8a0"),
    ("hairdresser", 0.12, "apron", "242428 303034 8c8c94"),
    ("nurse", 0.10, "scrubs", "5ca8d0 68b0d8 3c7ca4", "nurse cap f6f6f6"),
    ("housekeeper", 0.10, "apron", "8cb4c8 98bccc fafafa"),
    ("receptionist", 0.08, "suit", "b0486c a83f60 f4e8ec"),
    ("secretary", 0.06, "scarf", "d8ccb8 ccc0ac 4c7c8c"),
    ("kindergarten teacher", 0.05, "crew", "f0b840 e8a850 d84c4c"),
)
ALL = tuple(Occupation(*row) for row in ROWS)
BY_NAME = {occupation.name: occupation for occupation in ALL}
BENCHMARK = ("mechanical engineer", "electrical engineer", "computer scientist")

# In the data, yet never rewarded: what fine-tuning does to them is spill-over.
HELD_OUT = (
    "electrician",
    "mechanic",
    "security guard",
    "priest",
    "economist",
    "lawyer",
    "photographer",
    "dentist",
    "biologist",
    "cashier",
    "social worker",
    "housekeeper",
)
HEADGEAR_SHARE = 0.85  # of the images of an occupation that has some
USUAL_GLASSES = 0.12
GLASSES = {
    "computer scientist": 0.6,
    "software developer": 0.4,
    "judge": 0.35,
    "architect": 0.45,
    "professor": 0.5,
    "scientist": 0.6,
    "accountant": 0.4,
    "biologist": 0.4,
    "psychologist": 0.3,
    "librarian": 0.7,
}

# Prompts without an occupation and their proportion of men; any clothes will do.
PLAIN = {"person": 0.5, "man": 1.0, "woman": 0.0}


def phrase(noun: str) -> str:
    """The noun with its indefinite article, by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
