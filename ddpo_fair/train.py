"""The command that trains: `python -m ddpo_fair.train --config=configs/mech_eng.py`."""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from absl import flags
from ml_collections import ConfigDict

from ddpo_fair import accelerator, config_rules, experiment, process, prompts
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError
from ddpo_fair.training import stopping


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return process.run(
        "ddpo_fair.train",
        lambda: _train_or_plan(arguments),
        "the same command continues",
    )


def _train_or_plan(arguments: Sequence[str]) -> None:
    stop = stopping.Stop()
    stop.idle = True
    stop.listen()
    values = flags.FlagValues()
    flags.DEFINE_string(
        "plan",
        None,
        "Only compile, and print what the run needs of each device: of the devices at"
        " hand, or with --plan=TARGET of others, e.g. h100, h100:1x2x8 or v5e:2x2.",
        flag_values=values,
    )
    # absl knows no flag whose value may be left out.
    arguments = ["--plan=" if one == "--plan" else one for one in arguments]
    command, problems = experiment.parse(arguments, "ddpo_fair.train", values)
    check(command.config, problems)
    if values.plan is None:
        stop.idle = not command.config.distributed.enabled  # or others would wait
        by_host = command.variant is None and "model" not in command.overrides
        train(command.config, stop, model_choice(command), by_host)
    else:
        # Seconds of imports, which neither --help nor bad input should wait for.
        from ddpo_fair.training import plan

        if other := _other_kind(command):
            print(other.strip())
        plan.write(command.config, values.plan or None, partial(print, flush=True))


def check(config: ConfigDict, problems: list[str]) -> None:
    """Raises a UserError with all that is wrong, before JAX is imported."""
    problems = list(problems)
    flat = configuration.flatten(config)
    for setting in ("prompts", config_rules.PRESERVE):
        if config.model in configuration.SHIPPED and isinstance(flat[setting], tuple):
            texts = [text for text in flat[setting] if isinstance(text, str)]
            if setting == config_rules.PRESERVE:
                texts = [x for x in texts if x != config_rules.EXPLICIT_FORMS]
            if not any(prompts.problems(texts, setting)):  # which `validate` tells
                problems += prompts.unknown(texts, setting)
    config_rules.validate(config, problems)


def model_choice(command: experiment.Command) -> str:
    """The first line: which model is trained, why, and how to choose."""
    if "model" in command.overrides:
        reason = "as --config.model says"
    elif command.variant:
        reason = f"as :{command.variant} says"
    elif command.config.model in configuration.SHIPPED:
        reason = "this host shows no accelerator, or the config file says so"
    else:
        reason = "this host has an accelerator, or the config file says so"
    for extra in accelerator.without_plugin():
        reason += f'; to use its devices, pip install "ddpo_fair[{extra}]"'
    merged = f" with {command.config.base_lora} merged" * bool(command.config.base_lora)
    return (
        f"Model: {command.config.model}{merged} ({reason}). Choose with"
        f" --config={command.path}:{', :'.join(configuration.VARIANTS)}."
        f"{_other_kind(command)}"
    )


def _other_kind(command: experiment.Command) -> str:
    """A sentence where the settings are for another kind of model; else ""."""
    config, kinds = command.config, {y: x for x, y in configuration.MODELS.items()}
    own = kind = kinds.get(command.model)
    if "model" in command.overrides and own:
        # Seconds, which a refused setting does not wait for.
        from ddpo_fair.diffusion import stable_diffusion
        from ddpo_fair.models import sources
        from ddpo_fair.training import assembly

        with contextlib.suppress(UserError):  # which is told when the run begins
            folder = sources.model_folder(config.model, config.variant, False)
            kind = assembly.variant_of(stable_diffusion.read_configs(folder))
    told = f" The other settings are :{own}'s, but this model is of the kind that"
    told += f" :{kind} is for: put :{kind} behind the config file instead."
    return told if kind != own else ""


def train(
    config: ConfigDict,
    stop: stopping.Stop | None = None,
    opening: str = "",
    by_host: bool = False,
) -> None:
    """Trains, or goes on training, the run of a config, and writes its report.

    The config was checked by `check`; `by_host` says that the model was not named.
    Raises Interrupted when asked to stop and all is saved, or UserError.
    """
    # Seconds, which neither --help nor a refused setting should wait for.
    from ddpo_fair import parallel
    from ddpo_fair.training import run

    opening = opening or f"Model: {config.model}."
    folder = run.train(config, stop or stopping.Stop(), opening, by_host)
    if not parallel.is_main():
        return
    try:
        from ddpo_fair.report import page  # Matplotlib, for which nothing else waits

        print(f"Report: {page.write([folder])}", flush=True)
    except Exception as error:  # whatever it is, everything else is saved
        print(
            f"The report was not written ({type(error).__name__}: {error}); python -m"
            f" ddpo_fair.report {shlex.quote(str(folder))} --output=PAGE.html writes it"
            " elsewhere.",
            flush=True,
        )


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status == stopping.INTERRUPTED and "jax" in sys.modules:
        from ddpo_fair import parallel  # see `train`

        parallel.leave(status, finished=False)  # devices may be at work for minutes
    sys.exit(status)
