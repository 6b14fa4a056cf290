"""A disk that is full, or can only be read: a small one, mounted for the test."""

import contextlib
import shutil
import subprocess
import time

import jax.numpy as jnp
import pytest
import tiny_model
import tiny_run

from ddpo_fair import train
from ddpo_fair.errors import UserError
from ddpo_fair.learning import scoring
from ddpo_fair.loggers import run_log
from ddpo_fair.process import BAD_INPUT
from ddpo_fair.training import assembly, checkpoint, run_folder

pytestmark = pytest.mark.long

EPOCHS = 4


@pytest.fixture
def disk(tmp_path):
    """A folder that is a file system of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=16m", "none", place):
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def mount(*arguments):
    """Whether it could be mounted."""
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


def fill(disk):
    """Takes all space that is left."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb", 0) as file:
        while True:
            file.write(bytes(4096))


@pytest.fixture
def command(tiny, tmp_path, disk, monkeypatch):
    """Trains in a folder on the disk by its command line; returns its exit status."""
    monkeypatch.setattr(train.stopping.Stop, "listen", lambda _: None)
    monkeypatch.setattr(assembly, "build", tiny_run.build)
    config = tiny_model.config(*tiny, disk / "runs", **{"eval.images": 0})
    config.epochs = EPOCHS
    file = tiny_run.config_file(config, tmp_path)
    return lambda: train.main([f"--config={file}"])


def test_nothing_is_lost_when_the_disk_is_full(disk, command, monkeypatch, capsys):
    folder = disk / "runs" / "tiny"
    score, save = scoring.score, checkpoint.Checkpoints.save

    def fill_before_logging(*arguments):
        if len(run_log.read(folder)) == 1:
            while run_folder.finished(folder / "checkpoints") != 1:
                time.sleep(0.01)  # it is written in the background
            fill(disk)
        return score(*arguments)

    def fill_before_saving(self, epochs_done, *rest):
        if epochs_done == 3:
            fill(disk)
        save(self, epochs_done, *rest)
        self.wait()  # before the next line of metrics meets the full disk

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score", fill_before_logging)
        assert command() == BAD_INPUT
    (message,) = capsys.readouterr().err.splitlines()
    assert (
        "No space left on device" in message and "the same command continues" in message
    )
    first = run_log.read(folder)
    newest = 1
    assert f"checkpoints/{newest} is intact" in message and len(first) >= newest

    assert command() == BAD_INPUT  # it is still full
    (message,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in message
    assert run_folder.finished(folder / "checkpoints") == newest

    (disk / "filler").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", fill_before_saving)
        assert command() == BAD_INPUT
    output, message = capsys.readouterr()
    assert len(message.splitlines()) == 1
    assert f"continues after epoch {newest - 1};" in output
    for text in ("A checkpoint in", "No space left", "checkpoints/2 is intact"):
        assert text in message
    assert run_log.read(folder)[:newest] == first[:newest]

    (disk / "filler").unlink()
    assert command() == 0
    assert "continues after epoch 1;" in capsys.readouterr().out
    assert [line["epoch"] for line in run_log.read(folder)] == list(range(EPOCHS))
    assert run_folder.finished(folder / "checkpoints") == EPOCHS


def test_a_full_disk_has_no_room_for_a_new_run(disk):
    fill(disk)
    with pytest.raises(UserError, match=r"cannot be written \(No space left.*free"):
        run_folder.lock(disk / "runs" / "new")


def test_a_disk_that_can_only_be_read(disk, command, capsys):
    folder = disk / "runs" / "tiny"
    state = {"weights": jnp.arange(5.0)}
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", 2)
    checkpoints.save(3, state, {})
    checkpoints.wait()
    checkpoints.close()
    assert mount("-o", "remount,ro", disk)
    assert command() == BAD_INPUT
    (message,) = capsys.readouterr().err.splitlines()
    assert f"'{folder}' cannot be written (Read-only file system)" in message
    found = checkpoint.read_one(folder / "checkpoints", 3, checkpoint.shapes(state))
    assert found["weights"].tolist() == [0, 1, 2, 3, 4]
