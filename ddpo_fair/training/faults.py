"""What ends a run from outside: a full disk, scarce memory, a lost device."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from ddpo_fair import parallel
from ddpo_fair.errors import HostLost, UserError, first_line
from ddpo_fair.training import checkpoint

# What may come from the system and the devices at any moment.
KINDS = (OSError, MemoryError, jax.errors.JaxRuntimeError)
SCARCE = "RESOURCE_EXHAUSTED"  # XLA's status for too little memory


def explained(error: Exception, config: ConfigDict, folder: Path) -> UserError:
    """What to tell of an error of `KINDS` that ended a run."""
    kind, reason = UserError, first_line(error)
    if isinstance(error, MemoryError) or SCARCE in str(error):
        sample, train = config.sample, config.train
        text = (
            f"There is too little memory ({reason}). Lower sample.batch_per_device="
            f"{sample.batch_per_device} and raise sample.batches={sample.batches} as"
            f" much, lower train.microbatch={train.microbatch}, or recompute"
            f" activations with train.remat=full (now {train.remat!r}): none of them"
            " changes what is learnt. Under another --config.run.name a lower"
            f" train.lora.rank={train.lora.rank} helps too (0 trains all weights, which"
            " needs most)."
        )
    elif isinstance(error, BrokenPipeError):
        text = "The program that read the output has closed it."
    elif isinstance(error, OSError):
        text = (
            f"{str(error.filename2 or error.filename or folder)!r} cannot be used"
            f" ({error.strerror or error}). Free some space or repair the folder."
        )
    elif parallel.num_processes() > 1:
        kind = HostLost
        text = (
            f"Another process, or a device, was lost ({reason}). Start the same command"
            " on all hosts."
        )
    else:
        text = (
            f"The devices failed ({reason}). If one was lost, bring it back or leave it"
            " out."
        )
    return kind(f"{text} {checkpoint.way_on(folder / 'checkpoints')}")
