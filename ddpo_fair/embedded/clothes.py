"""Clothes: colours of the body below the neckline, as functions of the rest pose.

Rest coordinates in dm: the neck's root at y = 6.0, shoulders from |x| = 0.5; the
image of a face ends near y = 5.7 and shows |x| < 1.25.
"""

import typing

import numpy as np

from ddpo_fair.embedded import attributes, head

PAPER = np.float32([0.94, 0.94, 0.92])
RUBBER = np.float32([0.12, 0.12, 0.16])


class Place(typing.NamedTuple):
    """Where a point of the clothes lies; every field is float [M]."""

    side: np.ndarray  # |x|, dm
    y: np.ndarray  # height, dm
    front: np.ndarray  # 1 on the chest, 0 on the back
    collar: np.ndarray  # height of the collar at this |x|, dm
    opening: np.ndarray  # 1 in the V of an open jacket


def below(edge: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coverage in [0, 1]: 1 below the edge, soft over 0.04 dm."""
    return head.smooth(0.02, -0.02, y - edge)


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Coverage in [0, 1] of low < values < high with soft ends of 0.03 dm."""
    return head.smooth(low - 0.015, low + 0.015, values) * head.smooth(
        high + 0.015, high - 0.015, values
    )


def mix(colours: np.ndarray, colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours [M, 3] painted over with a colour by share [M]."""
    return colours + (colour - colours) * share[:, None]


def collar_height(side: np.ndarray) -> np.ndarray:
    """Height [M] in dm of a round collar at distance side [M] from the middle."""
    return 6.02 + 0.16 * head.smooth(0.1, 0.6, side)


def neckline(cut: str, side: np.ndarray) -> np.ndarray:
    """Height [M] in dm of the upper edge of the clothes."""
    collar = collar_height(side)
    v_shape = collar - 0.42 * head.smooth(0.36, 0.0, side)
    edges = {
        "turtleneck": 6.24 + 0 * side,
        "clerical": 6.17 + 0 * side,
        "shirt": collar + 0.08 - 0.22 * head.smooth(0.2, 0.0, side),
        "suit": collar + 0.10,
        "vest": collar + 0.06,
        "bow tie": collar + 0.10,
        "coat": collar + 0.06,
        "stethoscope": collar + 0.06,
        "hoodie": collar + 0.10,
        "scrubs": v_shape + 0.04,
        "v": v_shape,
        "cardigan": v_shape + 0.10,
        "scarf": collar + 0.16,
        "overalls": collar + 0.05,
        "apron": collar + 0.03,
    }
    return edges.get(cut, collar)


def paint(face: attributes.Face, colours: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours [M, 3] of skin with the clothes painted over, at rest points [M, 3]."""
    x, y, z = points.T
    side = np.abs(x)
    front = head.smooth(0.1, 0.3, z)
    half_width = 0.06 + 0.5 * np.clip(y - 5.55, 0, 1)
    opening = head.smooth(0.02, -0.02, side - half_width) * front
    place = Place(side, y, front, collar_height(side), opening)
    return mix(colours, cloth(face, place), below(neckline(face.cut, side), y))


def cloth(face: attributes.Face, place: Place) -> np.ndarray:
    """Colours [M, 3] of the clothes, as if they covered everything."""
    main, accent = face.cloth_colour, face.accent_colour
    side, y, front, collar, _ = place
    plain = np.broadcast_to(main, (len(side), 3)).astype(np.float32)
    match face.cut:
        case "suit" | "coat" | "stethoscope" | "cardigan":
            return jacket(face, place, plain)
        case "vest" | "overalls" | "apron":
            return workwear(face, place, plain)
        case "bow tie":
            bow = between(side, -1, 0.22) * between(y, 5.92, 6.06) * front
            braces = head.smooth(0.42, 0.46, side)
            return mix(mix(plain, accent, braces), accent, bow)
        case "hoodie":
            strings = between(side, 0.12, 0.17) * below(collar, y) * front
            return mix(
                mix(plain, accent, between(y - collar, -0.05, 0.2)), PAPER, strings
            )
        case "clerical":
            tab = between(side, -1, 0.13) * between(y, 6.0, 6.2) * front
            return mix(plain, accent, tab)
        case "scarf":
            scarf = below(collar + 0.2, y) * head.smooth(-0.16, -0.12, y - collar)
            return mix(plain, accent, scarf)
        case "scrubs" | "v" | "shirt" | "crew":
            hem = head.smooth(-0.11, -0.08, y - neckline(face.cut, side))
            return mix(plain, accent, hem)
        case "turtleneck":
            return mix(plain, main * 0.8, between(y, 6.06, 6.10))
    raise AssertionError(face.cut)


def jacket(face: attributes.Face, place: Place, plain: np.ndarray) -> np.ndarray:
    """Colours [M, 3] of an open jacket: shirt in the V, lapels, tie or tube."""
    side, y, front, collar, opening = place
    lapel = side - 0.06 - 0.5 * (y - 5.55)
    colours = mix(plain, face.accent_colour, opening)
    if face.cut == "suit":
        tie = between(side, -1, 0.085) * below(collar, y) * front
        colours = mix(colours, face.tie_colour, tie)
        return mix(colours, face.cloth_colour * 0.7, between(lapel, 0, 0.05) * front)
    colours = mix(colours, face.cloth_colour * 0.72, between(lapel, 0, 0.04) * front)
    if face.cut == "stethoscope":
        tube = between(side - 0.42 - 0.25 * (y - 5.9), -0.045, 0.045) * front
        colours = mix(colours, RUBBER, tube)
    return colours


def workwear(face: attributes.Face, place: Place, plain: np.ndarray) -> np.ndarray:
    """Colours [M, 3] of a vest with reflecting stripes, of overalls or an apron."""
    side, y, front, collar, _ = place
    accent = face.accent_colour
    if face.cut == "vest":
        colours = mix(plain, accent, between(side, -1, 0.24) * front)
        return mix(colours, PAPER * 0.92, between(side, 0.52, 0.68) * front)
    if face.cut == "overalls":
        colours = mix(plain, accent, between(side, 0.42, 0.66) * front)
        return mix(colours, face.cloth_colour * 0.72, between(y - collar, -0.06, 0.06))
    colours = mix(plain, accent, between(side, 0.26, 0.42) * front)
    bib = between(side, -1, 0.42) * below(5.84 + 0 * y, y) * front
    return mix(colours, accent, bib)
