"""The folder of a run: locked for one process, bound to one config."""

import errno
import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import attribute_rules, files, parallel
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError, differences, shown
from ddpo_fair.loggers import run_log
from ddpo_fair.training import description

CONFIG, LOCK, CHECKPOINTS = "config.json", ".lock", "checkpoints"

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
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # or its target is written
        descriptor = os.open(folder / LOCK, flags, 0o644)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"run.name: another process trains in {folder} ({owner or 'unknown'});"
                " wait for it, stop it, or choose another --config.run.name."
            ) from error
        logging.getLogger(__name__).warning(
            "The file system of %s has no locks (%s): see to it that no other process"
            " trains there.",
            folder,
            error.strerror,
        )
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


def check(
    folder: Path, config: ConfigDict, saved: Mapping[str, Any] | None = None
) -> Mapping[str, Any] | None:
    """What a run that goes on was, by config.json or else its newest checkpoint.

    A run that ended before it saved an epoch, for a model that is not there, binds
    nothing: None.

    Args:
        folder: of the run.
        config: all settings.
        saved: the description in the newest checkpoint.

    Raises:
        UserError: if the folder holds a run of another config, with every difference,
            or no config.
    """
    if not _is_bound(folder):
        return None
    records = [saved] if saved else []
    try:
        if (folder / CONFIG).exists():
            records.insert(0, read_config(folder))
        changes = [x for record in records for x in differences_of(record, config)]
        edited = changes and saved and not differences_of(saved, config)
    except description.UNREADABLE as error:
        copy = ", or delete it, as the checkpoints hold a copy" if saved else ""
        raise UserError(
            f"{folder / CONFIG} cannot be read ({str(error)[:200]}); restore it{copy}."
            " Or choose another --config.run.name."
        ) from error
    if not records and any((folder / CHECKPOINTS).iterdir()):
        raise UserError(
            f"{folder} holds checkpoints, but no {CONFIG} with the settings that they"
            " belong to. Restore it from a copy, or choose another --config.run.name."
        )
    if edited:
        raise UserError(
            f"{folder / CONFIG} is not what the newest checkpoint says of this run:"
            f" {'; '.join(changes)}. Delete it, and the same command writes it again."
        )
    if changes:
        raise UserError(
            f"{folder} holds a run of another config:"
            f" {'; '.join(dict.fromkeys(changes))}. Give the old settings to continue"
            " it, or another --config.run.name."
        )
    return records[0] if records else None


def _is_bound(folder: Path) -> bool:
    """Whether something is saved."""
    lines = folder / run_log.LINES
    return any(folder.glob(f"{CHECKPOINTS}/*")) or (
        lines.is_file() and lines.stat().st_size > 0
    )


def check_complete(folder: Path, config: ConfigDict) -> None:
    """Refuses a folder whose checkpoints were removed.

    A run has none in its first epochs, and while it writes the first in the background:
    until the second is due.

    Raises:
        UserError: with both ways on.
    """
    place, lines = folder / CHECKPOINTS, len(run_log.read(folder))
    if place.is_dir():
        finished = any(path.name.isdecimal() for path in place.iterdir())
        lost = not finished and lines > 2 * config.checkpoint.every_epochs
    else:
        lost = lines > 0 or place.exists()
    if lost:
        raise UserError(
            f"{folder}: {run_log.LINES} holds {lines} epochs, but {place} holds no"
            " checkpoint to go on from. Restore that folder from a copy. To begin anew"
            f" under this name, remove both; or choose another --config.run.name."
        )


def differences_of(record: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """In what a run with these settings would differ from its description.

    Raises:
        One of UNREADABLE: if that is no description.
    """
    before = configuration.renamed(dict(record["config"]))
    now, defaults = (
        json.loads(json.dumps(configuration.flatten(one)))
        for one in (config, configuration.defaults(config.attributes))
    )
    before = defaults | before  # what an older version did not have is default
    free = set(FREE)
    if before.get("train.final_learning_rate") == 1.0:
        free.add("epochs")  # else the learning rate depends on it
    for field in description.fields(before):  # which older versions kept as typed
        before[field] = description.absolute(field, before[field])
        if description.known(record, field):  # `description.check` compares the files
            free.add(field)
    if "targets" in record:  # the shares themselves, wherever they are kept now
        free.add("targets")
    changes = differences(before, now, free)
    targets = json.loads(json.dumps(attribute_rules.targets(config)))
    if record.get("targets", targets) != targets:
        changes.append(f"the targets in {config.targets!r} were others")
    images, images_before = (
        description.images_per_epoch(config),
        record["images_per_epoch"],
    )
    if images_before != images:
        changes.append(
            f"an epoch had {shown(images_before)} images and now has {images}"
            " (devices x sample.batch_per_device x sample.batches)"
        )
    return changes


def write_config(
    folder: Path, config: ConfigDict, weights: Mapping[str, Any] | None = None
) -> None:
    """Writes config.json: what the run is, see `description.of`, and what ran it."""
    content = {
        **description.of(config, weights),
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
    content = json.loads(files.content(folder / CONFIG))
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
