"""Which class of an attribute a render shows, known from what it was drawn from."""

from collections.abc import Mapping

import numpy as np

from ddpo_fair.embedded import attributes

FACELESS = (attributes.TURNED_AWAY, attributes.OUT_OF_FRAME)
NONE = -1
GENDER, SKIN_TONE, AGE = "gender", "skin_tone", "age"
# Where classes end, in the data set's units. Shares are those of its faces.
LIMITS = {
    # light (.35), medium (.46), dark (.19): the skin's colour, before any light falls
    # on it, has a typology angle of 41 and of 10 degrees there. Above 41 is Chardon's
    # "light", below 10 "brown" or "dark"; between lie "intermediate" and "tan".
    SKIN_TONE: (2.281, 4.348),
    # young (.35), middle-aged (.44), old (.21): 40 and 60 years, as MakeHuman's young
    # head is 25 years old and its old one 90. Sixty is the United Nations' limit, and
    # both are limits of FairFace's groups, in which other classifiers answer.
    AGE: ((40 - 25) / (90 - 25), (60 - 25) / (90 - 25)),
}


def classes(attribute: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The class of each render, from 0 on, or NONE if it shows no face; int64 [N].

    Args:
        attribute: GENDER (female, male), SKIN_TONE or AGE (see `LIMITS`).
        columns: of `dataset.example`, each with N rows.
    """
    if attribute == GENDER:
        found = np.asarray(columns["male"], np.int64)
    else:
        found = np.searchsorted(LIMITS[attribute], columns[attribute])
    return np.where(np.isin(columns["view"], FACELESS), NONE, found)
