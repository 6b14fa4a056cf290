"""Checkpoints: what a run needs to go on exactly, written while it goes on.

A checkpoint is numbered by the epochs that are done. It holds the trained parameters,
the optimizer, and a little JSON: reward statistics and a checksum of the arrays.
"""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ddpo_fair import parallel
from ddpo_fair.errors import UserError

STATE, METADATA = "state", "rest"  # names of the items in a checkpoint
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
        _hush()
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder,
            item_names=(STATE, METADATA),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,  # of a process that was killed
            ),
        )

    def newest(self) -> int | None:
        """Epochs done at the newest checkpoint, begun or finished; None without one."""
        return self._manager.latest_step()

    def save(self, epochs_done: int, state: Any, metadata: dict[str, Any]) -> None:
        """Copies the state off the devices, then writes in the background.

        Raises:
            UserError: if this or the previous checkpoint could not be written.
        """
        metadata = {**metadata, "checksum": int(checksum(state))}
        items = {
            STATE: ocp.args.StandardSave(state),
            METADATA: ocp.args.JsonSave(metadata),
        }
        with self._explained():
            self._manager.save(epochs_done, args=ocp.args.Composite(**items))

    def check(self) -> None:
        """Raises a UserError if a checkpoint failed in the background."""
        with self._explained():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when all checkpoints are on the disk.

        Raises:
            UserError: if one could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, template: Any) -> Restored | None:
        """The newest intact checkpoint; damaged ones are renamed, with a complaint.

        Args:
            template: a state with the shapes, dtypes and sharding that are wanted.

        Returns:
            None if there is no checkpoint.

        Raises:
            UserError: if there are checkpoints and none is intact.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        target = shapes(template)
        damaged: dict[int, str] = {}
        for step in steps:
            found = _read(self._manager, step, target)
            if isinstance(found, str):
                damaged[step] = found
                continue
            if damaged and parallel.is_main():
                for other in damaged:
                    place = self.folder / str(other)
                    place.rename(self.folder / f"{DAMAGED}{other}")
            parallel.any_host(bool(damaged))  # no host goes on before it is done
            self._manager.reload()
            complaints = tuple(
                f"Checkpoint {self.folder / str(other)} is damaged ({reason}); it was"
                f" renamed to {DAMAGED}{other}, and checkpoint {step} is used."
                for other, reason in damaged.items()
            )
            return Restored(step, found[0], found[1], complaints)
        if damaged:
            reasons = "; ".join(f"{step}: {text}" for step, text in damaged.items())
            raise UserError(
                f"No checkpoint in {self.folder} can be used ({reasons}). Restore one"
                " from a copy, or start again with another --config.run.name."
            )
        return None

    def go_back(self, template: Any, every_epochs: int) -> Restored:
        """Restores the newest regular checkpoint, and deletes those that came later.

        Regular is what a run writes that nothing interrupts. So an interrupted one goes
        back to the same place, unless `keep` has dropped that meanwhile.

        Args:
            template: as for `restore`.
            every_epochs: between regular checkpoints.

        Raises:
            UserError: if there is none, or none is intact.
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
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UserError:
        sound = finished(self.folder)
        where = "the beginning" if sound is None else f"checkpoint {sound}"
        return UserError(
            f"A checkpoint in {self.folder} could not be written ({_reason(error)})."
            " Free some space or repair the folder, then run the same command again: it"
            f" continues from {where}."
        )


def _hush() -> None:
    """Silences Orbax, which logs its every step and pages of tracebacks."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _reason(error: Exception) -> str:
    """The system's own words, where tensorstore wraps them in hundreds of others."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def shapes(state: Any) -> Any:
    """Shapes, dtypes and sharding of a state: a template to restore it by."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


def finished(folder: Path) -> int | None:
    """Epochs done at the newest checkpoint that is complete; None without one."""
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return max(numbers, default=None)


def read_one(folder: Path, epochs_done: int, template: Any) -> Any:
    """The state of one checkpoint, only looked at: nothing in the folder changes.

    Args:
        folder: of the checkpoints.
        epochs_done: its number.
        template: shapes, dtypes and sharding of the state.

    Raises:
        UserError: if it is damaged.
    """
    _hush()
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(
        folder, item_names=(STATE, METADATA), options=options
    ) as manager:
        found = _read(manager, epochs_done, template)
    if isinstance(found, str):
        raise UserError(
            f"Checkpoint {folder / str(epochs_done)} is damaged ({found}); choose"
            " another one."
        )
    return found[0]


def _read(
    manager: ocp.CheckpointManager, step: int, target: Any
) -> tuple[Any, dict] | str:
    """State and metadata of one checkpoint, or what is wrong with it."""
    items = {
        STATE: ocp.args.StandardRestore(target),
        METADATA: ocp.args.JsonRestore(),
    }
    try:
        found = manager.restore(step, args=ocp.args.Composite(**items))
        state, metadata = found[STATE], found[METADATA]
        if int(checksum(state)) != metadata["checksum"]:
            return "its numbers do not give its checksum"
    except Exception as error:  # a cut file raises whatever its reader pleases
        text = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {text[:200]}"
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
