"""Prompts: fair shares, an order of their own each epoch, and what they may say."""

import numpy as np
import pytest

from ddpo_fair import prompts


def test_every_prompt_has_its_share():
    drawn = prompts.draw(3, 64, seed=0, epoch=5)
    assert sorted(np.bincount(drawn).tolist()) == [21, 21, 22]


def test_the_order_is_new_every_epoch_and_the_same_again():
    first = prompts.draw(4, 64, seed=0, epoch=0)
    assert not np.array_equal(first, prompts.draw(4, 64, seed=0, epoch=1))
    assert not np.array_equal(first, prompts.draw(4, 64, seed=1, epoch=0))
    np.testing.assert_array_equal(first, prompts.draw(4, 64, seed=0, epoch=0))


def test_the_odd_image_goes_round():
    favoured = {
        int(np.argmax(np.bincount(prompts.draw(3, 4, 0, epoch), minlength=3)))
        for epoch in range(30)
    }
    assert favoured == {0, 1, 2}


@pytest.mark.parametrize(
    "text",
    [
        "photo of the face of a nurse",
        "Photo of the face  of an architect",
        "photo of a nurse",
        "photo of the face of a male nurse",
        "photo of the face of a CEO",
    ],
)
def test_known_captions(text):
    assert prompts.unknown([text], ["nurse", "architect", "CEO"]) == []


@pytest.mark.parametrize("text", ["a nurse", "photo of the face of a wizard", "", "💡"])
def test_unknown_captions_say_what_is_known(text):
    (problem,) = prompts.unknown([text], ["nurse", "architect"])
    assert "architect, nurse" in problem


@pytest.mark.parametrize(
    ("texts", "part"),
    [
        ((), "at least one"),
        (("  ",), "is empty"),
        (("x" * 1001,), "at most 1000 characters"),
        (("a\nb",), "control character"),
        (("a\x00b",), "control character"),
        (("a \ud800",), "control character"),
        (("a", "a"), "twice"),
    ],
)
def test_prompts_that_no_model_could_be_given(texts, part):
    (problem,) = prompts.problems(texts)
    assert part in problem


@pytest.mark.parametrize(
    "text", ["医生的脸", "<script>", "../../etc/passwd", "a 'quoted' {name}", "👩‍⚕️"]
)
def test_other_texts_are_only_texts(text):
    assert list(prompts.problems((text,))) == []
