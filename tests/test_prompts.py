"""Prompts: fair shares, an order of their own each epoch, and what they may say."""

import dataclasses
import shutil

import numpy as np
import pytest

from ddpo_fair import config as configuration
from ddpo_fair import prompts
from ddpo_fair.diffusion import prompt_tokens, stable_diffusion
from ddpo_fair.embedded import occupations
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import progress, run_log
from ddpo_fair.models import clip, sources, weights


def test_every_kind_of_prompt_has_its_share_in_an_order_of_its_own():
    drawn = prompts.draw(3, 64, seed=0, epoch=5)
    assert sorted(np.bincount(drawn).tolist()) == [21, 21, 22]
    first = prompts.draw(4, 64, seed=0, epoch=0)
    assert not np.array_equal(first, prompts.draw(4, 64, seed=0, epoch=1))
    assert not np.array_equal(first, prompts.draw(4, 64, seed=1, epoch=0))
    np.testing.assert_array_equal(first, prompts.draw(4, 64, seed=0, epoch=0))
    favoured = {
        int(np.argmax(np.bincount(prompts.draw(3, 4, 0, epoch), minlength=3)))
        for epoch in range(30)
    }
    assert favoured == {0, 1, 2}
    drawn = prompts.draw(3, 40, 1, 2, (6, 12))
    counts = np.bincount(drawn, minlength=9)
    assert sorted(counts[:3]) == [9, 9, 10]  # 28 images of 3 prompts
    assert counts[3:].tolist() == [2] * 6
    again = prompts.draw(3, 40, 1, 3, (6, 12))
    assert (drawn != again).any()
    seen = [set(prompts.draw(1, 8, 0, epoch, (20, 4))) - {0} for epoch in range(40)]
    assert all(len(one) == 4 for one in seen)
    assert set().union(*seen) == set(range(1, 21))
    # Of another kind, 2 prompts, have 10 images; of none of the 6 there are any.
    both = prompts.draw(3, 40, 1, 2, (6, 0), (2, 10))
    assert np.bincount(both)[3:].tolist() == [0] * 6 + [5, 5]


def test_unknown_captions_say_what_is_known():
    known = ("a nurse", "a male nurse", "a CEO", "an architect")
    known = [f"photo of the face of {one}" for one in known]
    assert prompts.unknown([*known, "photo of a nurse", "Photo  of an artist"]) == []
    for text in ("a nurse", "photo of the face of a wizard", "", "💡"):
        (problem,) = prompts.unknown([text])
        assert "architect" in problem and "nurse" in problem


@pytest.mark.parametrize(
    "text", ["医生的脸", "<script>", "../../etc/passwd", "a 'quoted' {name}", "👩‍⚕️"]
)
def test_any_text_can_be_a_caption(text):
    blank = np.ones((1, 8, 8, 3), np.float32)
    assert run_log.grid(blank, progress.caption(0, [text], {})).size[0] > 8


def tokenizer_of(folder):
    """Of a model, with the config of its text encoder."""
    config = clip.Config.from_dict(weights.read_config(folder / "text_encoder"))
    return prompt_tokens.load(folder / "tokenizer", "CLIPTokenizer"), config


def test_any_script_has_tokens_and_no_prompt_is_cut(tiny):
    texts = ["", "医生的脸", "وجه", "👩‍⚕️", "<script>", "\u202egnp", "a nurse"]
    tokenizer, config = tokenizer_of(tiny[0])
    ids = prompt_tokens.of(tokenizer, config, texts)
    assert ids.shape == (7, 16) and ids.dtype == np.int32
    assert ids.min() >= 0 and ids.max() < config.vocab_size
    words = 14 * "photo "  # with the two ends, just what fits
    assert prompt_tokens.of(tokenizer, config, [words]).shape == (1, 16)
    with pytest.raises(UserError, match="has 17 tokens, but the text encoder reads 16"):
        prompt_tokens.of(tokenizer, config, [words + "photo"])
    small = dataclasses.replace(config, vocab_size=5)
    with pytest.raises(UserError, match="vocabulary is larger than the text"):
        prompt_tokens.of(tokenizer, small, ["photo of a nurse"])


def test_a_long_prompt_is_refused_before_weights_are_read(tiny, tmp_path):
    model = shutil.copytree(tiny[0], tmp_path / "model")
    (model / "unet" / stable_diffusion.WEIGHTS).unlink()
    with pytest.raises(UserError, match="has 17 tokens"):
        stable_diffusion.load(model, prompts=[15 * "photo "])
    with pytest.raises(UserError, match=stable_diffusion.WEIGHTS):
        stable_diffusion.load(model, prompts=[14 * "photo "])


@pytest.mark.parametrize("copied", [False, True])
def test_the_embedded_model_tells_its_own_prompts_apart(copied, tmp_path):
    folder = sources.model_folder(configuration.EMBEDDED)
    if copied:  # as an exported model is
        folder = shutil.copytree(folder, tmp_path / "copy")
    texts = [
        f"photo of the face of {occupations.phrase(kind + name)}"
        for name in occupations.BY_NAME
        for kind in ("", "female ", "male ")
    ]
    ids = prompt_tokens.of(*tokenizer_of(folder), texts)
    assert ids.shape == (len(texts), 16)
    assert len(np.unique(ids, axis=0)) == len(texts)
