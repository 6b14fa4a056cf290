"""The command that trains: `python -m ddpo_fair.train --config=configs/mech_eng.py`."""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from ddpo_fair import command_line, config_rules, errors, prompts
from ddpo_fair import config as configuration
from ddpo_fair.errors import HostLost, UserError
from ddpo_fair.training import stopping

if TYPE_CHECKING:
    from ddpo_fair.loggers import progress

BAD_INPUT = 2  # exit status
# The flag that asks for the costs instead of a run; devices may follow it.
PLAN = re.compile(r"--plan(?:=([1-9]\d{0,5}))?")


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status.

    0 finished; 2 something for the reader to mend; 75 interrupted, or
    another process was lost; 130 stopped at once by a second Ctrl-C.
    """
    stop = stopping.Stop()
    stop.listen()
    plans = [match for match in map(PLAN.fullmatch, arguments) if match]
    arguments = [one for one in arguments if not PLAN.fullmatch(one)]
    try:
        command, problems = command_line.parse(arguments, "ddpo_fair.train")
        for note in command.notes:
            print(f"ddpo_fair.train: {note}", file=sys.stderr)
        check(command.config, problems)
        if plans:
            print(plan_text(command.config, int(plans[-1][1] or 1)))
            return 0
        train(command.config, stop, opening=model_choice(command))
    except command_line.Help as text:
        print(text)
    except UserError as error:
        print(f"ddpo_fair.train: {errors.paragraph(error)}", file=sys.stderr)
        return _leave(
            stopping.INTERRUPTED if isinstance(error, HostLost) else BAD_INPUT
        )
    except stopping.Interrupted as interrupted:
        print(interrupted.told(), file=sys.stderr)
        return stopping.INTERRUPTED
    return 0


def _leave(status: int) -> int:
    """`status`, if no other process waits for this one; ends it otherwise."""
    if "jax" not in sys.modules:  # refused before anything started
        return status
    from ddpo_fair import parallel

    return parallel.leave(status)


def check(config: ConfigDict, problems: list[str]) -> None:
    """Raises a UserError with all that is wrong, before JAX is imported."""
    problems = list(problems)
    if config.model == configuration.EMBEDDED and isinstance(config.prompts, tuple):
        texts = [text for text in config.prompts if isinstance(text, str)]
        if not any(prompts.problems(texts)):  # which `validate` tells
            problems += prompts.unknown(texts)
    config_rules.validate(config, problems)


def plan_text(config: ConfigDict, num_devices: int) -> str:
    """What the run would need and cost; see `plan.text`."""
    import jax

    from ddpo_fair.planning import plan

    jax.config.update("jax_platforms", "cpu")  # a plan wakes no accelerator
    return plan.text(plan.make(config, num_devices))


def model_choice(command: command_line.Command) -> str:
    """The first line: which model is trained, why, and how to choose."""
    if "model" in command.overrides:
        reason = "as --config.model says"
    elif command.variant:
        reason = f"as :{command.variant} says"
    elif command.config.model == configuration.EMBEDDED:
        reason = "this host shows no accelerator, or the config file says so"
    else:
        reason = "this host has an accelerator, or the config file says so"
    return (
        f"Model: {command.config.model} ({reason}). Choose with"
        f" --config={command.path}:embedded or --config={command.path}:sd15."
    )


def train(
    config: ConfigDict, stop: stopping.Stop | None = None, opening: str = ""
) -> None:
    """Trains, or goes on training, the run of a config.

    Args:
        config: of `config.defaults()`, checked by `check`.
        stop: may ask the run to leave.
        opening: a line to begin with.

    Raises:
        Interrupted: when asked to stop.
        UserError: for what the user can mend.
    """
    from ddpo_fair import parallel
    from ddpo_fair.loggers import progress
    from ddpo_fair.training import faults, run_folder

    parallel.use_compilation_cache()
    parallel.divide_cpu(config.distributed.cpu_devices)
    parallel.initialize(config.distributed)
    config_rules.validate(config, [], parallel.num_devices())
    folder = run_folder.path_of(config)
    terminal = progress.Progress(parallel.is_main())
    terminal.say(opening or f"Model: {config.model}.")
    descriptor = _enter(folder, config)
    take_back = _last_words(folder)
    try:
        if parallel.is_main():
            run_folder.write_config(folder, config)
        _train(config, folder, terminal, stop or stopping.Stop())
    except faults.KINDS as error:
        raise faults.explained(error, config, folder) from error
    finally:
        terminal.close()
        take_back()
        if descriptor is not None:
            run_folder.unlock(descriptor)


def _enter(folder, config: ConfigDict) -> int | None:
    """Locks the run's folder for the main process, if all agree that it is theirs."""
    from ddpo_fair import parallel
    from ddpo_fair.training import run_folder

    descriptor, refusal = None, None
    try:
        if parallel.is_main():
            descriptor = run_folder.lock(folder)
        run_folder.check(folder, config)
    except UserError as error:
        refusal = error
    if not parallel.any_host(refusal is not None):
        return descriptor
    if descriptor is not None:
        run_folder.unlock(descriptor)
    raise refusal or UserError("Another process refused; its message says why.")


def _last_words(folder) -> Callable[[], None]:
    """Has said what to do if another process is lost, until what returns is called."""
    from ddpo_fair import parallel

    count = parallel.num_processes()
    if count == 1:
        return lambda: None
    return parallel.last_words(
        f"ddpo_fair.train: this process was ended, or one of the other {count - 1} was"
        " lost, without which none can go on. Start the same command on all hosts: it"
        f" continues from the newest checkpoint in {folder}."
    )


def _train(config, folder, terminal: "progress.Progress", stop: stopping.Stop) -> None:
    from ddpo_fair import parallel
    from ddpo_fair.loggers import run_log
    from ddpo_fair.training import assembly, checkpoint, loop

    further = _weights_and_biases(config, folder, terminal)
    run, state = assembly.build(config)
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    restored = checkpoints.restore(state)
    done, rest = 0, {}
    if restored is not None:
        for complaint in restored.complaints:
            terminal.say(complaint)
        done, state, rest = restored.epochs_done, restored.state, restored.rest
    line = rest.get("line")  # of an epoch whose evaluation is missing
    written = done if line is None else done - 1
    journal = None
    if parallel.is_main():
        journal = run_log.open_journal(folder, written, *further)
    trainer = loop.Trainer(run, state, checkpoints, journal, terminal, stop)
    trainer.remember(rest)
    terminal.say(_plan(run, folder, done))
    terminal.start(loop.units(run, done), 0)
    try:
        trainer.train(done, line)
    finally:
        terminal.close()
        checkpoints.close()
        if journal is not None:
            journal.close()
    terminal.say(f"Finished: {folder} holds metrics, samples and checkpoints.")
    if parallel.is_main():
        _report(folder, terminal)


def _weights_and_biases(config, folder, terminal: "progress.Progress") -> list:
    """The main process's board there, if the config wants one."""
    from ddpo_fair import parallel
    from ddpo_fair.loggers import weights_and_biases

    if not config.log.wandb or not parallel.is_main():
        return []
    board = weights_and_biases.open_board(folder, config)
    terminal.say(weights_and_biases.where(board))
    return [board]


def _report(folder, terminal: "progress.Progress") -> None:
    """Explains the run in report.html; the run is whole without it."""
    from ddpo_fair.report import writer

    try:
        terminal.say(f"Report: {writer.write([folder])}")
    except Exception as error:  # whatever it is, everything else is saved
        terminal.say(
            f"The report was not written ({type(error).__name__}: {error}); python -m"
            f" ddpo_fair.report {shlex.quote(str(folder))} writes it."
        )


def _plan(run, folder, done: int) -> str:
    """What is about to happen, and where."""
    from ddpo_fair import parallel

    config = run.config
    how = f"continues after epoch {done - 1}" if done else "begins"
    return (
        f"Run: {folder} {how}; {config.epochs} epochs of {run.num_images} images of"
        f" {run.image_size} x {run.image_size} pixels on"
        f" {', '.join(parallel.describe())}; Ctrl-C saves and leaves, the same command"
        " continues. The first epoch compiles for a while."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
