"""A z-buffer for a few thousand triangles, compiled by numba (extra `data`)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpo_fair.errors import UserError

try:
    import numba
except ImportError:  # --help does without
    numba = None


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as numba compiles it; without numba, one that says what is missing."""
    if numba:
        return numba.njit(cache=True, fastmath=True)(function)

    def missing(*_: object) -> None:
        raise UserError(
            "Drawing faces needs the package numba, which is not installed: "
            'pip install "ddpo_fair[data]".'
        )

    return missing


@_compiled
def draw(
    screen: np.ndarray, attributes: np.ndarray, triangles: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Depth [S, S] and interpolated attributes [S, S, K] of the nearest surface.

    Args:
        screen: float32 [V, 3], x to the right and y down in pixels, z to the viewer.
        attributes: float32 [V, K]; where the last one is negative, nothing is drawn.
        triangles: int32 [F, 3], counter-clockwise as seen by the viewer.
        size: S, pixels a side.

    Returns:
        Depth -1e9 where nothing was drawn.
    """
    num_attributes = attributes.shape[1]
    depth = np.full((size, size), np.float32(-1e9))
    image = np.zeros((size, size, num_attributes), np.float32)
    for face in range(triangles.shape[0]):
        a, b, c = triangles[face]
        ax, ay = screen[a, 0], screen[a, 1]
        bx, by = screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= -1e-9:  # seen from behind, y pointing down
            continue
        left = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        right = min(size - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        top = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        bottom = min(size - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5, row + 0.5
                share_b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
                share_c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
                share_a = 1.0 - share_b - share_c
                if share_a < -1e-6 or share_b < -1e-6 or share_c < -1e-6:
                    continue
                mask = share_a * attributes[a, -1] + share_b * attributes[b, -1]
                if mask + share_c * attributes[c, -1] < 0:
                    continue
                z = share_a * screen[a, 2] + share_b * screen[b, 2]
                z += share_c * screen[c, 2]
                if z <= depth[row, column]:
                    continue
                depth[row, column] = z
                for k in range(num_attributes):
                    image[row, column, k] = (
                        share_a * attributes[a, k]
                        + share_b * attributes[b, k]
                        + share_c * attributes[c, k]
                    )
    return depth, image


@_compiled
def normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals float32 [V, 3]: the area-weighted mean over adjoining triangles."""
    result = np.zeros_like(vertices)
    for face in range(triangles.shape[0]):
        a, b, c = triangles[face]
        ux, uy, uz = vertices[b] - vertices[a]
        vx, vy, vz = vertices[c] - vertices[a]
        for corner in (a, b, c):
            result[corner, 0] += uy * vz - uz * vy
            result[corner, 1] += uz * vx - ux * vz
            result[corner, 2] += ux * vy - uy * vx
    for vertex in range(vertices.shape[0]):
        x, y, z = result[vertex]
        result[vertex] /= np.sqrt(x * x + y * y + z * z) + 1e-12
    return result
