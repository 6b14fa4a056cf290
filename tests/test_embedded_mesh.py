"""The asset and its builder: readers against files written here."""

import gzip

import numpy as np
import pytest

pytest.importorskip("numba")
from ddpo_fair.embedded import mesh


def test_body_reader_takes_groups_and_repeats_a_triangle(tmp_path):
    path = tmp_path / "base.obj"
    path.write_text(
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0.5\n"
        "g body\nf 1/1 2/2 3/3 4/4\ng helper-l-eye\nf 1/1 2/2 3/3\n"
    )
    vertices, faces, groups = mesh.read_body(path)
    np.testing.assert_array_equal(vertices[3], [0, 1, 0.5])
    np.testing.assert_array_equal(faces, [[0, 1, 2, 3], [0, 1, 2, 2]])
    assert groups.tolist() == ["body", "helper-l-eye"]


def test_target_reader_skips_comments_and_other_vertices(tmp_path):
    text = "# a target\n1 .5 0 -1\n7 1 1 1\n"
    (tmp_path / "plain.target").write_text(text)
    (tmp_path / "packed.target.gz").write_bytes(gzip.compress(text.encode()))
    expected = [[0, 0, 0], [0.5, 0, -1]]
    for name in ("plain.target", "packed.target.gz"):
        displacements = mesh.read_target(tmp_path / name, 2)
        np.testing.assert_array_equal(displacements, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_quantisation_errs_by_half_a_step_at_most(dtype):
    shapes = np.random.default_rng(0).normal(0, 0.1, (3, 20, 3))
    integers, steps = mesh.quantise(shapes, dtype)
    error = np.abs(integers * steps[:, None, None].astype(np.float64) - shapes)
    # 1e-4: steps are rounded to fp32.
    assert (error.max((1, 2)) <= 0.5 * steps * (1 + 1e-4)).all()
