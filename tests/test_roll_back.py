"""A collapse is taken back: the run goes on otherwise, always in the same way."""

import re

import jax.numpy as jnp
import pytest
import tiny_model
import tiny_run
from tiny_run import checksums, numbers

from ddpo_fair import rng
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import run_log
from ddpo_fair.training import checkpoint, metrics, run_folder
from ddpo_fair.training import epoch as epochs

pytestmark = pytest.mark.long

EPOCHS = 4


class Killed(BaseException):
    """Ends a run at once, as nothing in it expects."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("roll_back")


def settings(tiny, root, name, **changes):
    config = tiny_model.config(*tiny, root)
    config.run.name = name
    config.eval.every_epochs = EPOCHS
    config.train.learning_rate = 1e-3
    config.train.on_divergence, config.train.max_restores = "restore", 100
    config.checkpoint.keep = 10
    config.train.update(changes)
    return config


@pytest.fixture(scope="module")
def unbroken(tiny, root):
    """The folder of a run in which nothing counts as a collapse."""
    config = settings(tiny, root, "unbroken", max_kl=0.0)
    return tiny_run.train(config)


@pytest.fixture(scope="module")
def limit(unbroken):
    """A bound that the run first exceeds after epoch 0, and the epoch of that."""
    kls = [line["kl_last"] for line in run_log.read(unbroken)]
    epoch = max(range(1, EPOCHS), key=lambda epoch: kls[epoch])
    if kls[epoch] <= kls[0]:
        pytest.fail(f"epoch 0 moves most, choose other settings: {kls}")
    return 0.99 * kls[epoch], next(
        e for e in range(EPOCHS) if kls[e] > 0.99 * kls[epoch]
    )


@pytest.fixture(scope="module")
def rolled_back(tiny, root, limit):
    """The folder of a run that collapsed, and went on."""
    config = settings(tiny, root, "rolled_back", max_kl=limit[0])
    return tiny_run.train(config)


def test_a_collapse_is_tried_again_with_other_random_numbers(
    unbroken, rolled_back, limit
):
    largest, epoch = limit
    found, before = numbers(rolled_back), numbers(unbroken)
    assert [line["epoch"] for line in found] == list(range(EPOCHS))
    assert found[:epoch] == before[:epoch]  # up to there nothing is different
    assert found[epoch]["roll_backs"] >= 1 and before[epoch]["roll_backs"] == 0
    assert found[epoch]["loss"] != before[epoch]["loss"]
    assert all(line["kl_last"] <= largest for line in found)
    assert checksums(rolled_back)[epoch] == checksums(unbroken)[epoch]
    assert checksums(rolled_back)[epoch + 1] != checksums(unbroken)[epoch + 1]


def test_killed_after_a_roll_back_it_ends_with_the_same_numbers(
    tiny, root, rolled_back, limit, monkeypatch, capsys
):
    config = settings(tiny, root, "killed", max_kl=limit[0])
    update = epochs.update

    def kill_later(run, state, samples, advantages, number):
        if number >= rng.MOST_EPOCHS:
            raise Killed
        return update(run, state, samples, advantages, number)

    monkeypatch.setattr(epochs, "update", kill_later)
    with pytest.raises(Killed):
        tiny_run.train(config)
    printed = capsys.readouterr().out
    assert re.search(r"Epoch \d moved .* Restore 1 of at most 100: goes on", printed)
    monkeypatch.undo()
    folder = tiny_run.train(config)
    assert numbers(folder) == numbers(rolled_back)
    assert checksums(folder) == checksums(rolled_back)


def test_too_many_roll_backs_end_the_run(tiny, root, monkeypatch, capsys):
    """Also in the first epoch: then it goes back to the state before training."""
    config = settings(tiny, root, "hopeless", max_kl=100.0, max_restores=1)
    measure = metrics.of_updates
    monkeypatch.setattr(
        metrics, "of_updates", lambda measured: measure(measured) | {"kl_last": 101.0}
    )
    with pytest.raises(UserError, match=r"after 1 restores.*max_restores=1"):
        tiny_run.train(config)
    assert "goes on from checkpoint 0 with" in capsys.readouterr().out
    folder = run_folder.path_of(config)
    assert set(checksums(folder)) == {0} and run_log.read(folder) == []


def test_only_checkpoints_of_an_undisturbed_run_are_gone_back_to(tmp_path):
    state = {"weights": jnp.arange(3.0)}
    checkpoints = checkpoint.Checkpoints(tmp_path, 5)
    for number in (2, 4, 5):  # an interruption left the last one
        checkpoints.save(number, {"weights": jnp.arange(3.0) + number}, {"line": None})
    found = checkpoints.go_back(checkpoint.shapes(state), 2)
    assert found.epochs_done == 4 and found.state["weights"].tolist() == [4, 5, 6]
    assert checkpoints.newest() == 4
    checkpoints.save(5, state, {})  # its number is free again
    checkpoints.wait()
    assert checkpoints.restore(state).state["weights"].tolist() == [0, 1, 2]
    checkpoints.close()
    checkpoints = checkpoint.Checkpoints(tmp_path / "empty", 2)
    with pytest.raises(UserError, match="no checkpoint to go back to"):
        checkpoints.go_back({"weights": jnp.arange(3.0)}, 1)
    checkpoints.close()
    found = {rng.attempt(e, r) for e in (0, 1, 999_999) for r in (0, 1, 1000)}
    assert len(found) == 9 and max(found) < 2**31
    assert rng.attempt(7, 0) == 7
