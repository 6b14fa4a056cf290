"""The run's folder: one process at a time, one config, and a record of both."""

import errno
import hashlib
import json
import os
import pathlib
import shutil
from contextlib import nullcontext

import pytest
import tiny_model

from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import run_log
from ddpo_fair.report import run_reader
from ddpo_fair.training import description, run_folder, saved_run

CLASSIFIER = "attributes.gender.classifier"


@pytest.fixture
def config(tmp_path):
    settings = configuration.defaults()
    settings.run.dir, settings.run.name = str(tmp_path), "run"
    return settings


@pytest.fixture
def folder(config):
    path = run_folder.path_of(config)
    os.close(run_folder.lock(path))
    run_folder.write_config(path, config)
    (path / run_log.LINES).write_text('{"epoch": 0}\n')  # which binds it
    return path


def test_another_process_is_refused_where_there_are_locks(folder, monkeypatch, caplog):
    descriptor = run_folder.lock(folder)
    with pytest.raises(UserError, match=f"another process.*process {os.getpid()} on"):
        run_folder.lock(folder)
    os.close(descriptor)
    os.close(run_folder.lock(folder))

    def no_locks(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    os.close(run_folder.lock(folder))
    assert "has no locks (Function not implemented)" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", ".lock"])
def test_what_is_no_file_is_neither_waited_for_nor_followed(folder, config, name):
    read = {
        "config.json": lambda: run_folder.check(folder, config),
        "metrics.jsonl": lambda: run_folder.check_complete(folder, config),
        ".lock": lambda: os.close(run_folder.lock(folder)),
    }
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with nullcontext() if name == "metrics.jsonl" else pytest.raises(UserError):
        read[name]()
    (folder / name).unlink()
    precious = folder.parent / "precious"
    precious.write_text("[")
    (folder / name).symlink_to(precious)
    with nullcontext() if name == "metrics.jsonl" else pytest.raises(UserError):
        read[name]()
    assert precious.read_text() == "["


def test_a_run_of_an_older_version_goes_on(folder, config):
    path = folder / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["train.recompute_log_probs"]
    path.write_text(json.dumps(record))
    run_folder.check(folder, config)
    config.train.recompute_log_probs = True
    with pytest.raises(UserError, match="log_probs was False and is now True"):
        run_folder.check(folder, config)
    config.train.recompute_log_probs = False
    flat = record["config"]
    for old, new in configuration.RENAMED.items():
        if new in flat:  # else by an even older name
            flat[old] = flat.pop(new)
    flat["train.on_collapse"] = "roll_back"
    path.write_text(json.dumps(record))
    run_folder.check(folder, config)
    read = saved_run.read(folder).config
    assert read.train.on_divergence == "restore"
    assert read.train.lora.target_modules == config.train.lora.target_modules
    assert (
        run_reader.read(folder).settings["attributes.gender.confidence_threshold"]
        == 0.7
    )


def test_other_targets_of_the_same_file_are_refused(folder, config, tmp_path):
    path, prompt = tmp_path / "targets.json", config.prompts[0]
    path.write_text(json.dumps({prompt: {"gender": [0.3, 0.7]}}))
    config.targets = str(path)
    record = description.of(config, None)
    assert record["targets"] == {"gender": {prompt: (0.3, 0.7)}}
    (folder / "config.json").write_text(json.dumps(record))
    run_folder.check(folder, config)
    config.targets = str(path.rename(tmp_path / "moved_targets.json"))
    run_folder.check(folder, config)
    assert saved_run.read(folder).config.targets == str(path)  # gone, and not needed
    path = pathlib.Path(config.targets)
    path.write_text(json.dumps({prompt: {"gender": [0.4, 0.6]}}))
    with pytest.raises(UserError, match=r"the targets in .*targets.json.* were others"):
        run_folder.check(folder, config)


def test_a_start_that_saved_nothing_binds_nothing(folder, config):
    (folder / run_log.LINES).write_text("")
    config.model = "elsewhere"  # the first start had a typing error in it
    run_folder.check(folder, config)
    (folder / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="model was 'embedded' and is now 'elsewhere'"):
        run_folder.check(folder, config)


def test_more_epochs_continue_a_constant_learning_rate_alone(folder, config):
    config.checkpoint.keep = 7  # which changes nothing that was computed
    for final in (1.0, 0.1):
        config.epochs, config.train.final_learning_rate = 15, final
        run_folder.write_config(folder, config)
        config.epochs = 20
        if final == 1.0:
            run_folder.check(folder, config)
    with pytest.raises(UserError, match="epochs was 15 and is now 20"):
        run_folder.check(folder, config)


def test_batches_may_change_but_not_their_sum(folder, config):
    config.sample.batch_per_device //= 2
    with pytest.raises(UserError, match="an epoch had 512 images and now has 256"):
        run_folder.check(folder, config)  # 8 devices
    config.sample.batches *= 2
    run_folder.check(folder, config)


def test_the_record_is_complete_and_another_config_refused(folder, config):
    record = json.loads((folder / "config.json").read_text())
    flat = json.loads(json.dumps(configuration.flatten(config)))
    assert record["config"] == flat
    assert record["devices"] == ["8 x cpu"] and record["num_devices"] == 8
    assert {"version", "commit", "jax", "command"} <= set(record)
    config.seed = 3
    config.train.objective = "truly_ppo"
    config.prompts = ("photo of the face of a nurse",)
    with pytest.raises(UserError) as error:
        run_folder.check(folder, config)
    for text in (
        "seed was 0 and is now 3",
        "train.objective was 'ppo' and is now 'truly_ppo'",
        "prompts was ['photo of the face of a mechanical engineer'] and is now",
        "another --config.run.name",
    ):
        assert text in str(error.value)


def test_lines_after_the_checkpoint_are_forgotten(tmp_path):
    lines = [{"epoch": epoch, "q": epoch / 8} for epoch in range(4)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"epoch": 4, "q": 0.')
    log = run_log.open_log(tmp_path, 2)
    log.write({"epoch": 2, "q": float("nan"), "counts": [1, 2]})
    log.close()
    assert run_log.read(tmp_path) == [
        *lines[:2],
        {"epoch": 2, "q": None, "counts": [1, 2]},
    ]
    sound = [json.dumps({"epoch": epoch}) for epoch in range(4)]
    wrong = ["garbage", '{"epoch": "1"}', "5", '{"epoch": -1}', '{"epoch": 2, "q": 0.']
    text = "\n".join([sound[0], *wrong, *sound[1:]])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text.encode() + b'\n{"epoch": 4, "q": "\xff"}\n{"epo')
    assert [line["epoch"] for line in run_log.read(tmp_path)] == [0, 1, 2, 3]
    log = run_log.open_log(tmp_path, 3)
    log.close()
    assert [line["epoch"] for line in run_log.read(tmp_path)] == [0, 1, 2]
    kept = (tmp_path / "metrics.jsonl.damaged").read_bytes()
    assert kept == "\n".join(wrong).encode() + b'\n{"epoch": 4, "q": "\xff"}\n'
    (complaint,) = log.complaints
    assert "6 damaged line(s) moved to metrics.jsonl.damaged" in complaint


@pytest.mark.parametrize(
    ("epochs", "first", "part"),
    [
        ([0, 1], 2, None),
        ([], 0, None),
        ([0, 3], 4, "no line of the epoch(s) [1, 2]"),
        ([], 2, "no line of the epoch(s) [0, 1]"),
        ([0, 1], 0, "2 epoch(s) not in a checkpoint: trained again"),
    ],
)
def test_lines_that_are_missing_are_said(tmp_path, epochs, first, part):
    lines = "".join(f'{{"epoch": {epoch}}}\n' for epoch in epochs)
    (tmp_path / "metrics.jsonl").write_text(lines)
    log = run_log.open_log(tmp_path, first)
    log.close()
    assert [part in text for text in log.complaints] == [True] * (part is not None)


def test_a_run_without_its_checkpoints_is_refused(folder, config):
    run_folder.check_complete(folder.parent, config)  # nothing is saved there
    for prepare in (
        lambda place: None,
        lambda place: place.write_text(""),
        lambda place: (place.unlink(), (place / "damaged_1").mkdir(parents=True)),
    ):
        prepare(folder / "checkpoints")
        (folder / run_log.LINES).write_text('{"epoch": 0}\n' * 3)
        with pytest.raises(UserError, match=r"no checkpoint to go on.*begin anew"):
            run_folder.check_complete(folder, config)
    (folder / run_log.LINES).write_text('{"epoch": 0}\n' * 2)
    run_folder.check_complete(folder, config)  # the first is still written then
    (folder / run_log.LINES).write_text('{"epoch": 0}\n' * 9)
    (folder / "checkpoints" / "1").mkdir()
    run_folder.check_complete(folder, config)


def test_without_its_config_a_checkpoint_says_what_the_run_was(folder, config):
    (folder / "checkpoints" / "1").mkdir(parents=True)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    assert run_folder.check(folder, config, saved) is saved
    config.seed = 3
    with pytest.raises(UserError, match="seed was 0 and is now 3"):
        run_folder.check(folder, config, saved)
    with pytest.raises(UserError, match=r"no config\.json with the settings"):
        run_folder.check(folder, config)
    (folder / "config.json").write_text(json.dumps(saved | {"images_per_epoch": "64"}))
    config.seed = 0
    with pytest.raises(UserError, match=r"had '64' images.*Delete it, and the same"):
        run_folder.check(folder, config, saved)
    (folder / "config.json").write_text("[")
    with pytest.raises(UserError, match="or delete it, as the checkpoints hold a copy"):
        run_folder.check(folder, config, saved)


@pytest.fixture
def weighed(tiny, tmp_path):
    """A config with copies of the tiny model and classifier, and its description."""
    places = [shutil.copytree(one, tmp_path / one.name) for one in tiny]
    config = tiny_model.config(*places, tmp_path)
    fields = description.fields(configuration.flatten(config))
    assert sorted(fields) == [CLASSIFIER, "model"]
    weights = {x: description.identity(config, x) for x in fields}
    return config, json.loads(json.dumps(description.of(config, weights), default=list))


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("model", "unet/diffusion_pytorch_model.safetensors"),
        ("model", "vae/config.json"),
        ("model", "scheduler/scheduler_config.json"),
        ("model", "tokenizer/vocab.json"),
        (CLASSIFIER, "model.safetensors"),
        (CLASSIFIER, "preprocessor_config.json"),
    ],
)
def test_another_file_of_model_or_classifier_is_refused(weighed, field, name):
    config, record = weighed
    reference = configuration.flatten(config)[field]
    path = pathlib.Path(reference) / name
    before = record["weights"][field]
    assert before["files"][name] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b" ")
    now = description.identity(config, field)
    with pytest.raises(UserError) as error:
        description.check(record, field, reference, now)
    for text in (f": {name} differs", before["fingerprint"], now["fingerprint"]):
        assert text in str(error.value)


def test_a_checkpoint_knows_the_files_that_config_json_forgot(weighed, monkeypatch):
    config, record = weighed
    edited = {"config": record["config"]}
    run = saved_run.SavedRun(pathlib.Path(), config, edited)
    monkeypatch.setattr(run_folder, "described", lambda folder: record)
    saved_run.with_weights(run, "model", CLASSIFIER)
    path = pathlib.Path(config.model) / "vae" / "config.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"vae/config\.json differs"):
        saved_run.with_weights(run, "model")


def test_a_model_that_was_moved_is_the_same(weighed, tmp_path, monkeypatch):
    config, record = weighed
    (tmp_path / "model").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    config.model = "moved"
    now = description.resolved(config)
    assert now.model == str(tmp_path / "moved") and now.attributes == config.attributes
    identity = description.identity(now, "model")
    assert description.check(record, "model", now.model, identity)
    assert description.differences_of(record, now) == []
    del record["weights"]
    assert not description.check(record, "model", now.model, identity)
    assert "model was" in description.differences_of(record, now)[0]
