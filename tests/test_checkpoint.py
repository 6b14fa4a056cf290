"""Checkpoints: exact, kept in number, and never trusted when damaged."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpo_fair import parallel
from ddpo_fair.errors import UserError
from ddpo_fair.training import checkpoint

REST = {"history": {"a nurse": [0.1, 1 / 3]}, "target_classes": {"a nurse": 1}}


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


def restore(folder):
    checkpoints = checkpoint.Checkpoints(folder, 3)
    try:
        return checkpoints.restore(make_state(0))
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


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None


def test_round_trip_is_exact(tmp_path):
    save(tmp_path, 1, 2)
    found = restore(tmp_path)
    assert_same(found, 2)
    assert found.complaints == ()
    assert {name: found.metadata[name] for name in REST} == REST


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["3", "4"]


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, empty, pathlib.Path.unlink])
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


def test_none_that_is_sound(tmp_path):
    save(tmp_path, 1)
    for path in data_files(tmp_path / "1"):
        cut(path)
    with pytest.raises(UserError, match=r"No checkpoint in .* can be used"):
        restore(tmp_path)
    assert (tmp_path / "1").is_dir()  # nothing was touched


def test_an_unfinished_one_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp-0").mkdir()
    assert_same(restore(tmp_path), 1)


def test_the_checksum_sees_every_bit():
    state = {"a": jnp.arange(6, dtype=jnp.float32), "b": jnp.int32(3)}
    first = int(checkpoint.checksum(state))
    for index in range(6):
        bits = np.arange(6, dtype=np.float32).view(np.uint32)
        bits[index] ^= 1
        changed = {**state, "a": jnp.asarray(bits.view(np.float32))}
        assert int(checkpoint.checksum(changed)) != first
    assert int(checkpoint.checksum({**state, "b": jnp.int32(2)})) != first
