"""The folder of a run: locked for one process, bound to one config."""

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import files, parallel
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import run_log
from ddpo_fair.training import description

CONFIG, LOCK, CHECKPOINTS = "config.json", ".lock", "checkpoints"
NUMBER = re.compile("0|[1-9][0-9]{0,8}")  # names of folders that are checkpoints
METADATA = "rest"  # name of the JSON in a checkpoint
RUN = "run"  # in that JSON: see `description.of`


def path_of(config: ConfigDict) -> Path:
    """The run's folder, absolute; a UserError if that cannot be a path."""
    return files.given("run.dir/run.name", Path(config.run.dir) / config.run.name)


def lock(folder: Path) -> int:
    """Makes the folder and locks it, until the open file of this number is closed.

    Which it is when the process ends. A UserError if another process trains there, or
    nothing can be written.
    """
    way_out = "free some space, or choose another folder with --config.run.dir"
    written = files.writing(f"run.dir/run.name={str(folder)!r}", way_out)
    with written, contextlib.ExitStack() as on_failure:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # or its target is written
        descriptor = os.open(folder / LOCK, flags, 0o644)
        on_failure.callback(os.close, descriptor)
        try:
            files.lock(descriptor, folder)
        except BlockingIOError as error:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            raise UserError(
                f"run.name: another process trains in {folder} ({owner or 'unknown'});"
                " wait for it, stop it, or choose another --config.run.name."
            ) from error
        text = f"process {os.getpid()} on {platform.node()} since {time.ctime()}\n"
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
        on_failure.pop_all()
    return descriptor


def check(
    folder: Path, config: ConfigDict, saved: Mapping[str, Any] | None = None
) -> Mapping[str, Any] | None:
    """What a run that goes on was, by config.json or else `saved`, of a checkpoint.

    None of a run that ended before it saved an epoch, which binds nothing. A UserError
    if the folder holds a run of another config, with every difference, or no config.
    """
    lines = folder / run_log.LINES
    written = lines.is_file() and lines.stat().st_size > 0
    if not written and not any(folder.glob(f"{CHECKPOINTS}/*")):
        return None
    records = [saved] if saved else []
    try:
        if (folder / CONFIG).exists():
            records.insert(0, read_config(folder))
        compare = description.differences_of
        changes = [x for record in records for x in compare(record, config)]
        edited = changes and saved and not compare(saved, config)
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


def check_complete(folder: Path, config: ConfigDict) -> None:
    """Refuses, with a UserError, a folder whose checkpoints were removed."""
    place, lines = folder / CHECKPOINTS, len(run_log.read(folder))
    if place.is_dir():
        # None is there in the first epochs, and while the first is written, in the
        # background: until the second is due.
        finished = any(path.name.isdecimal() for path in place.iterdir())
        lost = not finished and lines > 2 * config.checkpoint.every_epochs
    else:
        lost = lines > 0 or place.exists()
    if lost:
        raise UserError(
            f"{folder}: {run_log.LINES} holds {lines} epochs, but {place} holds no"
            " checkpoint to go on from. Restore that folder from a copy. To begin anew"
            f" under this name, remove {folder}; or choose another --config.run.name."
        )


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
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            command, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    return None


def numbers(folder: Path) -> list[int]:
    """Epochs done at each checkpoint that is complete, in order."""
    inside = folder.iterdir() if folder.is_dir() else ()  # glob hides what is closed
    names = (path.name for path in inside if path.is_dir())
    return sorted(int(name) for name in names if NUMBER.fullmatch(name))


def finished(folder: Path) -> int | None:
    """Epochs done at the newest checkpoint that is complete; None without one."""
    return max(numbers(folder), default=None)


def described(folder: Path, epochs_done: int | None = None) -> dict[str, Any] | None:
    """What the run is, by the JSON of one checkpoint, or of the newest that says so."""
    found = numbers(folder) if epochs_done is None else [epochs_done]
    for number in reversed(found):
        with contextlib.suppress(*description.UNREADABLE):  # `restore` tells
            metadata = json.loads(_metadata(folder, number))
            if metadata["digest"] == digest(metadata):
                return metadata[RUN]
    return None


def _metadata(folder: Path, epochs_done: int) -> bytes:
    return files.content(folder / str(epochs_done) / METADATA / "metadata")


def fingerprint(folder: Path, epochs_done: int) -> str | None:
    """SHA-256 of a checkpoint's JSON, which has its arrays' checksum; None without."""
    with contextlib.suppress(OSError):  # `read_one` says what is wrong
        return hashlib.sha256(_metadata(folder, epochs_done)).hexdigest()
    return None


def way_on(folder: Path) -> str:
    """Where the same command will continue, with the checkpoints of a folder."""
    newest = finished(folder)
    if newest is None:
        return f"{folder} holds no checkpoint yet; the same command begins again."
    return f"{folder / str(newest)} is intact; the same command continues from it."


def digest(metadata: dict[str, Any]) -> str:
    """SHA-256 of a checkpoint's JSON, but for the digest itself."""
    content = {name: x for name, x in metadata.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
