"""The folder of a run: locked for one process, bound to one config."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import config as configuration
from ddpo_fair import files, parallel
from ddpo_fair.errors import UserError, differences
from ddpo_fair.loggers import run_log

CONFIG, LOCK = "config.json", ".lock"

# Settings that change no number a run writes: how it is run, not what it does.
INCIDENTAL = (
    "train.microbatch",
    "train.remat",
    "train.ratio_tolerance",
    "train.max_skipped_updates",
    "train.max_kl",
    "train.on_divergence",
    "train.max_restores",
    "train.shard_optimizer",
    "log.images",
    "log.wandb",
    "checkpoint.every_epochs",
    "checkpoint.keep",
    "run.dir",
    "run.name",
    "distributed.cpu_devices",
    "distributed.enabled",
    "distributed.coordinator_address",
    "distributed.num_processes",
    "distributed.process_id",
    "distributed.timeout_seconds",
)
# Settings that may change when a run goes on (`images_per_epoch` guards the first two).
FREE = ("sample.batch_per_device", "sample.batches", *INCIDENTAL)


def path_of(config: ConfigDict) -> Path:
    """The run's folder, absolute.

    Raises:
        UserError: if that cannot be a path.
    """
    return files.given("run.dir/run.name", Path(config.run.dir) / config.run.name)


def lock(folder: Path) -> int:
    """Makes the folder and locks it; the open file holds the lock until it closes.

    The system frees the lock when the process ends, however it ends.

    Raises:
        UserError: if another process trains there, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(
            f"run.name: another process trains in {folder} ({owner or 'unknown'});"
            " wait for it, stop it, or choose another --config.run.name."
        ) from error
    text = f"process {os.getpid()} on {platform.node()} since {time.ctime()}\n"
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    except OSError as error:  # of a full disk
        os.close(descriptor)
        raise _cannot_write(folder, error) from error
    return descriptor


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"run.dir/run.name={str(folder)!r} cannot be written ({error.strerror}); free"
        " some space, or choose another folder with --config.run.dir."
    )


def unlock(descriptor: int) -> None:
    """Lets another process use the folder."""
    os.close(descriptor)


def check(folder: Path, config: ConfigDict) -> None:
    """Refuses a folder that holds a run of another config.

    A run that ended before it saved an epoch, for a model that is not there, binds
    nothing.

    Raises:
        UserError: with every difference.
    """
    lines = folder / run_log.LINES
    saved = any(folder.glob("checkpoints/*")) or (
        lines.is_file() and lines.stat().st_size > 0
    )
    if not saved or not (folder / CONFIG).exists():
        return
    try:
        record = read_config(folder)
        before = configuration.renamed(dict(record["config"]))
        images_before = record["images_per_epoch"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder / CONFIG} cannot be read ({error}); restore it, or choose another"
            " --config.run.name."
        ) from error
    now, defaults = (
        json.loads(json.dumps(configuration.flatten(one)))
        for one in (config, configuration.defaults(config.attributes))
    )
    before = defaults | before  # what an older version did not have is default
    free = set(FREE)
    if before.get("train.final_learning_rate") == 1.0:
        free.add("epochs")  # else the learning rate depends on it
    changes = differences(before, now, free)
    if images_before != images_per_epoch(config):
        changes.append(
            f"an epoch had {images_before} images and now has"
            f" {images_per_epoch(config)} (devices x sample.batch_per_device x"
            " sample.batches)"
        )
    if changes:
        raise UserError(
            f"{folder} holds a run of another config: {'; '.join(changes)}. Give"
            " the old settings to continue it, or another --config.run.name."
        )


def images_per_epoch(config: ConfigDict) -> int:
    """Images of all devices in one epoch, N."""
    per_device = config.sample.batch_per_device * config.sample.batches
    return parallel.num_devices() * per_device


def write_config(folder: Path, config: ConfigDict) -> None:
    """Writes config.json: every setting, and what ran it."""
    content = {
        "config": configuration.flatten(config),
        "images_per_epoch": images_per_epoch(config),
        "version": ddpo_fair.__version__,
        "commit": commit(),
        "devices": parallel.describe(),
        "num_devices": parallel.num_devices(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    files.replace(folder / CONFIG, files.json_text(content, indent=2))


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a run; a ValueError if it is no JSON object."""
    content = json.loads((folder / CONFIG).read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def commit() -> str | None:
    """The git commit of this source tree, "-dirty" if changed; None outside one."""
    root = Path(ddpo_fair.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
