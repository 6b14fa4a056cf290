"""The typology angle as a classifier of skin tone, which has learned nothing.

So no reward could have been fitted to its faults, and it has faults of its own: light
and make-up move the angle, and it takes whatever is in the middle of an image for skin.
The angle grows from dark to light skin (Chardon, Cretois and Hourseau 1991).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair.classifiers import classes, resize
from ddpo_fair.errors import UserError

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

# In degrees: light above the first (Chardon's "light" and "very light"), dark below
# the second ("brown", "dark"). They are of skin itself: in an image light falls on it,
# which in the embedded model's renders takes 12.5 degrees off (`docs`).
LIMITS = ANGLES[1], ANGLES[3]
# The logistic distribution whose standard deviation is 10 degrees: so much the angle
# of a render scatters about that of the skin it was drawn with, for its light.
WIDTH = 5.5


@dataclasses.dataclass(frozen=True)
class Typology:
    """In place of a `Classifier`, of light, medium and dark, without weights."""

    attributes: tuple[classes.Attribute, ...] = (classes.SKIN_TONE,)
    params: Any = dataclasses.field(default_factory=dict, compare=False)
    size: tuple[int, int] = (224, 224)  # that files are read in
    method: int = resize.BILINEAR

    def __post_init__(self) -> None:
        for one in self.attributes:
            if one.classes != classes.SKIN_TONE.classes:
                raise UserError(
                    f"classifier={classes.TYPOLOGY!r} classifies by"
                    f" {classes.SKIN_TONE.name}"
                    f" ({', '.join(classes.SKIN_TONE.classes)}), not by {one.name}"
                    f" ({', '.join(one.classes)})."
                )


def skin(box: tuple[float, ...], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a face's skin; the box is left, top, right, bottom."""
    left, top, right, bottom = box
    columns = left + (right - left) * np.array([LEFT, RIGHT])
    rows = top + (bottom - top) * np.array([TOP, BOTTOM])
    x0, x1 = np.clip(np.round(columns * width), 0, width).astype(int)
    y0, y1 = np.clip(np.round(rows * height), 0, height).astype(int)
    return slice(y0, y1), slice(x0, x1)


def probabilities(images: jax.Array) -> jax.Array:
    """Probabilities float32 [N, 3] of light, medium and dark, NaN of a broken image.

    An ordered logistic model of the angle: even odds at a limit, .27 and .73 at `WIDTH`
    degrees on either side of it. Images are float32 [N, H, W, 3] in [0, 1], a face in
    the middle; light is above the first of `LIMITS`, dark below the second.
    """
    angle = angles(images)
    light, not_dark = (
        jax.nn.sigmoid((angle - np.float32(limit)) / np.float32(WIDTH))
        for limit in LIMITS
    )
    return jnp.stack([light, not_dark - light, 1 - not_dark], axis=1)


def angles(images: jax.Array) -> jax.Array:
    """Typology angle of each image's middle, in 256 levels, degrees, float32 [N]."""
    _, height, width, _ = images.shape
    rows, columns = skin(CENTRAL_BOX, height, width)
    pixels = jnp.round(images[:, rows, columns] * 255) / 255
    linear = jnp.where(
        pixels > 0.04045, ((pixels + 0.055) / 1.055) ** 2.4, pixels / 12.92
    )
    to_ratios = np.float32(TO_XYZ / WHITE[:, None])
    ratios = jnp.einsum("nhwc,xc->xnhw", linear, to_ratios, precision="highest")
    small = ratios * (24389 / 27 / 116) + 16 / 116
    _, y, z = jnp.where(ratios > 216 / 24389, jnp.cbrt(ratios), small)
    lightness = jnp.median(116 * y - 16, axis=(1, 2))
    yellow = jnp.median(200 * (y - z), axis=(1, 2))
    return jnp.degrees(jnp.arctan2(lightness - 50, jnp.maximum(yellow, 1e-6)))
