"""Several processes for real: as on several hosts, each with devices of its own."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_model

from ddpo_fair import command_line
from ddpo_fair import config as configuration
from ddpo_fair.loggers import run_log
from ddpo_fair.training import run_folder, saved_run, stopping

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 2
PATIENCE = 1800  # seconds, on a machine with other work
TIMEOUT_SECONDS = 20  # after which a silent process counts as lost

# What is the same however the images are divided among devices.
EXACT = ("epoch", "q", "num_female", "num_male", "num_none", "reward_mean", "eval_q")
ROUNDED = ("loss", "kl_last", "grad_norm")  # float32, summed in another order


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    tiny_model.save_model(path / "model")
    tiny_model.save_classifier(path / "classifier")
    return path


def settings(root, name, batch_per_device=1):
    config = tiny_model.config(root / "model", root / "classifier", root / "runs")
    config.run.name = name
    config.epochs = EPOCHS
    config.sample.batch_per_device = batch_per_device
    config.train.microbatch = 4 * batch_per_device
    config.train.lora.target_modules = ("to_q", "to_v", "conv_out")
    config.advantage.name = "per_prompt"  # its history must be the same everywhere
    config.advantage.min_count = 2
    config.distributed.timeout_seconds = TIMEOUT_SECONDS
    return config


def start(root, config, num_devices, more=()):
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
        [sys.executable, "-m", "ddpo_fair.train", f"--config={file}", *more],
        cwd=ROOT,
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(root, config):
    """Two processes of one run, with four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            root,
            config,
            num_devices=4,
            more=(
                "--config.distributed.enabled=true",
                f"--config.distributed.coordinator_address=localhost:{port}",
                "--config.distributed.num_processes=2",
                f"--config.distributed.process_id={process}",
            ),
        )
        for process in range(2)
    ]


def finish(processes, status=0):
    """What each of the processes said, once all ended with `status`."""
    said = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(said), said
    return said


def wait_for_a_line(processes, folder):
    """Returns when the run has written its first line."""
    deadline = time.monotonic() + PATIENCE
    while not run_log.read(folder):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def trained(folder):
    """The adapters at the end of a run, in a row."""
    run = saved_run.read(folder)
    template = saved_run.unet_template(pathlib.Path(run.config.model))
    params = saved_run.trained_params(run, EPOCHS, template)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def assert_same_run(found, expected):
    """Whether two folders hold the same run but for the order of sums."""
    lines = run_log.read(found), run_log.read(expected)
    assert len(lines[0]) == EPOCHS
    for one, other in zip(*lines, strict=True):
        for name in EXACT:
            assert one.get(name) == other.get(name), name
        for name in ROUNDED:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name
    np.testing.assert_allclose(trained(found), trained(expected), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def alone(root):
    """The folder of the run of one process with one device."""
    config = settings(root, "alone", batch_per_device=8)
    finish([start(root, config, num_devices=1)])
    return run_folder.path_of(config)


def test_two_processes_equal_one(alone, root):
    config = settings(root, "two")
    (output, _), (silence, _) = finish(start_two(root, config))
    folder = run_folder.path_of(config)
    assert_same_run(folder, alone)
    assert "on 8 x cpu" in output and f"Finished: {folder}" in output
    lines = [line for line in silence.splitlines() if "[Gloo]" not in line]
    assert lines == []  # the main process talks
    assert saved_run.read(folder).record["num_devices"] == 8


def test_a_refusal_ends_all_processes(root):
    config = settings(root, "refused")
    folder = run_folder.path_of(config)
    descriptor = run_folder.lock(folder)
    said = finish(start_two(root, config), command_line.BAD_INPUT)
    run_folder.unlock(descriptor)
    assert f"another process trains in {folder}" in said[0][1]
    assert "Traceback" not in said[0][1] + said[1][1]


@pytest.mark.slow
def test_one_process_that_is_asked_to_leave_takes_the_others_along(alone, root):
    config = settings(root, "asked")
    folder = run_folder.path_of(config)
    processes = start_two(root, config)
    wait_for_a_line(processes, folder)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, stopping.INTERRUPTED)
    finish(start_two(root, config))
    assert_same_run(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_and_all_continue(alone, root, lost):
    config = settings(root, f"lost_{lost}")
    folder = run_folder.path_of(config)
    processes = start_two(root, config)
    wait_for_a_line(processes, folder)
    processes[lost].kill()
    survivor = processes[1 - lost]
    begun = time.monotonic()
    _, errors = survivor.communicate(timeout=PATIENCE)
    assert time.monotonic() - begun < 6 * TIMEOUT_SECONDS
    assert survivor.returncode not in (0, command_line.BAD_INPUT), errors
    assert "same command on all hosts" in errors
    processes[lost].communicate()
    finish(start_two(root, config))
    assert_same_run(folder, alone)
