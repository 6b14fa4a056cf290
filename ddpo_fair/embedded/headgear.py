"""Hats: surfaces of revolution on an ellipse a little wider than any head of hair."""

import numpy as np

from ddpo_fair.embedded import attributes, hair, head, rasterizer

# From the edge up: heights above the edge in dm before HEIGHT, and radii as
# multiples of the ellipse.
PROFILES = {
    "hard hat": (
        (0.0, 0.22, 0.42, 0.58, 0.68, 0.71),
        (1.02, 1.0, 0.92, 0.74, 0.42, 0.02),
    ),
    "helmet": ((-0.12, 0.05, 0.3, 0.5, 0.62, 0.66), (1.1, 1.05, 1.0, 0.84, 0.5, 0.02)),
    "soft cap": (
        (-0.02, 0.25, 0.45, 0.58, 0.64, 0.65),
        (0.98, 1.0, 0.9, 0.66, 0.3, 0.02),
    ),
    "cap": ((0.0, 0.22, 0.42, 0.56, 0.63, 0.65), (0.99, 0.98, 0.88, 0.66, 0.3, 0.02)),
    "peaked cap": (
        (0.0, 0.2, 0.38, 0.5, 0.56, 0.57),
        (1.0, 1.0, 1.16, 1.12, 0.6, 0.02),
    ),
    "toque": (
        (0.0, 0.3, 0.36, 0.6, 0.85, 0.95, 0.96),
        (0.98, 0.98, 1.12, 1.2, 1.1, 0.5, 0.02),
    ),
    "straw hat": ((0.05, 0.3, 0.55, 0.62, 0.63), (0.98, 0.95, 0.85, 0.5, 0.02)),
    "beret": ((0.0, 0.12, 0.25, 0.36, 0.46, 0.5), (0.97, 1.0, 1.2, 1.15, 0.7, 0.02)),
    "bandana": ((-0.05, 0.2, 0.4, 0.54, 0.6, 0.61), (0.97, 0.98, 0.9, 0.66, 0.3, 0.02)),
    "headband": ((-0.02, 0.14), (0.965, 0.965)),
    "nurse cap": ((0.18, 0.42, 0.46, 0.46), (0.95, 1.0, 0.9, 0.02)),
    "side cap": ((0.22, 0.5, 0.55, 0.56), (0.93, 0.9, 0.6, 0.02)),
}
# Brim: width in dm at the sides and at the front.
BRIMS = {
    "hard hat": (0.07, 0.24),
    "straw hat": (0.42, 0.42),
    "cap": (0.0, 0.42),
    "peaked cap": (0.0, 0.24),
}
EDGE = 7.73  # the hat's edge above the forehead, dm in the rest pose
HEIGHT = 1.35  # of the profiles
HALF_WIDTH, HALF_DEPTH, MIDDLE = 0.87, 1.05, 0.46
NUM_COLUMNS = 48


def revolve(heights: np.ndarray, radii: np.ndarray, kind: int) -> head.Surface:
    """The surface through rows of given heights [R] and radii [R] or [R, columns]."""
    angle = np.linspace(-np.pi, np.pi, NUM_COLUMNS)[None, :]
    radii = np.broadcast_to(
        radii.reshape(len(heights), -1), (len(heights), NUM_COLUMNS)
    )
    tilt = 0.10 * np.cos(angle)  # lower at the back
    rest = np.stack(
        [
            HALF_WIDTH * radii * np.sin(angle),
            EDGE + heights[:, None] + tilt * np.minimum(radii, 1),
            MIDDLE + HALF_DEPTH * radii * np.cos(angle),
        ],
        -1,
    )
    rest = rest.reshape(-1, 3).astype(np.float32)
    triangles = hair.grid(len(heights), NUM_COLUMNS)[:, ::-1]
    normals = rasterizer.normals(rest, triangles)
    return head.Surface(
        positions=rest,
        normals=normals,
        rest=rest,
        mask=np.ones(len(rest), np.float32),
        triangles=np.concatenate([triangles, triangles[:, ::-1]]),
        kind=kind,
    )


def build(face: attributes.Face, body: head.Surface) -> list[head.Surface]:
    """The surfaces of a face's headgear; none for most occupations."""
    if not face.headgear:
        return []
    coarse_heights, coarse_radii = PROFILES[face.headgear]
    rows = np.arange(len(coarse_heights))
    fine = np.linspace(0, len(rows) - 1, 4 * len(rows))
    heights = HEIGHT * np.interp(fine, rows, coarse_heights)
    radii = np.interp(fine, rows, coarse_radii)
    surfaces = [revolve(heights, radii, head.HEADGEAR)]
    if face.headgear in BRIMS:
        side, front = BRIMS[face.headgear]
        angle = np.linspace(-np.pi, np.pi, NUM_COLUMNS)
        width = side + (front - side) * np.clip(1.3 * np.cos(angle) - 0.1, 0, 1)
        edge = radii[0] + np.linspace(0, 1, 4)[:, None] * width[None, :]
        surfaces.append(revolve(np.array([0, -0.02, -0.05, -0.09]), edge, head.TRIM))
    lift = body.positions[body.rest[:, 1].argmax(), 1] - body.rest[:, 1].max()
    return [
        surface._replace(positions=surface.positions + np.float32([0, lift, 0]))
        for surface in surfaces
    ]
