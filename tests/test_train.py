"""The run: what it writes, on any number of devices, and however often it is killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_model
from PIL import Image

from ddpo_fair import command_line, train
from ddpo_fair import config as configuration
from ddpo_fair.loggers import grids, run_log
from ddpo_fair.training import checkpoint, evaluation, run_folder, stopping

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 4
PATIENCE = 900  # seconds

# Fields that scripts rely on.
FIELDS = [
    "epoch",
    "reward_mean",
    "reward_std",
    "q",
    "q_low",
    "q_high",
    "num_female",
    "num_male",
    "num_none",
    "num_not_finite",
    "explicit_obeyed",
    "loss",
    "kl",
    "clip_fraction",
    "trust_region_fraction",
    "ratio_deviation",
    "grad_norm",
    "skipped_updates",
    "images",
    "images_per_second",
    "sample_seconds",
    "update_seconds",
    "epoch_seconds",
    "device_memory_gb",
]
EVALUATION_FIELDS = ["eval_q", "eval_q_low", "eval_q_high", "eval_none"]
CLOCKS = ("seconds", "per_second", "memory")  # what no two runs share


# Many small programs, compiled once for all runs and processes of this file.
CACHING = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    jax.config.update(CACHING, 0.0)
    path = tmp_path_factory.mktemp("train")
    tiny_model.save_model(path / "model")
    tiny_model.save_classifier(path / "classifier")
    return path


def settings(root, name):
    config = tiny_model.config(root / "model", root / "classifier", root / "runs")
    config.run.name = name
    config.epochs = EPOCHS
    config.eval.every_epochs = 2
    config.train.lora.target_modules = ("to_q", "to_v", "conv_out")
    # Adam moves a weight that far whatever its gradient is, even if that is rounding,
    # in which runs on eight devices and on one differ.
    config.train.learning_rate = 1e-4
    config.advantage.name = "per_prompt"  # its history must survive
    config.advantage.min_count = 2
    config.sample.explicit_share = 0.25
    return config


def numbers(folder):
    """The lines of a run without what the clock and the machine say."""
    return [
        {
            name: value
            for name, value in line.items()
            if not name.endswith(CLOCKS) and name != "device_memory_gb"
        }
        for line in run_log.read(folder)
    ]


def checksums(folder):
    """Of the arrays in each checkpoint that is kept."""
    found = {}
    for path in (folder / "checkpoints").glob("[0-9]*"):
        (file,) = (path / checkpoint.METADATA).glob("metadata")
        found[int(path.name)] = json.loads(file.read_text())["checksum"]
    return found


@pytest.fixture(scope="module")
def unbroken(root):
    """The folder of a run that nothing disturbed."""
    config = settings(root, "unbroken")
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
    evaluated = [line["epoch"] for line in lines if "eval_q" in line]
    assert evaluated == [0, 2, 3]  # before training, every second, the last
    for epoch in evaluated:
        assert set(EVALUATION_FIELDS) <= set(lines[epoch])
        assert sum(lines[epoch]["eval_p_female_histogram"]) == 12


def test_ratio_is_one_on_policy(unbroken):
    for line in run_log.read(unbroken):
        assert line["ratio_deviation"] <= 1e-5


def test_the_policy_moves(unbroken):
    for line in run_log.read(unbroken):
        assert line["kl_last"] > 0 and line["skipped_updates"] == 0


def test_the_folder_is_complete(unbroken):
    record = json.loads((unbroken / "config.json").read_text())
    assert record["config"]["train.lora.rank"] == 2 and record["images_per_epoch"] == 16
    assert set(checksums(unbroken)) == {2, 3, 4}
    assert list((unbroken / "tensorboard").glob("events*"))
    grids = sorted(path.name for path in (unbroken / "samples").glob("*"))
    assert grids == ["epoch_0000.png", "epoch_0002.png", "epoch_0003.png"]


def test_grids_show_the_same_seeds(unbroken):
    before, after = (
        np.asarray(Image.open(unbroken / "samples" / f"epoch_000{epoch}.png"), np.int32)
        for epoch in (0, 3)
    )
    assert before.shape == after.shape
    pictures = np.abs(before - after)[grids.STRIP :]
    assert 0 < pictures.mean() < 40  # changed, but the same pictures


def test_a_finished_run_stays_as_it_is(unbroken, root):
    lines = run_log.read(unbroken)
    train.train(settings(root, "unbroken"))
    assert run_log.read(unbroken) == lines


def test_a_request_to_stop_loses_nothing(unbroken, root, monkeypatch):
    """Not even the evaluation that was under way."""
    config, stop = settings(root, "stopped"), stopping.Stop()
    start = evaluation.start

    def start_and_stop(run, params, epoch):
        if epoch == 2:
            stop.requested = True
        return start(run, params, epoch)

    monkeypatch.setattr(evaluation, "start", start_and_stop)
    with pytest.raises(stopping.Interrupted, match="3"):  # epochs that are done
        train.train(config, stop)
    folder = run_folder.path_of(config)
    assert len(run_log.read(folder)) == 2
    monkeypatch.undo()
    train.train(config)
    assert numbers(folder) == numbers(unbroken)
    assert checksums(folder)[EPOCHS] == checksums(unbroken)[EPOCHS]


@pytest.mark.long
def test_other_settings_train_too(root):
    config = settings(root, "others")
    config.epochs = 2
    config.prompts = tiny_model.PROMPTS
    config.reward.name, config.advantage.name = "shift", "batch"
    config.train.objective = "truly_ppo"
    config.train.lora.rank = 0
    config.train.learning_rate = 1e-4
    config.train.updates_per_epoch, config.train.inner_epochs = 1, 2
    config.train.skip_last_steps, config.train.timestep_fraction = 1, 0.7
    config.train.microbatch = 4
    config.train.remat = "full"
    train.check(config, [])
    train.train(config)
    lines = run_log.read(run_folder.path_of(config))
    for line in lines:
        assert list(line["prompts"]) == list(tiny_model.PROMPTS)
        parts = line["prompts"].values()
        for name in ("num_female", "num_male", "num_none"):
            assert sum(part[name] for part in parts) == line[name]
        assert 0 <= line["reward_mean"] <= 1 and line["ratio_deviation"] <= 1e-5
        assert {"eval_q", "q"} <= set(line["prompts"][tiny_model.PROMPTS[1]])


def start_process(root, config, num_devices=8):
    """`python -m ddpo_fair.train` with these settings, on its way."""
    file = root / f"{config.run.name}.py"
    file.write_text(
        "from ddpo_fair import config\n"
        "def get_config(variant=None):\n"
        "    settings = config.defaults()\n"
        f"    settings.update_from_flattened_dict({configuration.flatten(config)!r})\n"
        "    return settings\n"
    )
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={num_devices}")
    return subprocess.Popen(
        [sys.executable, "-m", "ddpo_fair.train", f"--config={file}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, CACHING.upper(): "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(process, condition):
    """Returns when the condition holds, which the process brings about."""
    for _ in range(PATIENCE * 100):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no progress")


def wait_for_lines(process, folder, count):
    """Returns when the run has written so many lines."""
    wait_until(process, lambda: len(run_log.read(folder)) >= count)


def wait_for_checkpoint(process, folder):
    """Returns when the run has a whole checkpoint; each follows its line."""
    wait_until(process, lambda: any((folder / "checkpoints").glob("[0-9]")))


def test_a_second_process_is_refused(root):
    config = settings(root, "taken")
    descriptor = run_folder.lock(run_folder.path_of(config))
    process = start_process(root, config)
    _, errors = process.communicate(timeout=PATIENCE)
    run_folder.unlock(descriptor)
    assert process.returncode == command_line.BAD_INPUT
    assert f"another process trains in {run_folder.path_of(config)}" in errors
    assert f"process {os.getpid()} on" in errors and "Traceback" not in errors


def test_killed_and_continued_equals_unbroken(unbroken, root):
    config = settings(root, "killed")
    folder = run_folder.path_of(config)

    process = start_process(root, config)
    assert process.stdout.readline().startswith("Model: ")
    process.send_signal(signal.SIGINT)
    assert "SIGINT" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == stopping.AT_ONCE

    process = start_process(root, config)
    wait_for_lines(process, folder, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == stopping.INTERRUPTED, errors
    assert "The same command continues" in errors

    process = start_process(root, config)
    wait_for_lines(process, folder, len(run_log.read(folder)) + 1)
    process.kill()
    process.communicate()

    process = start_process(root, config)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "continues after epoch" in output
    assert numbers(folder) == numbers(unbroken)
    assert checksums(folder)[EPOCHS] == checksums(unbroken)[EPOCHS]


# What magnifies a difference in the parameters of 1e-7, and steers nothing: the tiny
# classifier, which is steep, and sums and differences of terms near 1 that cancel.
MAGNIFYING = {
    "eval_p_female": {"rel": 1e-3},
    "eval_polarisation": {"rel": 1e-3},
    "loss": {"rel": 1e-6, "abs": 1e-6},
    "kl": {"rel": 1e-4, "abs": 1e-6},
    "kl_last": {"rel": 1e-4, "abs": 1e-6},
    "grad_norm": {"rel": 1e-4},
}


@pytest.mark.long
def test_killed_on_eight_devices_and_continued_on_one(unbroken, root):
    config = settings(root, "moved")
    folder = run_folder.path_of(config)
    process = start_process(root, config)
    wait_for_checkpoint(process, folder)
    process.kill()
    process.communicate()

    config.sample.batch_per_device, config.train.microbatch = 8, 32
    process = start_process(root, config, num_devices=1)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "continues after epoch" in output
    for found, expected in zip(numbers(folder), numbers(unbroken), strict=True):
        assert set(found) == set(expected)
        for name, number in expected.items():
            if isinstance(number, int):
                assert found[name] == number, name
            elif name == "ratio_deviation":
                assert found[name] < 1e-5
            elif isinstance(number, float):
                near = MAGNIFYING.get(name, {"rel": 1e-6})
                assert found[name] == pytest.approx(number, **near), name
    for name, found in arrays(folder).items():
        expected = arrays(unbroken)[name]
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 1e-6, name


def arrays(folder):
    """Parameters and optimizer after the last epoch, each as one float64 vector."""
    path = (folder / "checkpoints" / str(EPOCHS) / "state").resolve()
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    reader = ocp.PyTreeCheckpointer()
    described = reader.metadata(path).item_metadata.tree
    wanted = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=host), described)
    state = reader.restore(path, restore_args=wanted)
    return {
        name: np.concatenate(
            [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(state[name])]
        )
        for name in ("params", "optimizer")
    }


def test_the_state_is_small(unbroken):
    """Parameters of LoRA, two moments of Adam, counters: nothing else."""
    size = sum(
        path.stat().st_size
        for path in (unbroken / "checkpoints" / str(EPOCHS)).rglob("*")
        if path.is_file()
    )
    assert size < 200_000
    assert jax.device_count() == 8
