"""Files: paths that somebody typed, writing whole or not at all, JSON, arrays."""

import collections
import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddpo_fair.errors import UserError, differences, shown

# What a run keeps of itself; one of them alone might also be somebody else's.
RECORDS = ("config.json", "metrics.jsonl", "checkpoints", "samples", "tensorboard")
LONGEST_BEGINNING = 4096  # bytes of a file that say of which kind it is
ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*:/")  # gs://bucket; Path leaves out a slash
VARIABLE = re.compile(r"\$\w+|\$\{\w+\}")

_held: dict[tuple[int, Path], int] = {}  # open folders that a thread has locked


def given(name: str, text: str | os.PathLike) -> Path:
    """The absolute path of a flag or a setting; whether it exists is another question.

    ~ is the home. A UserError, with the name of the flag, if no file could be named so.
    """
    text = os.fspath(text)
    try:
        if not text.strip():
            raise ValueError("it is empty")
        if any(ord(character) < 32 for character in text):
            raise ValueError("it holds a control character")
        if ADDRESS.match(text):
            raise ValueError("it is an address, not a folder of this machine: mount it")
        path = Path(text).expanduser().resolve()
        # Fails for a name too long, or a folder closed to us. What exists may have a $.
        new = path.name if path.parent.exists() else text
        if not path.exists() and (name_of := VARIABLE.search(new)):
            raise ValueError(
                f"no shell has put in the value of {name_of[0]}: leave out the quotes"
            )
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(
            f"{name}={shown(text)} cannot be used as a path ({reason}); give another."
        ) from error
    return path


def cache() -> Path:
    """Where this user keeps what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "ddpo_fair"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, which takes its place, whole, if nothing is raised."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace(path: Path, content: bytes | str) -> None:
    """Writes a file, whole or not at all; or an OSError."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(
    name: str, way_out: str = "free some space, or choose another path"
) -> Iterator[None]:
    """Makes a UserError, of what is written and a way out, of an OSError inside."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if error.errno in (errno.EEXIST, errno.EISDIR):  # of another kind
            there = error.filename2 or error.filename  # what a file was to replace
            way_out = f"move {there} away, or choose another path"
        raise UserError(f"{name} cannot be written ({reason}); {way_out}.") from error


def content(path: Path) -> bytes:
    """The bytes of a file; an OSError for a FIFO, which would be waited for."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path.read_bytes()


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays of `save_arrays`; None if they are not there, or not whole."""
    try:
        with open(path, "rb") as file:
            return dict(np.load(file, allow_pickle=False))
    except MemoryError:  # of a sound file
        raise
    except Exception:  # a damaged file raises whatever its reader pleases
        return None


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def plain(value: Any) -> Any:
    """`value` as JSON has it: arrays become lists, what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """`plain(value)` as JSON, with a line's end."""
    return json.dumps(plain(value), allow_nan=False, indent=indent) + "\n"


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ; a ValueError says which stands there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} stands there twice; keep one")
    return found


def output(flag: str, text: str | os.PathLike, *own: str | bytes) -> Path:
    """The absolute path that a flag names for a new file or folder, or one to replace.

    `own` tells one to replace: bytes near the beginning of such a file, or names of
    files one of which is in every such folder. A UserError for a run's own records, a
    device, and whatever is of another kind.
    """
    path = given(flag, text)
    folder = not any(isinstance(one, bytes) for one in own)
    try:
        run = next((p.parent for p in (path, *path.parents) if p.name in RECORDS), None)
        if run and sum((run / name).exists() for name in RECORDS) > 1:
            problem = f"is of the records of the run in {run}"
        elif not path.exists() and not path.is_symlink():
            os.scandir(next(p for p in path.parents if p.exists())).close()  # a folder
            return path
        elif folder and not path.is_dir():
            problem = "exists and is not a folder"
        elif not folder and not path.is_file():
            problem = "is a folder" if path.is_dir() else "is not a file to write to"
        elif folder:
            if not any(path.iterdir()) or any((path / x).is_file() for x in own):
                return path
            problem = "exists and is not empty; nothing there was changed"
        else:
            with open(path, "rb") as file:
                if own[0] and own[0] in file.read(LONGEST_BEGINNING):
                    return path
            problem = "exists and was not written by this command"
    except OSError as error:
        problem = f"cannot be used ({error.strerror or error})"
    raise UserError(f"{flag}={shown(str(path))} {problem}; choose another path.")


def lock(descriptor: int, folder: Path) -> None:
    """Locks an open file of a folder; a BlockingIOError if another process has it.

    A file system without locks gets a warning instead.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(*error.args) from error
        logging.getLogger(__name__).warning(
            "The file system of %s has no locks (%s): see to it that no other process"
            " works there.",
            folder,
            error.strerror,
        )


def hold(folder: Path, flag: str) -> None:
    """Makes a folder, and keeps all but this thread out, until its `let_go`.

    Or until the process ends.

    A UserError, which names the flag, if another is there or it is closed.
    """
    name = f"{flag}={shown(str(folder))}"
    with writing(name):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    key = threading.get_ident(), folder
    held = _held.get(key)
    if held is not None and os.path.samestat(os.fstat(held), os.fstat(descriptor)):
        return os.close(descriptor)
    try:
        lock(descriptor, folder)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{name}: another process or thread works there; wait for it, stop it, or"
            " choose another folder."
        ) from None
    if held is not None:  # of a folder that is gone
        os.close(held)
    _held[key] = descriptor


def let_go() -> None:
    """Lets others into all folders that this thread has on `hold`."""
    for key in [key for key in _held if key[0] == threading.get_ident()]:
        os.close(_held.pop(key))


def _forked() -> None:
    """Holds nothing: a worker may outlive who holds."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_forked)


def bind(path: Path, settings: dict[str, Any], flag: str, *free: str) -> None:
    """Keeps `settings` in a new file, which makes its folder that of these settings.

    A UserError, which names the flag, if others than the `free` differ from its own. In
    a group an older version may have kept less.
    """
    output(flag, path.parent, path.name)
    hold(path.parent, flag)
    name = f"{flag}={shown(str(path.parent))}"
    try:
        others = (other for other in path.parent.rglob("*") if other != path)
        if not any(map(os.path.isfile, others)):  # a start that failed binds nothing
            replace(path, json_text(settings, indent=2))
        before = dict(json.loads(content(path)))
        now = json.loads(json_text(settings))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{name} cannot be used ({error}); choose another folder."
        ) from error
    for setting, group in now.items():
        if isinstance(group, dict) and isinstance(known := before.get(setting), dict):
            now[setting] = {x: group[x] for x in group if x in known}
    if changes := differences(before, now, free):
        raise UserError(
            f"{name} was begun with other settings: {'; '.join(changes)}. Give the same"
            " to go on with it, or another folder."
        )
