"""Hair: a shell over the scalp, and for long hair a curtain round the head.

All lengths in dm, in the rest pose of `head.py`: pupils at (+-0.29, 7.36), top of
the skull at 8.42, ears at |x| > 0.66.
"""

import numpy as np

from ddpo_fair.embedded import attributes, head, rasterizer

BALD, BUZZ, SHORT, UP, BOB, LONG = "bald", "buzz", "short", "up", "bob", "long"
THICKNESS = {BUZZ: 0.035, SHORT: 0.12, UP: 0.09, BOB: 0.12, LONG: 0.12}
SITS_ON_HAIR = ("", "headband", "nurse cap", "side cap")  # others press it flat
CURTAIN_ROWS, CURTAIN_COLUMNS = 36, 56


def coverage(face: attributes.Face, points: np.ndarray) -> np.ndarray:
    """Signed distance in dm of rest points [M, 3] to the hairline, positive in hair."""
    if face.hair == BALD:
        return np.full(len(points), -1.0, np.float32)
    x, y, z = points.T
    side = np.abs(x)
    edge = 7.98 + face.hairline - 0.22 * head.smooth(0.28, 0.62, side)
    edge = edge + face.receding * np.exp(-(((side - 0.36) / 0.20) ** 2))
    if face.fringe and face.hair != BUZZ:
        sweep = head.smooth(0.62, 0.3, np.abs(x - 0.3 * face.parting))
        edge = edge - 0.30 * sweep
    front = y - edge + 0.012 * np.sin(37 * x + face.hair_phase)
    temple = 0.60 + 0.25 * head.smooth(7.2, 7.9, y) + 0.22 * head.smooth(7.6, 8.0, y)
    covered = np.maximum(front, temple - z)
    lowest = {BUZZ: 6.95, SHORT: 6.85, UP: 6.8}.get(face.hair, 6.5)
    covered = np.minimum(covered, y - lowest - 0.35 * head.smooth(0.1, 0.6, z))
    ear = (side > 0.63) & (y < 7.52) & (y > 6.7) & (z > 0.1)
    return np.where(ear, -1.0, covered).astype(np.float32)


def shell(face: attributes.Face, body: head.Surface) -> head.Surface:
    """The hair that lies on the scalp, thin at the hairline and thick on top."""
    x, y, z = body.rest.T
    covered = coverage(face, body.rest)
    thickness = (
        THICKNESS[face.hair] * face.volume * (0.4 + 0.75 * head.smooth(7.5, 8.2, y))
    )
    if face.hair == SHORT:  # more on top, combed to one side
        comb = 0.4 * head.smooth(7.9, 8.3, y) * (1 + 0.6 * np.sign(face.parting) * x)
        thickness = thickness * (1 + comb)
    if face.hair in (BOB, LONG, UP):  # a soft parting
        valley = np.exp(-(((x - 0.35 * face.parting) / 0.05) ** 2))
        thickness = thickness * (1 - 0.35 * valley * (not face.fringe))
    if face.headgear not in SITS_ON_HAIR:
        thickness = thickness * (1 - 0.75 * head.smooth(7.6, 7.9, y))
    waves = np.sin(9 * x + 5 * y + face.hair_phase) * np.sin(
        7 * z + 3 * face.hair_phase
    )
    thickness = thickness * (1 + 0.10 * waves) * head.smooth(-0.02, 0.16, covered)
    positions = body.positions + body.normals * thickness[:, None]
    positions = positions.astype(np.float32)
    triangles = head.basis().scalp_triangles
    return head.Surface(
        positions=positions,
        normals=0.5 * body.normals + 0.5 * rasterizer.normals(positions, triangles),
        rest=body.rest,
        mask=covered,
        triangles=triangles,
        kind=head.HAIR,
    )


def bun(face: attributes.Face, top: np.ndarray) -> head.Surface:
    """A bun on the crown; top is the highest point [3] of the posed head."""
    around, down = np.meshgrid(np.linspace(0, 2 * np.pi, 22), np.linspace(0, np.pi, 12))
    normals = np.stack(
        [np.sin(down) * np.cos(around), np.cos(down), np.sin(down) * np.sin(around)], -1
    ).reshape(-1, 3)
    radius = 0.27 * face.volume
    positions = normals * radius + np.array([0, top[1] + 0.02, 0.28])
    return head.Surface(
        positions=positions.astype(np.float32),
        normals=normals.astype(np.float32),
        rest=positions.astype(np.float32),
        mask=np.ones(len(positions), np.float32),
        triangles=grid(12, 22)[:, ::-1],
        kind=head.HAIR,
    )


def grid(num_rows: int, num_columns: int) -> np.ndarray:
    """Triangles int32 [F, 3] of a grid of points stored row by row."""
    first = np.arange(num_rows - 1)[:, None] * num_columns + np.arange(num_columns - 1)
    first = first.ravel()
    below, right = first + num_columns, first + 1
    return np.concatenate(
        [np.stack([first, below, below + 1], 1), np.stack([first, below + 1, right], 1)]
    ).astype(np.int32)


def curtain(face: attributes.Face, top: np.ndarray) -> head.Surface:
    """Long hair: a sheet from one side of the face round the back to the other."""
    bottom = face.hair_bottom
    down = np.linspace(0, 1, CURTAIN_ROWS)[:, None]
    across = np.linspace(-1, 1, CURTAIN_COLUMNS)[None, :]
    y = 8.30 - (8.30 - bottom) * down**0.9
    opening = np.interp(
        y,
        [5.0, 6.4, 7.0, 7.4, 7.8, 8.0, 8.14, 8.30],
        np.deg2rad([66, 62, 58, 54, 47, 33, 8, 0]),
    )
    angle = np.pi - across * (np.pi - opening * face.hair_opening)  # 0: front, pi: back
    width = np.interp(
        y,
        [5.0, 6.2, 6.6, 7.2, 7.8, 8.1, 8.22, 8.30],
        [1.04, 0.96, 0.93, 0.91, 0.85, 0.71, 0.60, 0.50],
    )
    depth = np.interp(
        y, [5.0, 6.4, 7.2, 7.8, 8.1, 8.30], [0.78, 0.86, 0.97, 0.97, 0.86, 0.62]
    )
    rolled = 1 - 0.12 * head.smooth(0.90, 1.0, np.abs(across))  # edges turn inwards
    if face.hair == BOB:
        rolled = rolled * (1 - 0.16 * head.smooth(0.72, 1.0, down))
    sway = face.wave * 0.05 * head.smooth(0.25, 0.7, down)
    waves = 1 + sway * np.sin(5.5 * y + 2 * angle + face.hair_phase)
    waves = waves + 0.02 * np.sin(5 * angle + face.hair_phase)
    size = (1 + 0.07 * (face.volume - 1)) * rolled * waves
    fall = 0.05 * head.smooth(0.6, 1.0, down) * np.sin(3 * angle + face.hair_phase)
    rest = np.stack(
        [width * np.sin(angle) * size, y + fall, 0.42 + depth * np.cos(angle) * size],
        -1,
    ).reshape(-1, 3)
    triangles = grid(CURTAIN_ROWS, CURTAIN_COLUMNS)
    positions = rest.copy()
    lifted = top[1] - head.basis().rest[:, 1].max()
    positions[:, 1] += lifted * head.smooth(7.4, 8.3, rest[:, 1])
    positions = positions.astype(np.float32)
    normals = rasterizer.normals(positions, triangles)
    outwards = positions - np.array([0, 0, 0.42], np.float32)
    if (normals[:, [0, 2]] * outwards[:, [0, 2]]).sum() < 0:
        triangles, normals = triangles[:, ::-1], -normals
    return head.Surface(
        positions=positions,
        normals=normals,
        rest=rest.astype(np.float32),
        mask=np.ones(len(rest), np.float32),
        triangles=np.concatenate(
            [triangles, triangles[:, ::-1]]
        ),  # seen from inside too
        kind=head.HAIR,
    )


def build(face: attributes.Face, body: head.Surface) -> list[head.Surface]:
    """The surfaces of a face's hair; none for a bald one."""
    if face.hair == BALD:
        return []
    top = body.positions[body.rest[:, 1].argmax()]
    surfaces = [shell(face, body)]
    if face.hair == UP and not face.headgear:
        surfaces.append(bun(face, top))
    if face.hair in (BOB, LONG):
        surfaces.append(curtain(face, top))
    return surfaces


def colours(face: attributes.Face, points: np.ndarray) -> np.ndarray:
    """Colours float32 [M, 3] in [0, 1] of hair at rest points [M, 3]: soft strands."""
    x, y, z = points.T
    angle = np.arctan2(x, z - 0.4)
    strands = 0.06 * np.sin(23 * angle + 3 * face.wave * y + face.hair_phase)
    strands = strands + 0.035 * np.sin(51 * angle + 2 * face.hair_phase)
    roots = 1 - 0.22 * head.smooth(7.2, 6.3, y) * head.smooth(0.9, 0.3, z)
    return np.clip(face.hair_colour * ((1 + strands) * roots)[:, None], 0, 1)
