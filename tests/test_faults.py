"""Faults, made to happen: each is said, and nothing that was saved is lost."""

import dataclasses
import json
import resource
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_model
import tiny_run

from ddpo_fair import config as configuration
from ddpo_fair import parallel
from ddpo_fair.diffusion import sampler, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.learning import scoring
from ddpo_fair.loggers import run_log
from ddpo_fair.training import assembly, checkpoint, run, run_folder

EPOCHS, IMAGES = 4, 16


@pytest.fixture
def config(tiny, tmp_path):
    return tiny_model.config(*tiny, tmp_path)


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def strictly_read(folder):
    """The lines of metrics.jsonl by JSON's own rules, which know no NaN."""
    text = (folder / run_log.LINES).read_text()
    return [json.loads(line, parse_constant=no_constants) for line in text.splitlines()]


def poison(monkeypatch, wanted):
    """Makes the advantages of some images NaN: `wanted(call)` says which, from 0."""
    score, calls = scoring.score, iter(range(100))

    def poisoned(*arguments):
        scores = score(*arguments)
        values = scores.advantages.copy()
        values[wanted(next(calls))] = np.nan
        return dataclasses.replace(scores, advantages=values)

    monkeypatch.setattr(scoring, "score", poisoned)


@pytest.mark.long
def test_updates_that_are_not_finite_change_nothing_and_too_many_end_the_run(
    config, monkeypatch, capsys
):
    config.train.max_skipped_updates, config.checkpoint.keep = 2, EPOCHS
    poison(monkeypatch, lambda call: slice(None) if call else slice(0))
    with pytest.raises(UserError) as error:
        tiny_run.train(config)
    for text in (
        "Epoch 2 skipped an update",
        "after 2 others in a row",
        "max_skipped_updates=2",
        tiny_model.PROMPTS[0],
        "checkpoint 2 is intact",
    ):
        assert text in str(error.value)
    monkeypatch.undo()
    # Of epoch 3 a single image is poison, hence one update of the two.
    poison(monkeypatch, lambda call: slice(0, call))
    folder = tiny_run.train(config)  # from checkpoint 2, after two skipped in a row
    lines = strictly_read(folder)
    assert [line["skipped_updates"] for line in lines] == [0, 2, 0, 1]
    assert lines[1]["loss"] is None and lines[1]["kl_last"] is None
    assert np.isfinite(lines[3]["loss"]) and np.isfinite(lines[3]["grad_norm"])
    found = tiny_run.checksums(folder)
    assert found[1] == found[2] != found[3] != found[4]
    assert "updates skipped 2" in capsys.readouterr().out


def test_one_epoch_is_counted_as_one(config, tmp_path):
    policy = types.SimpleNamespace(model=types.SimpleNamespace(image_size=16))
    made = types.SimpleNamespace(config=config, num_images=IMAGES, policy=policy)
    for config.epochs, said in ((1, "1 epoch of 16"), (2, "2 epochs of 16")):
        assert f"begins; {said} images of 16 x 16" in run._plan(made, tmp_path, 0)


@pytest.mark.long
def test_broken_images_count_as_none(config, tmp_path, capsys):
    """The decoder gives NaN: no face is recognised, q is undefined, all goes on."""
    broken = shutil.copytree(config.model, tmp_path / "broken")
    (file,) = (broken / "vae").glob("*.safetensors")
    tensors = safetensors.numpy.load_file(file)
    tensors["decoder.conv_in.weight"][:] = 3e38  # finite, but what it makes is not
    safetensors.numpy.save_file(tensors, file)
    config.model = str(broken)
    lines = strictly_read(tiny_run.train(config))
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
    for line in lines:
        assert line["num_not_finite"] == line["num_none"] == IMAGES
        assert line["q"] is None and line["q_low"] == 0 and line["q_high"] == 1
        assert line["advantage_max"] == line["grad_norm"] == 0
        assert line["skipped_updates"] == 0  # nothing was wrong with the updates
    for line in (lines[0], lines[-1]):
        assert line["eval_q"] is None and line["eval_p_female"] is None
        assert line["eval_num_not_finite"] == line["eval_none"] == 12
    output = capsys.readouterr().out
    assert "q undefined (no face recognised)" in output and "nan" not in output
    assert "all rewards equal" in output and f"broken images {IMAGES}" in output


@pytest.mark.long
def test_a_collapsed_policy_ends_the_run(config):
    config.train.learning_rate, config.eval.images = 1.0, 0
    config.train.max_kl = 1.0
    with pytest.raises(UserError, match=r"above train\.max_kl=1: .*=restore, "):
        tiny_run.train(config)
    lines = strictly_read(run_folder.path_of(config))
    assert all(line["kl_last"] <= 1 for line in lines)


def test_a_disk_that_fills_while_saving(tmp_path):
    state = {"weights": jnp.asarray(np.random.default_rng(0).random(9999, np.float32))}
    checkpoints = checkpoint.Checkpoints(tmp_path, 3)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    with (
        tiny_run.full_disk(4096),
        pytest.raises(UserError, match="/1 is intact; the same command"),
    ):
        checkpoints.save(2, state, {})
        checkpoints.wait()
    checkpoints.close()
    assert run_folder.finished(tmp_path) == 1

    checkpoints = checkpoint.Checkpoints(tmp_path, 3)
    assert checkpoints.restore(state).epochs_done == 1
    checkpoints.save(2, state, {})
    checkpoints.wait()
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def failing(monkeypatch, config, broken, epoch):
    """Replaces the sampler from an epoch on."""
    sample, calls = sampler.sample, iter(range(100))
    size = jax.device_count() * config.sample.batch_per_device
    before = -(-(config.eval.images + config.log.images) // size)  # in the evaluation
    before += epoch * config.sample.batches

    def either(*arguments):
        return (sample if next(calls) < before else broken)(*arguments)

    monkeypatch.setattr(sampler, "sample", either)


@pytest.mark.long
def test_too_little_memory_names_the_settings(config, monkeypatch):
    failing(monkeypatch, config, lambda *_: jnp.zeros(1 << 50) + 1, 0)
    with pytest.raises(UserError) as error:
        tiny_run.train(config)
    for text in (
        "too little memory",
        "sample.batch_per_device=1",
        "train.microbatch=4",
        "train.remat=full",
        "train.lora.rank=2",
        "no checkpoint yet",
    ):
        assert text in str(error.value)


@pytest.mark.long
def test_a_device_that_fails(config, monkeypatch):
    config.eval.images = 4  # with log.images one batch

    def lost(*_):
        raise RuntimeError("device lost")

    def sample(*_):
        shape = jax.ShapeDtypeStruct((8, 1, 5, 8, 8, 4), jnp.float32)
        latents = jax.jit(lambda: jax.pure_callback(lost, shape))()
        return types.SimpleNamespace(latents=latents)

    failing(monkeypatch, config, sample, 2)
    with pytest.raises(UserError, match=r"The devices failed \(INTERNAL.* is intact"):
        tiny_run.train(config)
    monkeypatch.undo()
    assert len(strictly_read(tiny_run.train(config))) == EPOCHS


def test_every_kind_of_fault_has_its_text(tmp_path, monkeypatch):
    config = configuration.defaults()
    for error, text in (
        (MemoryError(), "too little memory"),
        (OSError(28, "No space left on device", "x"), "'x' cannot be used (No space"),
        (OSError(21, "Is a directory", ".x.part", None, "x"), "'x' cannot be used (Is"),
        (BrokenPipeError(32, "Broken"), "program that read the output has closed it."),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: gone"), "(UNAVAILABLE: gone)"),
    ):
        assert text in str(run.explained(error, config, tmp_path))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * 10**9, -1))
    with pytest.raises(UserError, match=r"3\.0 GB.*ulimit -v"):
        parallel.start(2)


def test_images_that_a_device_cannot_hold_are_refused(config, monkeypatch):
    sample = config.sample
    sample.batch_per_device, sample.batches, sample.num_steps = 8, 2, 3
    # float32: latents of 8 x 8 x 4 before and after each step, a batch of RGB images
    need = 4 * (8 * 2 * (3 + 1) * 8 * 8 * 4 + 8 * 16 * 16 * 3)
    target = parallel.Target(tuple(jax.devices()), memory=need - 1)
    monkeypatch.setattr(parallel, "at_hand", lambda: target)
    with pytest.raises(UserError, match=r"8 x sample\.batches=2 images of 16 x 16 p"):
        assembly.build(config)
    monkeypatch.setattr(stable_diffusion, "encode_prompts", lambda *_: 1 / 0)
    monkeypatch.setattr(
        parallel, "at_hand", lambda: dataclasses.replace(target, memory=need)
    )
    with pytest.raises(ZeroDivisionError):  # which comes next
        assembly.build(config)
