"""Checkpoints: exact, kept in number, and never trusted when damaged."""

import os
import pathlib
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from ddpo_fair import parallel
from ddpo_fair.errors import HostLost, UserError
from ddpo_fair.training import checkpoint, run_folder

RUN = {"config": {"seed": 0}}
REST = {
    "run": RUN,
    "history": {"a nurse": [0.1, 1 / 3]},
    "target_classes": {"a nurse": 1},
}


def make_state(number):
    random = np.random.default_rng(number)
    tree = {
        "conv": {"down": random.standard_normal((64, 16), dtype=np.float32)},
        "updates": np.int32(number),
    }
    return parallel.replicate(tree)


def save(folder, *numbers, keep=3):
    checkpoints = checkpoint.Checkpoints(folder, keep)
    for number in numbers:
        checkpoints.save(number, make_state(number), {**REST, "number": number})
    checkpoints.wait()
    checkpoints.close()


def restore(folder, template=None):
    checkpoints = checkpoint.Checkpoints(folder, 3)
    try:
        return checkpoints.restore(template or make_state(0))
    finally:
        checkpoints.close()


def data_files(folder):
    """Where the arrays are; the store keeps a second copy of small ones."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if path.stat().st_size > 4000]


def assert_same(found, number):
    assert found.epochs_done == number and found.metadata["number"] == number
    for ours, theirs in zip(
        jax.tree.leaves(found.state), jax.tree.leaves(make_state(number)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.sharding == theirs.sharding


def test_the_newest_are_kept_and_come_again_exactly(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["3", "4"]
    (tmp_path / "5.orbax-checkpoint-tmp-0").mkdir()  # unfinished, and so none
    found = restore(tmp_path)
    assert_same(found, 4)
    assert found.complaints == ()
    assert {name: found.metadata[name] for name in REST} == REST
    gone = r"2 was deleted meanwhile.* start again .* there are \[3, 4\]"
    with pytest.raises(UserError, match=gone):  # evaluate may have begun with it
        checkpoint.read_one(tmp_path, 2, checkpoint.shapes(make_state(2)))


def test_one_of_other_arrays_may_be_another_versions(tmp_path):
    save(tmp_path, 2)
    state = make_state(2)
    other = state | {"conv": state["conv"] | {"up": state["conv"]["down"]}}
    said = "2.* other arrays than this version .* if another version wrote it, that one"
    with pytest.raises(UserError, match=said):
        restore(tmp_path, other)
    with pytest.raises(UserError, match=said):
        checkpoint.read_one(tmp_path, 2, checkpoint.shapes(other))
    assert_same(restore(tmp_path), 2)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, pathlib.Path.unlink])
def test_a_damaged_newest_one_is_named_and_passed_over(tmp_path, harm):
    save(tmp_path, 1, 2)
    for path in data_files(tmp_path / "2"):
        harm(path)
    found = restore(tmp_path)
    assert_same(found, 1)
    (complaint,) = found.complaints
    assert str(tmp_path / "2") in complaint and "checkpoint 1 is used" in complaint
    assert (tmp_path / "damaged_2").is_dir()
    save(tmp_path, 2)  # its number is free again
    assert_same(restore(tmp_path), 2)


def with_a_fifo(path, of):
    shutil.copytree(of, path)
    (path / run_folder.METADATA / "metadata").unlink()
    os.mkfifo(path / run_folder.METADATA / "metadata")


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        (lambda path, of: shutil.copytree(of, path), "it is a copy of checkpoint 1"),
        (lambda path, of: path.write_text("notes"), "it is no folder"),
        (lambda path, of: path.symlink_to(of.with_name("nothing")), "it is no folder"),
        (with_a_fifo, "is no file"),
    ],
)
def test_what_is_no_checkpoint_is_kept_aside(tmp_path, instead, reason):
    save(tmp_path, 1)
    instead(tmp_path / "2", tmp_path / "1")
    (tmp_path / "damaged_2").symlink_to(tmp_path / "nothing")
    (tmp_path / "\u0665").mkdir()  # a five, but no name of a checkpoint
    assert run_folder.numbers(tmp_path)[0] == 1
    found = restore(tmp_path)
    assert_same(found, 1)
    assert reason in found.complaints[0]
    assert os.path.lexists(tmp_path / "damaged_2_2")
    assert (tmp_path / "damaged_2").is_symlink()
    save(tmp_path, 2)
    assert_same(restore(tmp_path), 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"number": 2', '"number": 3'),
        ('"a nurse": [0.1', '"a nurse": [0.2'),
        ('"history"', '"histori"'),
        ('"digest"', '"digesu"'),
        ('"run"', '"ruo"'),
        ('"checksum"', '"checksun"'),
    ],
)
def test_no_change_of_the_json_beside_the_arrays_is_used(tmp_path, old, new):
    save(tmp_path, 1, 2)
    path = tmp_path / "2" / run_folder.METADATA / "metadata"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert run_folder.described(tmp_path) == REST["run"]  # by checkpoint 1
    found = restore(tmp_path)
    assert_same(found, 1)
    assert "damaged" in found.complaints[0]


@pytest.mark.long
def test_a_damaged_one_fills_no_pages(tmp_path):
    """Orbax ends at the first array that it misses; others are on their way."""
    arrays = {f"w{i}": np.full((64, 64), i, np.float32) for i in range(60)}
    code = (
        "import pathlib, sys, jax, numpy; from ddpo_fair.training import checkpoint;"
        "folder = pathlib.Path(sys.argv[1]);"
        "state = {f'w{i}': numpy.full((64, 64), i, 'float32') for i in range(60)};"
        "print(checkpoint.Checkpoints(folder, 3).restore(jax.device_put(state)))"
    )
    checkpoints = checkpoint.Checkpoints(tmp_path, 3)
    for number in (1, 2):
        checkpoints.save(number, parallel.replicate(arrays), {})
    checkpoints.wait()
    checkpoints.close()
    for path in (tmp_path / "2").rglob("d/*"):
        path.unlink()
    (tmp_path / "3.orbax-checkpoint-tmp-0").mkdir()
    ((output, errors),) = tiny_run.finish(tiny_run.python("-c", code, tmp_path))
    assert "epochs_done=1" in output
    assert len(errors.splitlines()) <= 5, errors


def test_what_orbax_drops_is_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    checkpoint._hush.__wrapped__()
    for path, exception in (
        ("/x/orbax/checkpoint/serialization.py", "while reading array index: ()"),
        ("/x/tensorstore.py", "Event loop is closed"),
        ("/x/ours.py", "something else"),
    ):
        code = types.SimpleNamespace(co_filename=path)
        coroutine = types.SimpleNamespace(cr_code=code)
        sys.unraisablehook(
            types.SimpleNamespace(object=coroutine, exc_value=ValueError(exception))
        )
    assert [str(one.exc_value) for one in printed] == ["something else"]


@pytest.mark.parametrize(
    ("count", "text", "kind"),
    [
        (2, "UNKNOWN: Gloo AllGather failed: Connection reset by peer", HostLost),
        (2, "os_error_code='28' Connection reset", UserError),
        (2, "Destination exists", UserError),
        (1, "Connection reset by peer", UserError),
    ],
)
def test_a_process_lost_while_saving_is_no_full_disk(
    tmp_path, monkeypatch, count, text, kind
):
    def fail():
        raise ValueError(text)

    checkpoints = checkpoint.Checkpoints(tmp_path, 3)
    monkeypatch.setattr(parallel, "num_processes", lambda: count)
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
    with pytest.raises(UserError) as error:
        checkpoints.wait()
    assert type(error.value) is kind


def test_none_that_is_sound(tmp_path):
    save(tmp_path, 1)
    for path in data_files(tmp_path / "1"):
        cut(path)
    with pytest.raises(UserError, match=r"No checkpoint in .* can be used"):
        restore(tmp_path)
    assert (tmp_path / "1").is_dir()  # nothing was touched


def test_the_checksum_sees_every_bit():
    state = {"a": jnp.arange(6, dtype=jnp.float32), "b": jnp.int32(3)}
    first = int(checkpoint.checksum(state))
    for index in range(6):
        bits = np.arange(6, dtype=np.float32).view(np.uint32)
        bits[index] ^= 1
        changed = {**state, "a": jnp.asarray(bits.view(np.float32))}
        assert int(checkpoint.checksum(changed)) != first
    assert int(checkpoint.checksum({**state, "b": jnp.int32(2)})) != first
