"""Skin tone and age of faces in images: repairing one attribute may break another.

The individual typology angle of dermatology (Chardon, Cretois and Hourseau 1991), from
the colours of cheeks, nose and chin. Light and make-up move it: it compares models
under the same prompts, it says nothing about a person.
"""

import numpy as np

from ddpo_fair.classifiers import typology

UNKNOWN = -1
AGES = ("under 30", "30 to 59", "60 and over")
AGE_LIMITS = (30.0, 60.0)

ENCODED = np.arange(256) / 255.0
LINEAR = np.where(
    ENCODED > 0.04045, ((ENCODED + 0.055) / 1.055) ** 2.4, ENCODED / 12.92
)  # of each value of a pixel


def typology_angles(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The typology angle of each face in degrees, about 90 (light) to -90, float [N].

    Of images uint8 [N, H, W, 3]; `boxes` float [N, 4] are the face's left, top, right
    and bottom as shares of the image. NaN in both where there is no face.
    """
    angles = np.full(len(images), np.nan)
    _, height, width, _ = images.shape
    for index, box in enumerate(boxes):
        if not np.isfinite(box).all():
            continue
        pixels = images[(index, *typology.skin(box, height, width))].reshape(-1, 3)
        if len(pixels):
            lightness, _, yellow = np.median(to_lab(pixels), axis=0)
            angles[index] = np.degrees(np.arctan2(lightness - 50, max(yellow, 1e-6)))
    return angles


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB pixels uint8 [N, 3], float [N, 3]."""
    ratios = LINEAR[pixels] @ typology.TO_XYZ.T / typology.WHITE
    small = ratios * (24389 / 27 / 116) + 16 / 116
    x, y, z = np.where(ratios > 216 / 24389, np.cbrt(ratios), small).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def tones(angles: np.ndarray) -> np.ndarray:
    """Index into `typology.TONES` of each angle, or UNKNOWN, int [N]."""
    classes = np.digitize(-angles, np.negative(typology.ANGLES))
    return np.where(np.isnan(angles), UNKNOWN, classes)


def age_groups(ages: np.ndarray) -> np.ndarray:
    """Index into `AGES` of each age in years, or UNKNOWN, int [N]."""
    return np.where(np.isnan(ages), UNKNOWN, np.digitize(ages, AGE_LIMITS))


def central_boxes(num_images: int) -> np.ndarray:
    """Where a face-prompt puts the face, without a detector: [N, 4]."""
    return np.tile(np.array(typology.CENTRAL_BOX), (num_images, 1))
