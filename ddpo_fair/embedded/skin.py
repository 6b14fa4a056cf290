"""Skin, beard, lips, brows, lashes, eyes and glasses, as functions of the rest pose."""

import numpy as np

from ddpo_fair.embedded import attributes, clothes, hair, head

# sRGB, from light to dark; neither chalk nor black, which hide the features.
TONES = np.float32(
    [
        [238, 200, 170], [230, 187, 153], [218, 171, 136], [204, 154, 118],
        [180, 128, 94], [150, 103, 74], [122, 82, 59], [100, 67, 49],
    ]
) / 255  # fmt: skip
PUPIL_HEIGHT = 7.352  # dm, in the rest pose
INK = np.float32([0.10, 0.07, 0.07])
SCLERA = np.float32([0.95, 0.94, 0.92])


def tone(level: float) -> np.ndarray:
    """Skin colour float32 [3] for a level in [0, 7], light to dark."""
    below = min(int(level), len(TONES) - 2)
    return TONES[below] + (TONES[below + 1] - TONES[below]) * np.float32(level - below)


def paint(face: attributes.Face, points: np.ndarray) -> np.ndarray:
    """Colours float32 [M, 3] of a face's skin at rest points [M, 3]."""
    x, y, z = points.T
    side, front = np.abs(x), head.smooth(0.5, 0.9, z)
    base = tone(face.tone)
    blush = 0.5 * np.exp(-(((side - 0.36) / 0.16) ** 2 + ((y - 7.02) / 0.13) ** 2))
    blush += 0.25 * np.exp(-((x / 0.12) ** 2 + ((y - 7.0) / 0.1) ** 2))
    colours = base * (1 - blush[:, None] * np.float32([-0.02, 0.11, 0.10]))
    colours = beard(face, colours, base, x, y, z)
    colours = lips(face, colours, base, x, y, front)
    colours = brows(face, colours, x, y, front)
    colours = lashes(face, colours, x, y, front)
    covered = hair.coverage(face, points)
    if face.hair != hair.BALD:  # a soft hairline and its shadow
        shadow = 0.22 * head.smooth(-0.16, 0.0, covered) * (y > 6.7)
        colours = colours * (1 - shadow[:, None])
        roots = 0.9 * head.smooth(-0.03, 0.03, covered)
        colours = clothes.mix(colours, face.hair_colour * 0.9, roots)
    return colours.astype(np.float32)


def beard(
    face: attributes.Face,
    colours: np.ndarray,
    base: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
) -> np.ndarray:
    """Skin colours [M, 3] with beard and stubble, by face.beard and face.stubble."""
    side = np.abs(x)
    cheek = 6.86 + 0.10 * head.smooth(0.3, 0.5, side) + 0.30 * head.smooth(0.9, 0.55, z)
    jaw = head.smooth(0.06, -0.08, y - cheek) * head.smooth(6.08, 6.26, y)
    jaw = jaw * head.smooth(0.15, 0.45, z) * head.smooth(0.70, 0.64, side)
    moustache = np.exp(
        -((np.maximum(0, side - 0.19) / 0.07) ** 2 + ((y - 6.825) / 0.06) ** 2)
    )
    mouth = np.exp(-((side / 0.29) ** 4 + ((y - 6.66) / 0.14) ** 4))
    chin = mouth * head.smooth(6.56, 6.50, y) * 0.6
    area = np.clip(jaw * (1 - 0.9 * mouth) + chin + face.moustache * moustache, 0, 1)
    share = np.clip(area * (0.92 * face.beard + 0.5 * face.stubble), 0, 0.95)
    return clothes.mix(colours, face.brow_colour + base * 0.05, share)


def lips(
    face: attributes.Face,
    colours: np.ndarray,
    base: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    front: np.ndarray,
) -> np.ndarray:
    """Skin colours [M, 3] with the mouth: natural, or painted by face.lipstick."""
    side = np.abs(x)
    arch = 1 - (side / 0.245) ** 2
    upper = 6.695 + 0.085 * arch - 0.02 * np.exp(-((side / 0.03) ** 2))
    lower = 6.69 - 0.135 * arch
    inside = head.smooth(-0.015, 0.015, upper - y) * head.smooth(
        -0.015, 0.015, y - lower
    )
    natural = base * np.float32([0.88, 0.66, 0.64])
    bright = face.lip_colour * (0.7 + 0.3 * base.mean() / 0.7)
    colour = natural + (bright - natural) * face.lipstick
    colours = clothes.mix(colours, colour, inside * (side < 0.25) * front * 0.92)
    line = np.exp(-(((y - 6.688) / 0.012) ** 2)) * (side < 0.24) * front
    return colours * (1 - 0.5 * line[:, None])


def brows(
    face: attributes.Face,
    colours: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    front: np.ndarray,
) -> np.ndarray:
    """Skin colours [M, 3] with brows, as thick as face.brow in [0, 1] says."""
    along = (np.abs(x) - 0.11) / 0.39
    inner = np.clip(along, 0, 1)
    height = 7.485 + 0.085 * np.sin(inner * 2.2) - 0.03 * inner**2
    height = height + 0.035 * (1 - face.brow)
    thickness = (0.020 + 0.036 * face.brow) * (1 - 0.5 * inner**1.5)
    share = np.exp(-(np.abs((y - height) / thickness) ** 3)) * front
    share = share * head.smooth(-0.06, 0.03, along) * head.smooth(1.06, 0.9, along)
    share = np.clip(share * (0.6 + 0.4 * face.brow), 0, 0.95)
    return clothes.mix(colours, face.brow_colour, share)


def lashes(
    face: attributes.Face,
    colours: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    front: np.ndarray,
) -> np.ndarray:
    """Skin colours [M, 3] with lids, lashes and eye shadow, by face.liner."""
    across = (np.abs(x) - 0.295) / 0.145
    arch = np.sqrt(np.clip(1 - across**2, 0, 1))
    upper, lower = 7.350 + 0.062 * arch, 7.345 - 0.05 * arch
    width = 0.014 + 0.016 * face.liner
    share = np.exp(-(((y - upper - 0.010) / width) ** 2)) * (np.abs(across) < 1.12)
    share = share * (0.35 + 0.6 * face.liner)
    low = np.exp(-(((y - lower) / 0.012) ** 2)) * (np.abs(across) < 1.05)
    share = np.clip((share + low * (0.12 + 0.3 * face.liner)) * front, 0, 0.95)
    lid = np.exp(-((across / 0.95) ** 2 + ((y - 7.435) / 0.04) ** 2)) * front
    colours = clothes.mix(colours, face.lip_colour * 0.55, 0.4 * face.liner * lid)
    return clothes.mix(colours, INK, share)


def eyes(face: attributes.Face, points: np.ndarray) -> np.ndarray:
    """Colours float32 [M, 3] of eyeballs at rest points [M, 3]."""
    x, y, _ = points.T
    distance = np.hypot(np.abs(x) - 0.29, y - PUPIL_HEIGHT)
    colours = np.broadcast_to(SCLERA, (len(x), 3))
    colours = clothes.mix(
        colours, face.iris_colour, head.smooth(0.088, 0.076, distance)
    )
    return clothes.mix(colours, INK * 0.5, head.smooth(0.044, 0.034, distance))


def glasses(
    face: attributes.Face, colours: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Colours [M, 3] of skin and eyes with the frame of glasses drawn on them."""
    if not face.glasses:
        return colours
    x, y, z = points.T
    side = np.abs(x)
    rim = ((np.abs(side - 0.32) / 0.225) ** 3 + (np.abs(y - 7.335) / 0.175) ** 3) ** (
        1 / 3
    )
    frame = np.exp(-(((rim - 1) / 0.10) ** 2)) * head.smooth(0.6, 0.8, z)
    bridge = (
        clothes.between(side, 0.0, 0.11)
        * np.exp(-(((y - 7.38) / 0.022) ** 2))
        * (z > 1)
    )
    temple = (
        clothes.between(side, 0.53, 2.0)
        * np.exp(-(((y - 7.38) / 0.025) ** 2))
        * (z > 0.3)
    )
    share = np.clip(frame + bridge + temple, 0, 1) * 0.92
    return clothes.mix(colours, face.glasses_colour, share)
