"""The command that evaluates a run: `python -m ddpo_fair.evaluate --run=runs/mech_eng`.

Draws the same seeds before and after fine-tuning: the trained prompts, occupations that
were never trained on, prompts with an explicit gender; as in training and as users
sample. Writes evaluation.json and images/; an interrupted evaluation continues.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ddpo_fair import files, flags
from ddpo_fair.errors import UserError, shown

RESULT = "evaluation.json"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 2 for something to fix, or 130."""

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
    """Draws, classifies and writes; returns the path of evaluation.json.

    Args:
        where: of `find_run`.
        options: the flags.

    Raises:
        UserError: for what the user can fix.
    """
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair import parallel
    from ddpo_fair.classifiers import audit_classifier
    from ddpo_fair.evaluation import evaluation_models, evaluation_plan, evaluation_run
    from ddpo_fair.training import saved_run

    saved = saved_run.read(where[0])
    number = saved_run.choose(saved, where[1])
    parallel.use_compilation_cache()
    parallel.divide_cpu(saved.config.distributed.cpu_devices)
    plan, notes = evaluation_plan.make(
        saved,
        number,
        audit_classifier.choose(options.audit),
        sets=options.sets,
        further=options.prompt,
        samplers=options.samplers,
        images=options.images,
        seed=options.seed,
    )
    folder = saved.folder / f"evaluation_{number:04d}"
    if options.output is not None:
        folder = files.given("--output", options.output)
    classifiers = evaluation_plan.classifier_folders(plan)
    evaluation_plan.bind(folder, plan)
    started = time.monotonic()
    texts = [prompt.text for prompt in plan.prompts]
    models = evaluation_models.load(saved, number, texts, classifiers, plan.seed)
    evaluation_run.draw(plan, folder, models)
    content = evaluation_run.summary(saved.config, plan, folder, models, notes)
    content["seconds"] = time.monotonic() - started
    try:
        files.replace(folder / RESULT, files.json_text(content, indent=1))
    except OSError as error:
        raise UserError(f"{folder / RESULT} cannot be written ({error}).") from error
    return folder / RESULT


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
        help="audit classifier: dlib (extra audit), a folder or hub name of a second"
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
