"""The individual typology angle of dermatology: what it is made of.

It grows from dark to light skin (Chardon, Cretois and Hourseau 1991).
"""

import numpy as np

# Chardon's names and the angles, in degrees, above which they hold.
TONES = ("very light", "light", "intermediate", "tan", "brown", "dark")
ANGLES = (55.0, 41.0, 28.0, 10.0, -30.0)

# The part of a face's box that is mostly skin: below the eyes, within the cheeks.
LEFT, RIGHT, TOP, BOTTOM = 0.25, 0.75, 0.40, 0.62
CENTRAL_BOX = (0.25, 0.25, 0.75, 0.75)  # of a face-prompt's image, without detector

# IEC 61966-2-1 (sRGB) to CIE XYZ, D65 white
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def skin(box: tuple[float, ...], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a face's skin; the box is left, top, right, bottom."""
    left, top, right, bottom = box
    columns = left + (right - left) * np.array([LEFT, RIGHT])
    rows = top + (bottom - top) * np.array([TOP, BOTTOM])
    x0, x1 = np.clip(np.round(columns * width), 0, width).astype(int)
    y0, y1 = np.clip(np.round(rows * height), 0, height).astype(int)
    return slice(y0, y1), slice(x0, x1)
