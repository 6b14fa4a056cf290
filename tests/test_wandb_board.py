"""Weights & Biases: for real, offline; and what is said where it cannot be used."""

import struct
import sys
import time

import numpy as np
import pytest
import tiny_run

from ddpo_fair import config as configuration
from ddpo_fair import config_rules
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import run_log, weights_and_biases

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Settings of a run in tmp_path, with a key in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = configuration.defaults()
    settings.run.dir, settings.run.name = str(tmp_path.parent), tmp_path.name
    settings.log.wandb = "team/fair faces"
    return settings


def records(folder):
    """Everything in the file that `wandb sync` uploads: LevelDB's format of a log."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = path.read_bytes()
    place, found, part = 7, [], b""  # after the file's own header
    while place < len(content):
        left = 32768 - place % 32768  # of the block
        if left < 7:  # too little for a header
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


@pytest.mark.long
def test_wandb_offline_has_the_numbers_and_grids_and_no_secret(
    config, tmp_path, monkeypatch
):
    pytest.importorskip("wandb")
    monkeypatch.setattr(sys, "argv", ["name-of-the-command"])
    board = weights_and_biases.open_writer(tmp_path, config)
    assert str(tmp_path / "wandb" / "offline-run-") in weights_and_biases.where(board)
    journal = run_log.open_log(tmp_path, 0, board)
    for epoch, q in enumerate((0.25, 0.5)):
        journal.grid(epoch, np.full((2, 8, 8, 3), q), f"epoch {epoch}")
        journal.write({"epoch": epoch, "q": q, "kl": float("nan")})
    journal.close()
    said = records(tmp_path)
    while not said[-1].HasField("exit"):  # W&B's own process writes it
        time.sleep(0.1)
        said = records(tmp_path)
    (run,) = (record.run for record in said if record.HasField("run"))
    assert (run.entity, run.project) == ("team", "fair faces")
    assert run.display_name == tmp_path.name
    assert run.run_id == (tmp_path / "wandb" / "run_id").read_text().strip()
    lines = [
        {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        for record in said
        if record.HasField("history")
    ]
    numbers = [(line["epoch"], line["q"]) for line in lines]
    assert numbers == [("0", "0.25"), ("1", "0.5")]
    assert all("kl" not in line for line in lines)
    assert len(list(tmp_path.glob("wandb/*/files/media/images/samples_*.png"))) == 2
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert sys.argv[0].encode() not in content, path


def test_wandb_without_its_package_is_refused_and_its_failure_said_once(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (told,) = config_rules.violations(config)
    assert 'pip install "ddpo_fair[wandb]"' in told
    with pytest.raises(UserError, match="needs the package wandb"):
        weights_and_biases.open_writer(tmp_path, config)
    config.log.wandb = ""
    assert not config_rules.violations(config)
    first = weights_and_biases._run_id(tmp_path)
    assert weights_and_biases._run_id(tmp_path) == first
    assert first.isalnum()
    board = weights_and_biases.Writer(Broken())
    for step in range(3):
        board.add(step, {"q": 0.5})
    board.close()
    assert capsys.readouterr().err.count("no route") == 1


OPEN = """
import pathlib, sys
from ddpo_fair import config, errors
from ddpo_fair.loggers import weights_and_biases
settings = config.defaults()
settings.log.wandb = "fair"
try:
    weights_and_biases.open_writer(pathlib.Path(sys.argv[1]), settings)
except errors.UserError as error:
    print(error)
"""


@pytest.mark.long
def test_wandb_without_a_way_to_its_server_is_told(tmp_path):
    pytest.importorskip("wandb")
    variables = {
        "WANDB_API_KEY": KEY,
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # nobody listens
        "WANDB_INIT_TIMEOUT": "2",
    }
    # W&B reads its variables once in a process
    ((told, _),) = tiny_run.finish(tiny_run.python("-c", OPEN, tmp_path, **variables))
    assert "WANDB_MODE=offline" in told
    assert "cannot be used" in told
    assert KEY not in told


class Broken:
    """A run whose server is gone."""

    def log(self, values, step):
        raise ConnectionError("no route")
