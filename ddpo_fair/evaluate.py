"""The command that evaluates a run: `python -m ddpo_fair.evaluate --run=runs/mech_eng`.

Draws the same seeds before and after fine-tuning: the trained prompts, occupations that
were never trained on, prompts with an explicit gender; as in training and as users
sample. Writes evaluation.json and images/; an interrupted evaluation continues.
"""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ddpo_fair import attribute_rules, command_line, experiment, files, process, prompts
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError, shown

RESULT = "evaluation.json"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""

    def work() -> None:
        options = _flags()
        rest, problems = command_line.read(options, arguments, __doc__)
        if not any(map(_of_config, rest)):
            problems += command_line.strangers(rest, options)
        if not options.sets or set(options.sets) - set(prompts.SETS):
            given = shown(",".join(options.sets))
            problems.append(f"--sets={given} must be of {', '.join(prompts.SETS)}.")
        if problems:
            raise UserError(" ".join(problems))
        path = evaluate(find_run(options.run, options.checkpoint, rest), options)
        print(f"Wrote {path}.")

    return process.run("ddpo_fair.evaluate", work, "the same command continues")


def find_run(
    run: str | None, checkpoint: str | None, rest: list[str]
) -> tuple[Path, int | None]:
    """The run's folder and the checkpoint's number, None for the newest.

    By --run, by --checkpoint (a number, or a folder .../checkpoints/15), or by --config
    and its overrides in `rest`, which name a run as they do for training. A UserError
    if they name no run, or two.
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
    if any(map(_of_config, rest)):
        from ddpo_fair.training import run_folder  # seconds, as below

        command, problems = experiment.parse(rest, "ddpo_fair.evaluate")
        if problems:
            raise UserError(" ".join(problems))
        named.append(run_folder.path_of(command.config))
    places = dict.fromkeys(named)
    if len(places) != 1:
        what = ", ".join(map(str, places)) or "none"
        raise UserError(
            f"Which run? The flags name {what}. Give --run=runs/mech_eng, or the"
            " --config=configs/mech_eng.py that trained it."
        )
    return next(iter(places)), int(number) if number else None


def evaluate(where: tuple[Path, int | None], options: flags.FlagValues) -> Path:
    """Draws, classifies and writes; returns the path of evaluation.json.

    `where` is of `find_run`, `options` are the flags. A UserError for what the user can
    fix.
    """
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair import parallel
    from ddpo_fair.auditing import calibration
    from ddpo_fair.classifiers import audit_classifier
    from ddpo_fair.evaluation import evaluation_models, evaluation_plan, evaluation_run
    from ddpo_fair.training import description, saved_run

    saved = saved_run.read(where[0])
    number = saved_run.choose(saved, where[1])
    if "gender" not in saved.config.attributes:
        raise UserError(
            f"{saved.folder} has no attribute gender, which an evaluation is about;"
            " train with attributes.gender.weight=0 to have it measured beside others."
        )
    references = attribute_rules.by_attribute(
        "calibration", options.calibration, saved.config.attributes
    )
    calibrations = calibration.of(references, saved.config)
    fields = description.fields(configuration.flatten(saved.config))
    saved = saved_run.with_weights(saved, *fields)
    parallel.start(saved.config.distributed.cpu_devices)
    plan, classifiers, notes = evaluation_plan.make(
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
    described = folder / evaluation_plan.PLAN, plan._asdict(), "--output"
    files.bind(*described, "source.run")  # whose folder may have another name now
    started = time.monotonic()
    models = evaluation_models.load(saved, plan, classifiers)
    own = models.classifiers[0], *models.others
    calibrations |= calibration.of(references, saved.config, models=own)
    evaluation_run.draw(plan, folder, models)
    matrices = calibration.matrices(calibrations)
    content = evaluation_run.summary(saved, plan, folder, models, notes, matrices)
    content["calibrations"] = calibrations
    content["seconds"] = time.monotonic() - started
    with files.writing(str(folder / RESULT)):
        calibration.write(folder, calibrations)
        files.replace(folder / RESULT, files.json_text(content, indent=1))
    return folder / RESULT


def _of_config(argument: str) -> bool:
    return argument.lstrip("-").removeprefix("no").startswith("config")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, _, several, _ = command_line.definers(values)
    texts("run", None, "Folder of the run; or --config=FILE, as it was trained")
    texts("checkpoint", None, "Epochs done at it, or its folder; the newest otherwise")
    whole("images", 64, "Of each prompt and model", 2, 10**5)
    flags.DEFINE_list("sets", list(prompts.SETS), "Of prompts", flag_values=values)
    several("prompt", [], "A further text; may be given again")
    how = "training, all (without noise, other guidance and steps, too), or"
    how += " eta:guidance:steps,...; training's always comes first"
    texts("samplers", "all", how)
    audit = "Audit classifier: dlib (extra audit), a folder or hub name of a second"
    texts("audit", "auto", f"{audit} classifier, none, or auto: dlib if there")
    several("calibration", [], command_line.CALIBRATION)
    whole("seed", 0, "Of the images", 0, 2**31 - 1)
    texts("output", None, "Folder; evaluation_0015 and the like in the run's otherwise")
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
