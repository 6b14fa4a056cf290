"""A run from its config to its last epoch: devices, folder, parts, epochs."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_rules, parallel
from ddpo_fair.errors import HostLost, UserError, first_line
from ddpo_fair.loggers import progress, run_log, weights_and_biases
from ddpo_fair.training import (
    assembly,
    checkpoint,
    description,
    loop,
    run_folder,
    stopping,
)
from ddpo_fair.training.assembly import Run

# What may come from the system and the devices at any moment.
FAULTS = (OSError, MemoryError, jax.errors.JaxRuntimeError)
SCARCE = "RESOURCE_EXHAUSTED"  # XLA's status for too little memory


def train(
    config: ConfigDict, stop: stopping.Stop, opening: str, by_host: bool = False
) -> Path:
    """Trains, or goes on training, the run of a config; returns its folder.

    For `opening`, `by_host` and what it raises see `ddpo_fair.train.train`.
    """
    parallel.start(config.distributed.cpu_devices, config.distributed)
    if by_host and parallel.on_cpu() and config.model == configuration.LARGE:
        raise UserError(
            f"{config.model} was chosen for this host's accelerator, but JAX computes"
            " on its CPU (is the driver installed?), which would take days. Put"
            " :embedded behind the config file, or :sd15 to have it all the same."
        )
    config_rules.validate(config, [], parallel.num_devices())
    config = description.resolved(config)
    folder = run_folder.path_of(config)
    terminal = progress.Progress(parallel.is_main())
    terminal.say(opening)
    others = parallel.num_processes() - 1
    lost = (
        f"ddpo_fair.train: this process was ended, or one of the other {others} was"
        " lost, without which none can go on. Start the same command on all hosts: it"
        f" continues from the newest checkpoint in {folder}."
    )
    heard = parallel.last_words(lost * bool(others), stopping.INTERRUPTED)
    with _entered(folder, config) as (weights, unknown), heard:
        try:
            if parallel.is_main():
                run_folder.write_config(folder, config, weights)
            if unknown:
                terminal.say(description.UNKNOWN)
            _train(config, weights, folder, terminal, stop)
        except FAULTS as error:
            raise explained(error, config, folder) from error
        finally:
            terminal.close()
    return folder


def explained(error: Exception, config: ConfigDict, folder: Path) -> UserError:
    """What to tell of one of the `FAULTS` that ended a run."""
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
    return kind(f"{text} {run_folder.way_on(folder / run_folder.CHECKPOINTS)}")


def _train(
    config: ConfigDict,
    weights: dict[str, Any],
    folder: Path,
    terminal: progress.Progress,
    stop: stopping.Stop,
) -> None:
    writers = []
    if config.log.wandb and parallel.is_main():
        writers = [weights_and_biases.open_writer(folder, config)]
        terminal.say(weights_and_biases.where(*writers))
    run, state = assembly.build(config)
    place, described = folder / run_folder.CHECKPOINTS, description.of(config, weights)
    checkpoints = checkpoint.Checkpoints(place, config.checkpoint.keep)
    trainer = loop.Trainer(run, described, state, checkpoints, terminal, stop)
    line = trainer.restore()
    if parallel.is_main():
        written = trainer.epochs_done - (line is not None)
        trainer.log = run_log.open_log(folder, written, *writers)
        for complaint in trainer.log.complaints:
            terminal.say(complaint)
    terminal.say(_plan(run, folder, trainer.epochs_done))
    try:
        trainer.train(line)
    finally:
        terminal.close()
        checkpoints.close()
        if trainer.log is not None:
            trainer.log.close()
    terminal.say(f"Finished: {folder} holds metrics, samples and checkpoints.")


@contextlib.contextmanager
def _entered(folder: Path, config: ConfigDict) -> Iterator[tuple[dict[str, Any], bool]]:
    """Holds the folder's lock on the main process, if all agree that it is theirs.

    Yields what model and classifier are, and whether it is unknown what they were.
    """
    refusal, weights, known = None, {}, []
    with contextlib.ExitStack() as held:
        try:
            if parallel.is_main():
                held.callback(os.close, run_folder.lock(folder))
            run_folder.check_complete(folder, config)
            saved = run_folder.described(folder / run_folder.CHECKPOINTS)
            record = run_folder.check(folder, config, saved)
            flat = configuration.flatten(config)
            for field in description.fields(flat):
                now = weights[field] = description.identity(config, field)
                for before in filter(None, (record, saved)):
                    known.append(description.check(before, field, flat[field], now))
        except UserError as error:
            refusal = error
        except FAULTS as error:
            refusal = explained(error, config, folder)
        if parallel.any_host(refusal is not None):
            raise refusal or UserError("Another process refused; its message says why.")
        yield weights, not all(known)


def _plan(run: Run, folder: Path, done: int) -> str:
    """What is about to happen, and where."""
    how = f"continues after epoch {done - 1}" if done else "begins"
    epochs = f"{run.config.epochs} epoch{'s' * (run.config.epochs > 1)}"
    size = run.policy.model.image_size
    text = (
        f"Run: {folder} {how}; {epochs} of {run.num_images} images of"
        f" {size} x {size} pixels on {', '.join(parallel.describe())}; Ctrl-C saves and"
        " leaves, the same command continues. The first epoch compiles for a while."
    )
    if run.config.epochs == 1:
        text += (
            " A single epoch is not evaluated after training: python -m"
            f" ddpo_fair.evaluate --run={shlex.quote(str(folder))} does it."
        )
    return text
