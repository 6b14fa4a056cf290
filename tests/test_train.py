"""The run: what it writes, on any number of devices, and however often it is killed."""

import json
import re

import numpy as np
import pytest
import tiny_model
from PIL import Image
from tiny_run import checksums

from ddpo_fair import train
from ddpo_fair.loggers import run_log
from ddpo_fair.report import summary
from ddpo_fair.training import run_folder

EPOCHS = 4

# Fields that scripts rely on.
FIELDS = re.findall(
    r"\w+",
    """
    epoch reward_mean reward_std q q_low q_high num_female num_male num_none
    num_not_finite explicit_obeyed loss kl clip_fraction trust_region_fraction
    ratio_deviation grad_norm skipped_updates images images_per_second sample_seconds
    update_seconds epoch_seconds device_memory_gb
    """,
)
EVALUATION_FIELDS = ["eval_q", "eval_q_low", "eval_q_high", "eval_none"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


def settings(tiny, root, name):
    return tiny_model.config(
        *tiny,
        root,
        **{
            "run.name": name,
            "eval.every_epochs": 2,
            "advantage.name": "per_prompt",  # its history must survive
            "advantage.min_count": 2,
            "sample.explicit_share": 0.25,
        },
    )


@pytest.fixture(scope="module")
def unbroken(tiny, root):
    """The folder of a run that nothing disturbed."""
    config = settings(tiny, root, "unbroken")
    train.check(config, [])
    train.train(config)
    return run_folder.path_of(config)


def test_every_epoch_has_its_line(unbroken):
    lines = run_log.read(unbroken)
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
    for line in lines:
        assert set(FIELDS) <= set(line)
        assert line["num_female"] + line["num_male"] + line["num_none"] == 12
        assert 4 * line["explicit_obeyed"] in range(5)  # of the other four images
        assert line["q_low"] <= line["q"] <= line["q_high"]
        assert line["ratio_deviation"] <= 1e-5  # on policy
        assert line["kl_last"] > 0 and line["skipped_updates"] == 0  # it moves
    evaluated = [line["epoch"] for line in lines if "eval_q" in line]
    assert evaluated == [0, 2, 3]  # before training, every second, the last
    for epoch in evaluated:
        assert set(EVALUATION_FIELDS) <= set(lines[epoch])
        assert sum(lines[epoch]["eval_p_female_histogram"]) == 12


def test_the_folder_is_complete_and_grids_show_the_same_seeds(unbroken):
    record = json.loads((unbroken / "config.json").read_text())
    assert record["config"]["train.lora.rank"] == 2 and record["images_per_epoch"] == 16
    assert set(checksums(unbroken)) == {2, 3, 4}
    assert list((unbroken / "tensorboard").glob("events*"))
    # Parameters of LoRA, two moments of Adam, counters: nothing else.
    last = (unbroken / "checkpoints" / str(EPOCHS)).rglob("*")
    assert sum(path.stat().st_size for path in last if path.is_file()) < 200_000
    files = sorted(path.name for path in (unbroken / "samples").glob("*"))
    assert files == ["epoch_0000.png", "epoch_0002.png", "epoch_0003.png"]
    before, after = (
        np.asarray(Image.open(unbroken / "samples" / f"epoch_000{epoch}.png"), np.int32)
        for epoch in (0, 3)
    )
    assert before.shape == after.shape
    change = np.abs(before - after)[run_log.STRIP :]
    assert 0 < change.mean() < 40  # changed, but the same images


def test_a_finished_run_stays_as_it_is(unbroken, tiny, root, monkeypatch, capsys):
    lines, page = run_log.read(unbroken), unbroken / "report.html"
    assert "4 of 4" in page.read_text(encoding="utf-8")
    page.unlink()
    train.train(settings(tiny, root, "unbroken"))
    assert run_log.read(unbroken) == lines
    assert f"Report: {page}" in capsys.readouterr().out
    page.unlink()
    monkeypatch.setattr(summary, "of_runs", lambda runs: 1 / 0)
    train.train(settings(tiny, root, "unbroken"))
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed and not page.exists()
    command = f"python -m ddpo_fair.report {unbroken} --output=PAGE.html writes it"
    assert command in printed
