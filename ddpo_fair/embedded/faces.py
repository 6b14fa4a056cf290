"""Images of faces, drawn from their attributes: the data of the embedded model."""

import numpy as np

from ddpo_fair.embedded import (
    attributes,
    clothes,
    hair,
    head,
    headgear,
    rasterizer,
    skin,
)

SUPERSAMPLING = 3
FIELD_OF_VIEW = 2.50  # height and width of an image at zoom 1, dm
PIVOT = np.float32([0, 7.2, 0.4])  # the head turns about this point
CENTRE = 7.22  # height in the middle of the image, dm


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix [3, 3] for angles in degrees."""
    (a, b, c) = np.deg2rad([yaw, pitch, roll])
    turn = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    nod = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    tilt = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return (np.array(tilt) @ nod @ turn).astype(np.float32)


def join(surfaces: list[head.Surface]) -> head.Surface:
    """One surface out of many."""
    offsets = np.cumsum([0] + [len(surface.positions) for surface in surfaces])
    return head.Surface(
        positions=np.concatenate([surface.positions for surface in surfaces]),
        normals=np.concatenate([surface.normals for surface in surfaces]),
        rest=np.concatenate([surface.rest for surface in surfaces]),
        mask=np.concatenate([surface.mask for surface in surfaces]),
        triangles=np.concatenate(
            [
                surface.triangles + offset
                for surface, offset in zip(surfaces, offsets, strict=False)
            ]
        ).astype(np.int32),
        kind=np.concatenate(
            [np.broadcast_to(s.kind, len(s.positions)) for s in surfaces]
        ),
    )


def project(
    face: attributes.Face, surface: head.Surface, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Depth [S, S] and normal, rest point, kind and mask [S, S, 8] of each pixel."""
    turn = rotation(face.yaw, face.pitch, face.roll)
    turned = (surface.positions - PIVOT) @ turn.T + PIVOT
    scale = size / FIELD_OF_VIEW * face.zoom
    screen = np.stack(
        [
            turned[:, 0] * scale + size * (0.5 + face.shift[0]),
            (CENTRE - turned[:, 1]) * scale + size * (0.5 + face.shift[1]),
            turned[:, 2],
        ],
        1,
    ).astype(np.float32)
    carried = np.concatenate(
        [
            surface.normals @ turn.T,
            surface.rest,
            surface.kind[:, None],
            surface.mask[:, None],
        ],
        1,
    ).astype(np.float32)
    return rasterizer.draw(screen, carried, surface.triangles, size)


def paint(face: attributes.Face, points: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Colours float32 [M, 3] before lighting of rest points [M, 3] of given kinds."""
    colours = np.zeros_like(points)
    of = {kind: kinds == kind for kind in range(5)}
    body, eyes = points[of[head.BODY]], points[of[head.EYES]]
    painted = clothes.paint(face, skin.paint(face, body), body)
    colours[of[head.BODY]] = skin.glasses(face, painted, body)
    colours[of[head.EYES]] = skin.glasses(face, skin.eyes(face, eyes), eyes)
    colours[of[head.HAIR]] = hair.colours(face, points[of[head.HAIR]])
    colours[of[head.HEADGEAR]] = face.headgear_colour
    colours[of[head.TRIM]] = face.headgear_colour * 0.72
    return colours


def light(
    face: attributes.Face,
    colours: np.ndarray,
    normals: np.ndarray,
    points: np.ndarray,
    kinds: np.ndarray,
) -> np.ndarray:
    """Colours [M, 3] after lighting, for unit normals and rest points [M, 3]."""
    azimuth, elevation = np.deg2rad(face.light)
    towards = np.float32(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ]
    )
    key = np.clip((normals @ towards + 0.25) / 1.25, 0, 1)
    fill = np.clip(normals @ np.float32([-0.4 * np.sign(azimuth), 0.3, 0.87]), 0, 1)
    strength = face.ambient * (0.8 + 0.2 * normals[:, 1])
    strength = strength + (1.0 - face.ambient) * key + 0.08 * fill
    y = points[:, 1]
    on_body = kinds == head.BODY
    chin = head.smooth(6.45, 6.2, y) * head.smooth(5.85, 6.2, y) * on_body
    strength = strength * (1 - 0.25 * chin)
    halfway = towards + np.float32([0, 0, 1])
    shine = np.clip(normals @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 20
    shine = shine * np.float32([0.06, 0.0, 0.10, 0.12, 0.12])[kinds]
    tint = np.float32([1 + face.warmth, 1, 1 - face.warmth])
    return colours * strength[:, None] * tint + shine[:, None]


def render(face: attributes.Face, size: int = 64) -> np.ndarray:
    """The image of a face, uint8 [size, size, 3].

    The same on every call; on another processor, whose matrix products round in
    another order, a value may differ by one.
    """
    body = head.build(face)
    surface = join([body, *hair.build(face, body), *headgear.build(face, body)])
    fine = size * SUPERSAMPLING
    depth, carried = project(face, surface, fine)
    rows = np.linspace(0, 1, fine, dtype=np.float32)[:, None, None]
    top, bottom = face.background.astype(np.float32)
    image = np.broadcast_to(top + (bottom - top) * rows, (fine, fine, 3)).copy()
    seen = depth > -1e8
    pixels = carried[seen]
    normals, points = pixels[:, :3], pixels[:, 3:6]
    normals = normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)
    kinds = np.rint(pixels[:, 6]).astype(int)
    image[seen] = light(face, paint(face, points, kinds), normals, points, kinds)
    image = np.clip(image, 0, 1).reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3)
    return (image.mean((1, 3)) * 255 + 0.5).astype(np.uint8)
