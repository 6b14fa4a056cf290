"""Several processes for real: as on several hosts, each with devices of its own."""

import os
import pathlib
import re
import signal
import socket
import time

import jax
import numpy as np
import pytest
import tiny_model
import tiny_run

from ddpo_fair.loggers import run_log
from ddpo_fair.process import BAD_INPUT
from ddpo_fair.training import run_folder, saved_run, stopping

pytestmark = pytest.mark.long

EPOCHS = 6
TIMEOUT_SECONDS = 20  # after which a silent process counts as lost
# What XLA's transport says of itself, in parts.
GLOO = re.compile(
    r"\[Gloo\] Rank \d+ is connected to|\d+ peer ranks\."
    r"|Expected number of connected peer ranks is : \d+"
)

# What is the same however the images are divided among devices.
EXACT = ("epoch", "q", "num_female", "num_male", "num_none", "reward_mean", "eval_q")
ROUNDED = ("loss", "kl_last", "grad_norm")  # float32, summed in another order


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


def settings(tiny, root, name):
    config = tiny_model.config(*tiny, root)
    config.run.name = name
    config.epochs = EPOCHS
    config.train.lora.target_modules = ("conv_out",)  # compiles soon
    config.advantage.name = "per_prompt"  # its history must be the same everywhere
    config.advantage.min_count = 2
    config.distributed.timeout_seconds = TIMEOUT_SECONDS
    return config


def start_two(root, config):
    """Two processes of one run, with four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        tiny_run.start(
            config,
            root,
            num_devices=4,
            flags=(
                "--config.distributed.enabled=true",
                f"--config.distributed.coordinator_address=localhost:{port}",
                "--config.distributed.num_processes=2",
                f"--config.distributed.process_id={process}",
            ),
        )
        for process in range(2)
    ]


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


def test_a_refusal_ends_all_processes(tiny, root):
    config = settings(tiny, root, "refused")
    folder = run_folder.path_of(config)
    descriptor = run_folder.lock(folder)
    said = tiny_run.finish(*start_two(root, config), status=BAD_INPUT)
    os.close(descriptor)
    assert f"another process trains in {folder}" in said[0][1]
    assert "Traceback" not in said[0][1] + said[1][1]


def test_who_leaves_takes_the_others_along_and_all_continue(tiny, root):
    """One is asked to, then either is lost: it ends as the run of one process."""
    config = settings(tiny, root, "alone")
    alone = tiny_run.train(config)
    config = settings(tiny, root, "disturbed")
    folder = run_folder.path_of(config)

    def start_and_wait():
        more = len(run_log.read(folder)) + 1
        processes = start_two(root, config)
        tiny_run.wait_for(lambda: len(run_log.read(folder)) >= more, *processes)
        return processes

    processes = start_and_wait()
    processes[1].send_signal(signal.SIGTERM)
    tiny_run.finish(*processes, status=stopping.INTERRUPTED)
    for lost in range(2):
        processes = start_and_wait()
        processes[lost].kill()
        survivor = processes[1 - lost]
        begun = time.monotonic()
        _, errors = survivor.communicate(timeout=tiny_run.PATIENCE)
        assert time.monotonic() - begun < 6 * TIMEOUT_SECONDS
        assert survivor.returncode == stopping.INTERRUPTED, errors
        assert "same command on all hosts" in errors
        processes[lost].communicate()
    (output, _), (silence, _) = tiny_run.finish(*start_two(root, config))
    assert "on 8 x cpu" in output and f"Finished: {folder}" in output
    # The main process talks; two threads of Gloo may tear a line of theirs apart.
    assert GLOO.sub("", silence).split() == []
    assert saved_run.read(folder).record["num_devices"] == 8
    assert_same_run(folder, alone)
