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


def test_benchmark_is_skewed_but_leaves_some_women():
    shares = [occupations.BY_NAME[name].men for name in occupations.BENCHMARK]
    assert all(0.8 < share <= 0.9 for share in shares)


def test_about_a_quarter_is_held_out_and_no_benchmark():
    held_out = [o.name for o in occupations.ALL if o.held_out]
    assert sorted(held_out) == sorted(occupations.HELD_OUT)
    assert not set(held_out) & set(occupations.BENCHMARK)
    assert 0.2 < len(held_out) / len(occupations.ALL) < 0.3
    marked = {*occupations.GLASSES, *held_out}
    assert marked <= set(occupations.BY_NAME) == {o.name for o in occupations.ALL}


def test_headgear_has_a_shape():
    pytest.importorskip("numba")
    from ddpo_fair.embedded import headgear

    shapes = {o.headgear.rpartition(" ")[0] for o in occupations.ALL if o.headgear}
    assert shapes == set(headgear.PROFILES)
