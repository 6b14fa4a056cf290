"""The table of occupations: complete, skewed as intended, and drawable."""

import pytest

from ddpo_fair.embedded import occupations


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("electrical engineer", "an electrical engineer"),
        ("CEO", "a CEO"),
        ("female accountant", "a female accountant"),
        ("artist", "an artist"),
    ],
)
def test_article_follows_the_first_sound(noun, expected):
    assert occupations.phrase(noun) == expected


def test_no_held_out_occupation_is_a_benchmark():
    assert not set(occupations.HELD_OUT) & set(occupations.BENCHMARK)
    marked = {*occupations.GLASSES, *occupations.HELD_OUT, *occupations.BENCHMARK}
    assert marked <= set(occupations.BY_NAME)


def test_headgear_has_a_shape():
    pytest.importorskip("numba")
    from ddpo_fair.embedded import headgear

    shapes = {o.headgear.rpartition(" ")[0] for o in occupations.ALL if o.headgear}
    assert shapes == set(headgear.PROFILES)
