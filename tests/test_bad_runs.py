"""Runs that are no runs, and flags of evaluate, report and export that name none."""

import json
import os

import numpy as np
import pytest
import tiny_model
from refusals import CONFIG, arguments_of, named, refused

from ddpo_fair import evaluate, export, files, process, train
from ddpo_fair.classifiers import evaluate_classifier, train_classifier
from ddpo_fair.loggers import run_log
from ddpo_fair.report import __main__ as report
from ddpo_fair.report import model_card
from ddpo_fair.training import assembly, run_folder, saved_run


@pytest.fixture
def run(sound, tmp_path):
    """A run's folder with settings, and a checkpoint 3 that is empty."""
    config = tiny_model.config(sound / "model", sound / "classifier", tmp_path)
    folder = run_folder.path_of(config)
    (folder / "checkpoints" / "3").mkdir(parents=True)
    run_folder.write_config(folder, config)
    return folder


DATA = ("--data={run}", "--output={run}x")


@pytest.mark.parametrize(
    ("main", "flags", "part"),
    [
        (train_classifier.main, ["--data=a"], "--output is missing"),
        (train_classifier.main, ["--data=~nobody_here", "--output=x"], "home direct"),
        (train_classifier.main, ["--data=a", "--output=a\0b"], "control character"),
        (train_classifier.main, [*DATA, "--steps=0"], "must be an integer in the"),
        (train_classifier.main, [*DATA, "--batch=9"], "multiple of the 8 devices"),
        (train_classifier.main, [*DATA, "--holdout=1"], "in the range [0, 0.999]"),
        (train_classifier.main, [*DATA, "--learning_rate=nan"], "range [1e-12, 10]"),
        (train_classifier.main, [*DATA, "--stepps=1"], "did you mean --steps."),
        (evaluate_classifier.main, ["--data=a", "--output="], "(it is empty)"),
        (evaluate_classifier.main, ["--data=a", "--images=0"], "range [1, "),
        (evaluate.main, ["--run={run}x"], "not the folder of a run. Runs near it"),
        (evaluate.main, ["--run="], "--run='' cannot be used as a path (it is empty)"),
        (evaluate.main, ["--run=" + 5000 * "x"], "File name too long"),
        (evaluate.main, ["--run={run}", "--checkpoint=best"], "number of epochs done"),
        (evaluate.main, ["--run={run}", f"--checkpoint={5000 * '9'}"], "characters)"),
        (evaluate.main, ["--run={run}", "--checkpoint=7"], "holds the checkpoints 3"),
        (evaluate.main, ["--run={run}", "--checkpoint=x/checkpoints/3"], "Which run?"),
        (evaluate.main, ["--run={run}", "--images=1"], "--images='1' must be an int"),
        (evaluate.main, ["--run={run}", "--images=1e99"], "in the range [2, 100000]"),
        (evaluate.main, ["--run={run}", "--seed=-1"], "the range [0, 2147483647]"),
        (evaluate.main, ["--run={run}", "--sets=all"], "must be of trained, held_out"),
        (evaluate.main, ["--run={run}", "--samplers="], "must be all, training, or"),
        (evaluate.main, ["--run={run}", "--samplers=2:1:5"], "eta 0 to 1"),
        (evaluate.main, ["--run={run}", "--prompt="], "is empty; say what to draw"),
        (evaluate.main, ["--run={run}", "--prompt=\x1b[2J"], "control character"),
        (evaluate.main, ["--run={run}", "--audit=nobody"], "--audit='nobody': class"),
        (evaluate.main, ["--run={run}", "--imags=3"], "'--imags=3' is no flag"),
        (evaluate.main, ["--config=nowhere.py"], "is not a file of Python"),
        (evaluate.main, ["--run={run}", CONFIG], "Which run? The flags name"),
        (report.main, ["{run}x"], "is no run: it has neither config.json"),
        (report.main, ["{run}", "--output={run}"], "is a folder; choose"),
        (report.main, ["{run}", "--output={run}/metrics.jsonl"], "of the records of"),
        (report.main, ["{run}", "--output=/dev/null"], "is not a file to write to"),
        (report.main, ["{run}", "--output=/etc/hosts"], "not written by this command"),
        (report.main, ["{run}", "--output=/dev/null/x"], "(Not a directory)"),
        (evaluate_classifier.main, ["--data=a", "--output={run}/config"], "records of"),
        (report.main, ["{run}", "--outptu=x"], "no flag; did you mean --output"),
        (export.main, ["--run={run}x", "--output={run}y"], "not the folder of a run"),
        (export.main, ["--run={run}/..", "--output={run}y"], "Runs near it: {run}."),
        (export.main, ["--run={run}", "--output=/"], "exists and is not empty"),
        (export.main, ["--run={run}", "--output={run}"], "nothing there was changed"),
        (export.main, ["--run={run}", "--output={run}/checkpoints/4"], "of the record"),
        (evaluate.main, ["--run={run}", "--output={run}/samples/x"], "of the records"),
        (export.main, ["--run={run}", "--output=x", "--format=onnx"], "be one of diff"),
        (export.main, ["--run={run}", "--output=x", "--checkpoint=0"], "range [1, "),
        (export.main, ["--run={run}", "--output={run}y"], "checkpoints/3 is damaged"),
    ],
    ids=named,
)
def test_flags_of_the_other_commands(capsys, run, tmp_path, main, flags, part):
    before = sorted(path.name for path in tmp_path.iterdir())
    given_flags = [flag.replace("{run}", str(run)) for flag in flags]
    assert part.replace("{run}", str(run)) in refused(main, given_flags, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not list(run.glob("evaluation*"))  # where a wrong flag would stay


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"config": 5, "images_per_epoch": 16}', "cannot be read"),
        ('{"config": {"epochs": "many"}, "images_per_epoch": 16}', "epochs"),
    ],
    ids=named,
)
def test_records_of_runs(capsys, run, sound, content, part):
    (run / "config.json").write_text(content)
    for flags in ([f"--run={run}"], [f"--run={run}", f"--output={run}y"]):
        main = evaluate.main if len(flags) == 1 else export.main
        assert part in refused(main, flags, capsys)
    changes = {"run.dir": run.parent, "run.name": run.name}
    assert part in refused(train.main, arguments_of(sound, **changes), capsys)


def test_settings_that_no_run_can_have_had(capsys, run):
    record = json.loads((run / "config.json").read_text())
    record["config"]["train.lora.rank"] = -1
    (run / "config.json").write_text(json.dumps(record))
    text = refused(evaluate.main, [f"--run={run}"], capsys)
    assert "train.lora.rank=-1 must be at least 0" in text and "Restore it" in text


def test_lines_and_arrays_that_were_cut_short_are_none(run, tmp_path):
    lines = ['{"epoch": 0, "eval_q": 0.5}', '{"epoch": 1}', "5", '{"epoch": 2}']
    (run / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\n[")
    assert [line["epoch"] for line in run_log.read(run)] == [0, 1]
    result = model_card.result(saved_run.read(run), 2)
    assert result == {"before": None, "after": None}
    path = tmp_path / "arrays.npz"
    files.save_arrays(path, {"a": np.arange(3)})
    assert files.load_arrays(path)["a"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    method = whole.index(b"PK\1\2") + 10  # of compression, in a zip file
    flipped = whole[:method] + b"\x80" + whole[method + 1 :]
    for content in (b"", whole[:-30], whole[:40], b"\x80\x04", b"PK", flipped):
        path.write_bytes(content)
        assert files.load_arrays(path) is None
    assert files.load_arrays(tmp_path / "nothing") is None


def test_a_run_of_another_config(capsys, sound, tmp_path, monkeypatch):
    def stop_here(config):
        raise AssertionError("the folder was not checked before the weights")

    monkeypatch.setattr(assembly, "build", stop_here)
    monkeypatch.setattr("ddpo_fair.training.stopping.Stop.listen", lambda self: None)
    monkeypatch.setenv(process.DEBUG, "1")
    arguments = arguments_of(sound, **{"run.dir": tmp_path})
    with pytest.raises(AssertionError):
        train.main(arguments)
    (tmp_path / "mech_eng" / "checkpoints" / "1").mkdir(parents=True)
    text = refused(train.main, [*arguments, "--config.seed=9"], capsys)
    assert "seed was 0 and is now 9" in text
    os.close(run_folder.lock(tmp_path / "mech_eng"))


def test_a_page_of_somebody_else_is_not_replaced(run, monkeypatch, capsys):
    monkeypatch.setattr("ddpo_fair.training.run.train", lambda *_: run)
    (run / "report.html").write_text("notes")
    train.train(saved_run.read(run).config)
    said = capsys.readouterr().out
    assert "not written by this command" in said and "--output=PAGE.html" in said
    assert (run / "report.html").read_text() == "notes"
