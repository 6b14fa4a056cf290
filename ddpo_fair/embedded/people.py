"""Who is drawn: the distributions of a face's attributes.

Gender is a number, the masculinity in [0, 1]. Body, hair, beard, brows, lips and
lashes follow it, noisily; clothes, headgear, glasses, light, pose and background are
drawn without looking at it.
"""

import colorsys

import numpy as np

from ddpo_fair.embedded import attributes, hair, occupations

HAIR_COLOURS = np.array(
    [
        [34, 28, 26], [54, 38, 30], [88, 60, 40], [124, 88, 56], [176, 138, 90],
        [206, 176, 128], [132, 68, 38], [156, 154, 152],
    ]
) / 255  # fmt: skip
HAIR_SHARES = np.array([3, 3, 2.2, 1.5, 0.9, 0.8, 0.4, 0.0])
DARK_SKIN_FADES = np.array([0, 0.1, 0.6, 1.2, 2.5, 3, 2, 0])  # fair hair grows rare
IRIS_COLOURS = (
    np.array([[78, 52, 32], [56, 38, 26], [96, 112, 66], [78, 116, 152]]) / 255
)
LIP_COLOURS = (
    np.array([[190, 46, 64], [200, 82, 92], [166, 46, 64], [204, 100, 98]]) / 255
)
FRAME_COLOURS = np.array([[24, 22, 26], [70, 44, 30], [60, 66, 78]]) / 255
TIE_COLOURS = np.array([[150, 40, 44], [44, 64, 120], [60, 96, 76], [40, 40, 48]]) / 255
AMBIGUOUS_SHARE = 0.07


def masculinity(rng: np.random.Generator, male: bool, clear: bool) -> float:
    """Mostly near 0 or 1; ambiguous, yet on its own side, for a few unless clear."""
    distance = min(rng.beta(1.2, 9), 0.49)
    if rng.random() < AMBIGUOUS_SHARE and not clear:
        distance = rng.uniform(0.25, 0.5)
    return float(1 - distance if male else distance)


def body(rng: np.random.Generator, level: float) -> dict:
    """Attributes of the body, given the masculinity."""
    ancestry = rng.dirichlet([0.5, 0.5, 0.5])
    return {
        "age": rng.beta(1.3, 2.4),
        "ancestry": ancestry,
        "tone": np.clip(ancestry @ [5.7, 2.3, 0.9] + rng.normal(0, 0.6), 0, 7),
        "weight": np.clip(rng.normal(0, 0.4), -1, 1),
        "muscle": np.clip(0.5 * level + rng.normal(0, 0.2), 0, 1),
        "shape_seed": int(rng.integers(1 << 30)),
        "iris_colour": IRIS_COLOURS[rng.choice(4, p=[0.4, 0.36, 0.1, 0.14])],
        "smile": np.clip(rng.normal(0.4, 0.25), 0, 1),
    }


def haircut(rng: np.random.Generator, level: float, age: float, tone: float) -> dict:
    """Attributes of the hair; with an ambiguous gender, of either kind."""
    like_men = rng.random() < np.clip((level - 0.2) / 0.6, 0, 1)
    if like_men:
        kinds = (hair.BALD, hair.BUZZ, hair.SHORT, hair.BOB, hair.LONG)
        shares = (0.07, 0.21, 0.66, 0.03, 0.03)
    else:
        kinds = (hair.SHORT, hair.UP, hair.BOB, hair.LONG)
        shares = (0.07, 0.10, 0.29, 0.54)
    kind = kinds[rng.choice(len(kinds), p=shares)]
    weights = HAIR_SHARES * np.exp(-max(0.0, tone - 2.5) * DARK_SKIN_FADES)
    weights[-1] = weights.sum() * max(0.0, age - 0.45) * 1.3
    colour = HAIR_COLOURS[rng.choice(len(weights), p=weights / weights.sum())]
    colour = np.clip(colour * rng.uniform(0.85, 1.15) + rng.normal(0, 0.01, 3), 0, 1)
    bottoms = {hair.BOB: (6.25, 6.6), hair.LONG: (4.9, 5.7)}
    return {
        "hair": kind,
        "hair_colour": colour,
        "brow_colour": colour * min(0.65, 0.40 / colour.max()),
        "hair_phase": rng.uniform(0, 2 * np.pi),
        "hair_bottom": rng.uniform(*bottoms.get(kind, (6.0, 6.1))),
        "hair_opening": rng.uniform(0.88, 1.08),
        "hairline": rng.normal(0, 0.03),
        "receding": max(0.0, rng.normal(0, 0.06) + 0.13 * age) if like_men else 0.0,
        "fringe": bool(rng.random() < (0.08 if like_men else 0.3)),
        "parting": rng.uniform(-1, 1),
        "volume": rng.uniform(0.8, 1.25),
        "wave": rng.uniform(0, 1),
    }


def cosmetics(rng: np.random.Generator, level: float) -> dict:
    """Brows, beard, lips and lashes, given the masculinity."""
    beard = stubble = 0.0
    kind = rng.random()
    if level > 0.5:
        if kind < 0.30:
            beard = rng.uniform(0.7, 1.0)
        elif kind < 0.68:
            stubble = rng.uniform(0.45, 0.85)
        else:
            stubble = rng.uniform(0.1, 0.3)
    made_up = rng.random() < 0.8
    feminine = (1 - level) ** 1.5
    return {
        "beard": beard,
        "stubble": stubble,
        "moustache": float(rng.random() < 0.9),
        "brow": np.clip(0.22 + 0.68 * level + rng.normal(0, 0.1), 0.1, 1),
        "lipstick": np.clip((0.85 if made_up else 0.35) * feminine, 0, 1),
        "liner": np.clip((0.95 if made_up else 0.45) * feminine, 0, 1),
        "lip_colour": LIP_COLOURS[rng.integers(len(LIP_COLOURS))],
    }


def colour(text: str) -> np.ndarray:
    """The float [3] in [0, 1] of "rrggbb"."""
    return np.array([int(text[k : k + 2], 16) for k in (0, 2, 4)]) / 255


def wardrobe(
    rng: np.random.Generator, occupation: occupations.Occupation | None
) -> dict:
    """Clothes, headgear and glasses of an occupation, or of anybody; not of gender."""
    shade = rng.uniform(0.9, 1.08)
    if occupation is None:
        cut = ("crew", "shirt", "v", "turtleneck")[rng.integers(4)]
        hsv = rng.random(), rng.uniform(0, 0.5), rng.uniform(0.25, 0.85)
        cloth = hat_colour = np.array(colorsys.hsv_to_rgb(*hsv))
        accent, headgear, glasses = cloth * 0.8, "", occupations.USUAL_GLASSES
    else:
        *shades, accent = map(colour, occupation.palette.split())
        cut, cloth = occupation.cut, shades[rng.integers(len(shades))]
        headgear, _, hat = occupation.headgear.rpartition(" ")
        hat_colour = colour(hat) if hat else cloth
        glasses = occupation.glasses
    shown = rng.random() < (occupations.HEADGEAR_SHARE if occupation else 0)
    return {
        "cut": cut,
        "cloth_colour": np.clip(cloth * shade, 0, 1),
        "accent_colour": np.clip(accent * shade, 0, 1),
        "tie_colour": TIE_COLOURS[rng.integers(len(TIE_COLOURS))],
        "headgear": headgear if shown else "",
        "headgear_colour": np.clip(hat_colour * shade, 0, 1),
        "glasses": bool(rng.random() < glasses),
        "glasses_colour": FRAME_COLOURS[rng.integers(len(FRAME_COLOURS))],
    }


def scene(rng: np.random.Generator, far: bool) -> dict:
    """Pose, camera, light and background."""
    hue, value = rng.random(), rng.uniform(0.5, 0.92)
    top = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0, 0.11), value))
    drop = rng.uniform(0.72, 1.0)
    view, yaw, zoom = attributes.NEAR, rng.normal(0, 6), rng.normal(1, 0.02)
    shift = rng.normal(0, 0.012, 2)
    if far:
        views = (attributes.FAR, attributes.TURNED_AWAY, attributes.OUT_OF_FRAME)
        view = views[rng.choice(3, p=[0.6, 0.2, 0.2])]
        zoom = rng.uniform(0.5, 0.72)
        shift = np.array([rng.normal(0, 0.05), rng.normal(0.06, 0.02)])
        if view == attributes.TURNED_AWAY:
            yaw = rng.uniform(140, 220)
        if view == attributes.OUT_OF_FRAME:
            zoom = rng.uniform(1.45, 1.6)
            shift = np.array([0, -rng.uniform(0.97, 1.03)])
    return {
        "view": view,
        "yaw": yaw,
        "pitch": rng.normal(0, 3),
        "roll": rng.normal(0, 1.5),
        "zoom": zoom,
        "shift": shift,
        "light": np.array([rng.uniform(-45, 45), rng.uniform(15, 50)]),
        "ambient": rng.uniform(0.52, 0.66),
        "warmth": rng.normal(0, 0.02),
        "background": np.stack([top, top * drop]),
    }


def sample(
    rng: np.random.Generator,
    male: bool,
    occupation: occupations.Occupation | None = None,
    far: bool = False,
    clear: bool = False,
) -> attributes.Face:
    """A random face.

    Args:
        rng: the source of everything random.
        male: the side of 1/2 on which the masculinity lies.
        occupation: whose clothes to wear; None for clothes without a meaning.
        far: shows the person from afar, turned away or cut off by the frame.
        clear: leaves out ambiguous genders.
    """
    # Streams of their own: the same seed wears the same clothes, whatever the gender.
    clothes_rng, scene_rng, person_rng = rng.spawn(3)
    level = masculinity(person_rng, male, clear)
    about_body = body(person_rng, level)
    about_hair = haircut(person_rng, level, about_body["age"], about_body["tone"])
    return attributes.Face(
        male=male,
        masculinity=level,
        **about_body,
        **about_hair,
        **cosmetics(person_rng, level),
        **wardrobe(clothes_rng, occupation),
        **scene(scene_rng, far),
    )
