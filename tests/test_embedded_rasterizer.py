"""The z-buffer: coverage, depth order, masks and interpolation, by hand."""

import numpy as np
import pytest

pytest.importorskip("numba")
from ddpo_fair.embedded import rasterizer

# Seen from the front, counter-clockwise with y up is clockwise with y down.
CORNERS = np.float32([[0, 0, 0], [0, 4, 0], [4, 0, 0]])
TRIANGLE = np.int32([[0, 1, 2]])


def test_triangle_covers_the_pixels_whose_centres_lie_inside():
    carried = np.ones((3, 1), np.float32)
    depth, _ = rasterizer.draw(CORNERS, carried, TRIANGLE, 4)
    rows, columns = np.mgrid[:4, :4] + 0.5
    np.testing.assert_array_equal(depth > -1e8, rows + columns <= 4)


def test_triangle_seen_from_behind_is_not_drawn():
    carried = np.ones((3, 1), np.float32)
    depth, _ = rasterizer.draw(CORNERS, carried, TRIANGLE[:, ::-1].copy(), 4)
    assert (depth < -1e8).all()


def test_values_are_interpolated_linearly():
    carried = np.float32([[1, 1], [5, 1], [9, 1]])  # 1 + y + 2 x
    _, image = rasterizer.draw(CORNERS, carried, TRIANGLE, 4)
    # Pixel centre (0.5, 0.5): 1 + 0.5 + 1; fp32 keeps it exact.
    assert image[0, 0, 0] == 2.5
    assert image[1, 2, 0] == 1 + 1.5 + 5


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_nearer_surface_wins_in_any_order(order):
    screen = np.concatenate([CORNERS, CORNERS + np.float32([0, 0, 1])])
    carried = np.float32([[1, 1]] * 3 + [[2, 1]] * 3)
    triangles = np.int32([[0, 1, 2], [3, 4, 5]])[order]
    _, image = rasterizer.draw(screen, carried, triangles, 4)
    assert image[0, 0, 0] == 2


def test_surface_ends_where_its_mask_turns_negative():
    carried = np.float32([[1], [1], [-3]])  # 1 - x
    depth, _ = rasterizer.draw(CORNERS, carried, TRIANGLE, 4)
    np.testing.assert_array_equal(depth[0] > -1e8, [True, False, False, False])


def test_normals_of_a_plane_point_to_the_viewer():
    square = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    normals = rasterizer.normals(square, np.int32([[0, 1, 2], [0, 2, 3]]))
    np.testing.assert_allclose(normals, [[0, 0, 1]] * 4, atol=1e-6)  # fp32
