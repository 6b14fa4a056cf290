"""What ends a run from outside: a full disk, scarce memory, a lost device."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from ddpo_fair import parallel
from ddpo_fair.errors import HostLost, UserError
from ddpo_fair.training import checkpoint

# What may come from the system and the devices at any moment.
KINDS = (OSError, MemoryError, jax.errors.JaxRuntimeError)

SCARCE = "RESOURCE_EXHAUSTED"  # XLA's status for too little memory
LONGEST = 300  # characters of a message of XLA, which can fill pages


def explained(error: Exception, config: ConfigDict, folder: Path) -> UserError:
    """What to tell of an error of `KINDS` that ended a run.

    Args:
        error: as it was raised.
        config: of the run.
        folder: of the run.
    """
    if isinstance(error, MemoryError) or SCARCE in str(error):
        return UserError(f"{_memory(error, config)} {way_on(folder)}")
    if isinstance(error, BrokenPipeError):
        return UserError(
            f"The program that read the output has closed it. {way_on(folder)}"
        )
    if isinstance(error, OSError):
        place = error.filename or folder
        return UserError(
            f"{str(place)!r} cannot be used ({error.strerror or error}). Free some"
            f" space or repair the folder. {way_on(folder)}"
        )
    if parallel.num_processes() > 1:
        return HostLost(
            f"Another process, or a device, was lost ({_first_line(error)}). Start the"
            f" same command on all hosts. {way_on(folder)}"
        )
    return UserError(
        f"The devices failed ({_first_line(error)}). If one was lost, bring it back or"
        f" leave it out. {way_on(folder)}"
    )


def way_on(folder: Path) -> str:
    """Where the same command will continue."""
    newest = checkpoint.finished(folder / "checkpoints")
    if newest is None:
        return f"{folder} holds no checkpoint yet; the same command begins again."
    place = folder / "checkpoints" / str(newest)
    return f"{place} is intact; the same command continues from it."


def _memory(error: Exception, config: ConfigDict) -> str:
    sample, train = config.sample, config.train
    return (
        f"There is too little memory ({_first_line(error)}). Lower"
        f" sample.batch_per_device={sample.batch_per_device} and raise sample.batches="
        f"{sample.batches} as much, lower train.microbatch={train.microbatch}, or"
        f" recompute activations with train.remat=full (now {train.remat!r}): none of"
        " them changes what is learnt. Under another --config.run.name a lower"
        f" train.lora.rank={train.lora.rank} helps too (0 trains all weights, which"
        " needs most)."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:LONGEST]
