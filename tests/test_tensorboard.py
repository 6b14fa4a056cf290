"""TensorBoard's file: what is in it, and what happens when it cannot be written."""

import math
import struct

import numpy as np
import pytest
import tiny_run
from tensorboardX.proto import event_pb2

from ddpo_fair.loggers import run_log, tensorboard


def events(folder):
    """All events of a folder: each is length, checksum, content, checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("Q", content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def test_numbers_shares_and_grids_are_events(tmp_path):
    writer = tensorboard.open_writer(tmp_path / "board", 3)
    writer.add(3, {"q": 0.25})
    writer.add(4, {"samples": np.zeros((4, 6, 3), np.uint8)})
    version, start, scalar, image = events(tmp_path / "board")
    writer.close()
    assert version.file_version == "brain.Event:2"
    assert start.step == 3  # what an earlier process wrote of it is forgotten
    assert start.session_log.status == event_pb2.SessionLog.START
    (value,) = scalar.summary.value
    assert (scalar.step, value.tag, value.simple_value) == (3, "q", 0.25)
    (picture,) = image.summary.value
    assert (picture.image.height, picture.image.width) == (4, 6)
    log = run_log.open_log(tmp_path, 0)
    trained = {"shares": {"light": 0.75, "dark": 0.25}, "distance": 0.25}
    fresh = {"eval_shares": {"light": 0.5, "dark": 0.5}, "eval_distance": math.nan}
    log.write({"epoch": 2, "attributes": {"skin_tone": trained | fresh}})
    log.close()
    found = {
        value.tag: value.simple_value
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    path = "attributes/skin_tone"
    assert found == {
        "epoch": 2,
        f"{path}/light": 0.75,
        f"{path}/dark": 0.25,
        f"{path}/distance": 0.25,
        f"{path}/eval_light": 0.5,
        f"{path}/eval_dark": 0.5,
    }  # what is not finite has no point


@pytest.mark.parametrize("later", [10**9, 2 * 10**9])
def test_a_clock_that_goes_back_or_stands_changes_no_curve(
    tmp_path, monkeypatch, later
):
    for step, clock in enumerate((2 * 10**9, later)):
        monkeypatch.setattr("time.time", lambda now=float(clock): now)
        writer = tensorboard.open_writer(tmp_path, step)
        writer.add(step, {"q": 0.5})
        writer.close()
    steps = [event.step for event in events(tmp_path) if event.summary.value]
    assert steps == [0, 1]
    min(tmp_path.iterdir()).unlink()
    tensorboard.open_writer(tmp_path, 2).close()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_an_error_and_no_wait(tmp_path):
    writer = tensorboard.open_writer(tmp_path, 0)
    with tiny_run.full_disk(1000), pytest.raises(OSError):
        for step in range(100):
            writer.add(step, {"q": 0.5})
    writer.close()
