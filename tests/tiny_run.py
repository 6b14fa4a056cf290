"""Runs of the tiny model: made, started in processes of their own, and read again."""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_model

from ddpo_fair import config as configuration
from ddpo_fair import parallel
from ddpo_fair import train as command
from ddpo_fair.learning import learner
from ddpo_fair.loggers import run_log
from ddpo_fair.training import (
    assembly,
    checkpoint,
    run,
    run_folder,
    saved_run,
    stopping,
)

ROOT = pathlib.Path(__file__).parents[1]
CLOCKS = ("seconds", "per_second", "memory_gb")  # what no two runs share
PATIENCE = 900  # seconds, on a machine with other work

# Settings that change no program.
FREE = ("run.", "eval.", "log.", "checkpoint.", "train.on_divergence", "train.max_kl")
FREE += ("train.max_restores", "train.max_skipped_updates", "reward.", "advantage.")
FREE += ("seed", "prompts", "sample.explicit_share", "sample.preserve")
FREE += ("train.base_kl_weight",)  # 0 has arguments of its own
# What programs are compiled for, and the beginnings of the settings that make it.
COMPILED = {
    "policy": ("model", "dtype", "variant", "base_lora", "sample.", "train.remat"),
    "classifiers": ("dtype", "attributes."),
    "learner": ("",),
}

_build, _built = assembly.build, {}


def build(config):
    """As `assembly.build`, but runs with the same programs compile them once."""
    made, state = _build(config)
    flat, same = configuration.flatten(config), {}
    how = jax.config.values["jax_disable_most_optimizations"], parallel.num_devices()
    for part, names in COMPILED.items():
        key = [x for x in flat.items() if x[0].startswith(names)]
        key = repr((part, how, [x for x in key if not x[0].startswith(FREE)]))
        same[part] = _built.setdefault(key, getattr(made, part))
    return dataclasses.replace(made, **same), state


def train(config, stop=None):
    """The folder of a run, trained without a report and with `build`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build", build)
        run.train(config, stop or stopping.Stop(), "Model: tiny.")
    return run_folder.path_of(config)


def lines_of(config):
    """The lines of the run with these settings, which are checked first."""
    command.check(config, [])
    return run_log.read(train(config))


def config_file(config, folder):
    """A file for --config that says these settings."""
    file = folder / f"{config.run.name}.py"
    file.write_text(
        "from ddpo_fair import config\n"
        "def get_config(variant=None):\n"
        "    settings = config.defaults()\n"
        f"    settings.update_from_flattened_dict({configuration.flatten(config)!r})\n"
        "    return settings\n"
    )
    return file


def start(config, folder, num_devices=8, flags=()):
    """`python -m ddpo_fair.train` with these settings, on its way."""
    flags = f"--config={config_file(config, folder)}", *flags
    return python("-m", "ddpo_fair.train", *flags, XLA_FLAGS=devices(num_devices))


def devices(count):
    """XLA_FLAGS for so many devices."""
    return os.environ["XLA_FLAGS"].replace("count=8", f"count={count}")


def python(*arguments, **environment):
    """A process of this interpreter, in the project's folder."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def full_disk(num_bytes=0):
    """Files cannot grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait_for(condition, *processes):
    """Returns when a condition holds, which the processes bring about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finish(*processes, status=0):
    """What each of the processes said, once all ended with `status`."""
    said = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(said), said
    return said


def numbers(folder):
    """The lines of a run without what the clock and the machine say."""
    return [
        {name: x for name, x in line.items() if not name.endswith(CLOCKS)}
        for line in run_log.read(folder)
    ]


def checksums(folder):
    """Of the state in each checkpoint that is kept, by the epochs that were done."""
    places = (folder / "checkpoints").glob(f"[0-9]*/{run_folder.METADATA}/metadata")
    return {
        int(place.parents[1].name): json.loads(place.read_text())["checksum"]
        for place in places
    }


def bytes_on_one(*trees):
    """Bytes of the trees' arrays on the first device."""
    first = jax.devices()[0]
    return sum(
        shard.data.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(trees)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


def save(config, scale=1.0):
    """The folder of a run with checkpoint 3, its weights random."""
    folder = run_folder.path_of(config)
    folder.mkdir(parents=True)
    run_folder.write_config(folder, config)
    template = saved_run.unet_template(pathlib.Path(config.model))
    shapes = assembly.initial_state(config, template)
    params = jax.tree.map(lambda x: scale * x, tiny_model.draw(shapes.params))
    optimizer = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.optimizer)
    state = jax.device_put(learner.TrainState(params, optimizer, np.int32(3)))
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep=2)
    checkpoints.save(3, state, {"history": {}, "target_classes": {}, "line": None})
    checkpoints.wait()
    checkpoints.close()
    return folder
