"""Hostile names and texts do nothing but get refused, or stay texts."""

import pathlib

import pytest
import tiny_model
import tiny_run
from refusals import CONFIG, refused

from ddpo_fair import experiment, train
from ddpo_fair.errors import LONGEST, UserError, paragraph
from ddpo_fair.evaluation import evaluation_parts, evaluation_plan
from ddpo_fair.evaluation.evaluation_plan import Plan, Sampler
from ddpo_fair.prompts import Prompt
from ddpo_fair.report import model_card
from ddpo_fair.training import run_folder, saved_run

PACKAGE = pathlib.Path(train.__file__).parent
# Findings of bandit that are meant: programs are started, with arguments of ours, and
# found by their names.
MEANT = "B404,B603,B607"


@pytest.mark.long
def test_nothing_in_the_package_runs_foreign_code():
    pytest.importorskip("bandit")
    process = tiny_run.python("-m", "bandit", "-q", "-r", PACKAGE, "-s", MEANT)
    tiny_run.finish(process)
    sources = "".join(p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py"))
    for setting in ("allow_pickle=True", "trust_remote_code=True"):
        assert setting not in sources


def test_texts_give_a_terminal_and_python_no_orders(capsys):
    for text in ("__import__('os').abort()", "(__import__('os').abort(),)"):
        said = refused(train.main, [CONFIG, f"--config.prompts={text}"], capsys)
        assert "__import__" in said
    command, problems = experiment.parse([CONFIG, "--config.epochs=2+2"], "x")
    assert problems and command.config.epochs == 20
    text = paragraph(UserError("a\x1b[2J\x07\u202eb\ud800\n c" + 10**6 * "x"))
    assert text.startswith("a\\x1b[2J\\x07\\u202eb\\ud800 cxxx") and text.isprintable()
    assert len(text) < LONGEST + 10


@pytest.mark.parametrize("text", ["../../etc/passwd", "/abs", "..", "a\\b", "医", "."])
def test_images_stay_inside_the_evaluation(tmp_path, text):
    sampler = Sampler(1.0, 1.0, 5)
    plan = Plan({}, (sampler,), (Prompt(text, "given"),), 2, 0, 2, 1)
    job = next(evaluation_plan.jobs(plan))
    path = evaluation_parts.image_path(tmp_path, job, plan, 0)
    assert path.resolve() == path and path.is_relative_to(tmp_path / "images")


def test_prompts_in_a_model_card_stay_text(tmp_path):
    config = tiny_model.config(tmp_path, tmp_path, tmp_path)
    config.prompts = ("<script>alert(1)</script> [a](http://b) `c` |", "b")
    run_folder.path_of(config).mkdir()
    run_folder.write_config(run_folder.path_of(config), config)
    saved = saved_run.read(run_folder.path_of(config))
    text = model_card.write(saved, 3, "lora")
    assert r"- \<script\>alert(1)\</script\> \[a\](http://b) \`c\` \|" in text
    assert "<script>" not in text.partition("## How to use it")[0]
