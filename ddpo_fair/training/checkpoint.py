"""Checkpoints: what a run needs to go on exactly, written while it goes on.

A checkpoint is numbered by the epochs that are done. It holds the trained parameters,
the optimizer, and a little JSON: the run's description, reward statistics, and
checksums of the arrays and of the JSON.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ddpo_fair import errors, parallel
from ddpo_fair.errors import UserError
from ddpo_fair.training import run_folder
from ddpo_fair.training.run_folder import METADATA

STATE = "state"
ITEMS = STATE, METADATA  # of a checkpoint
EPOCHS = "epochs_done"  # in the metadata: the checkpoint's number
# In what Orbax raises when another process, or the connection to it, is gone.
LOST = re.compile("Gloo|UNAVAILABLE|DEADLINE_EXCEEDED|Connection (reset|closed)")
OTHER_ARRAYS = "tree structures do not match"  # orbax says
DAMAGED = "damaged_"  # what a damaged checkpoint's folder is renamed to


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's content: epochs done, the state, and the plain JSON beside it."""

    epochs_done: int
    state: Any
    metadata: dict[str, Any]
    complaints: tuple[str, ...]  # about newer checkpoints that could not be used


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens or makes the folder; `keep` newest checkpoints stay."""
        self.folder = folder
        # What a process has left that was killed is removed.
        self._manager = _manager(folder, max_to_keep=keep, cleanup_tmp_directories=True)

    def newest(self) -> int | None:
        """Epochs done at the newest checkpoint, begun or finished; None without one."""
        return self._manager.latest_step()

    def save(self, epochs_done: int, state: Any, metadata: dict[str, Any]) -> None:
        """Copies the state off the devices, then writes in the background.

        A UserError if this or the previous checkpoint could not be written.
        """
        metadata = {**metadata, EPOCHS: epochs_done, "checksum": int(checksum(state))}
        metadata["digest"] = run_folder.digest(metadata)
        args = ocp.args.StandardSave(state), ocp.args.JsonSave(metadata)
        items = ocp.args.Composite(**dict(zip(ITEMS, args, strict=True)))
        with self._explained():
            self._manager.save(epochs_done, args=items)

    def check(self) -> None:
        """Raises a UserError if a checkpoint failed in the background."""
        with self._explained():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when all checkpoints are on the disk; a UserError if one is not."""
        with self._explained():
            self._manager.wait_until_finished()
        self.check()

    def restore(self, template: Any) -> Restored | None:
        """The newest intact checkpoint; damaged ones are renamed, with a complaint.

        None if there is none; a UserError if none is intact. See `shapes`.
        """
        damaged = {
            int(path.name): "it is no folder"
            for path in self.folder.iterdir()
            if run_folder.NUMBER.fullmatch(path.name) and not path.is_dir()
        }
        for step in sorted(self._manager.all_steps(), reverse=True):
            found = _read(self._manager, step, shapes(template))
            if not isinstance(found, str):
                complaints = self._set_aside(damaged, step)
                return Restored(step, *found, complaints)
            damaged[step] = found
        if damaged:
            reasons = "; ".join(f"{step}: {text}" for step, text in damaged.items())
            raise UserError(
                f"No checkpoint in {self.folder} can be used ({reasons}). Restore one"
                " from a copy, or start again with another --config.run.name."
            )
        return None

    def _set_aside(self, damaged: dict[int, str], used: int) -> tuple[str, ...]:
        """Renames damaged checkpoints; a complaint about each."""
        complaints = []
        for step, reason in damaged.items():
            path, free, number = self.folder / str(step), f"{DAMAGED}{step}", 1
            while os.path.lexists(self.folder / free):
                free, number = f"{DAMAGED}{step}_{number + 1}", number + 1
            complaints.append(
                f"Checkpoint {path} is damaged ({reason}); it was renamed to {free},"
                f" and checkpoint {used} is used."
            )
            if parallel.is_main():
                path.rename(self.folder / free)
        parallel.any_host(bool(damaged))  # no host goes on before it is done
        self._manager.reload()
        return tuple(complaints)

    def go_back(self, template: Any, every_epochs: int) -> Restored:
        """Restores the newest regular checkpoint, and deletes those that came later.

        Regular is what a run writes that nothing interrupts, every `every_epochs`. So
        an interrupted one goes back to the same place, unless `keep` has dropped it.
        """
        self.wait()
        steps = self._manager.all_steps()
        regular = [step for step in steps if step % every_epochs == 0] or steps
        for step in steps:
            if step > max(regular):
                self._manager.delete(step)
        found = self.restore(template)
        if found is None:
            raise UserError(f"{self.folder} holds no checkpoint to go back to.")
        return found

    def close(self) -> None:
        """Waits for the background, then lets go; `wait` raises failures."""
        with contextlib.suppress(Exception):
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of a device, or a process that was lost
            raise
        except Exception as error:  # of tensorstore, Orbax or the system
            # tensorstore wraps the system's words in hundreds of others.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code[1])) if code else errors.first_line(error)
            if parallel.num_processes() > 1 and not code and LOST.search(str(error)):
                raise errors.HostLost(
                    f"Another process was lost during a checkpoint ({reason}). Start"
                    f" the same command on all hosts. {run_folder.way_on(self.folder)}"
                ) from error
            raise UserError(
                f"A checkpoint in {self.folder} could not be written ({reason}). Free"
                f" some space or repair the folder. {run_folder.way_on(self.folder)}"
            ) from error


@functools.cache
def _hush() -> None:
    """Silences Orbax, which logs its every step and pages of tracebacks.

    At a damaged file or a full disk it closes its event loop while tensorstore still
    works on other files, whose late answers raise, as do its own coroutines.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(raised: Any) -> None:
        code = getattr(raised.object, "cr_code", None)
        ours = code is None or "orbax" not in code.co_filename
        if ours and str(raised.exc_value) != "Event loop is closed":
            before(raised)

    sys.unraisablehook = hook


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    _hush()
    how = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(folder, item_names=ITEMS, options=how)


def shapes(state: Any) -> Any:
    """Shapes, dtypes and sharding of a state: a template to restore it by."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


def read_one(folder: Path, epochs_done: int, template: Any) -> Any:
    """The state of one checkpoint, only looked at; a UserError if it is not sound."""
    with _manager(folder, read_only=True) as manager:
        found = _read(manager, epochs_done, template)
    if isinstance(found, str):
        path = folder / str(epochs_done)
        others = [x for x in run_folder.numbers(folder) if x != epochs_done]
        what = f"is damaged ({found}); restore it from a copy"
        if not path.exists():
            what = "was deleted meanwhile: training goes on; start again for the newest"
        raise UserError(
            f"Checkpoint {path} {what}, or choose another with --checkpoint: there are"
            f" {others}."
        )
    return found[0]


def _read(
    manager: ocp.CheckpointManager, step: int, target: Any
) -> tuple[Any, dict] | str:
    """State and metadata of one checkpoint, or what is wrong with it."""
    items = {STATE: ocp.args.StandardRestore(target), METADATA: ocp.args.JsonRestore()}
    try:
        for path in (Path(manager.directory) / str(step)).rglob("*"):
            if not path.is_file() and not path.is_dir():  # a FIFO would be waited for
                return f"{path} is no file"
        found = manager.restore(step, args=ocp.args.Composite(**items))
        state, metadata = found[STATE], found[METADATA]
        if int(checksum(state)) != metadata["checksum"]:
            return "its numbers do not give its checksum"
        if metadata.get("digest") != run_folder.digest(metadata):
            return "its JSON does not give its digest"
        if (number := metadata[EPOCHS]) != step:
            return f"it is a copy of checkpoint {number}"
    except Exception as error:  # a cut file raises whatever its reader pleases
        if OTHER_ARRAYS in str(error):
            return (
                "it holds other arrays than this version makes of these settings; if"
                " another version wrote it, that one can read it"
            )
        return f"{type(error).__name__}: {errors.first_line(error)}"
    return state, metadata


@jax.jit
def checksum(state: Any) -> jax.Array:
    """A uint32 that changes with any bit of the state's float32 and int32 arrays."""
    total = jnp.uint32(0)
    for index, leaf in enumerate(jax.tree.leaves(state)):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        weight = jnp.uint32(2 * index + 1)  # odd, hence a bit never cancels
        total = total + weight * jnp.sum(bits, dtype=jnp.uint32)
    return total
