"""The command that audits images, or draws them first: how biased are they, how surely?

    python -m ddpo_fair.audit --images=DIR
    python -m ddpo_fair.audit --images=DIR --prompt='photo of a nurse' \\
        --calibration=MY_LABELLED_IMAGES --fail-above=0.2
    python -m ddpo_fair.audit --model=embedded --lora=fair_lora \\
        --prompt='photo of the face of a nurse' --images-per-prompt=100
    python -m ddpo_fair.audit --plan --images-per-prompt=100

DIR has a sub-folder for each prompt, unless --prompt or --prompts says what they are.
With --model they say what to draw. An audit that was stopped goes on where it was.
Writes audit.json and audit.html. Exit status: 0 finished, 1 the mean bias is surely
above --fail-above, 2 something for you to fix.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict

from ddpo_fair import attribute_rules, command_line, errors, files, process
from ddpo_fair import config as configuration
from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, shown

if TYPE_CHECKING:  # seconds
    from ddpo_fair.auditing import audit_result

ABOVE = 1  # exit status
OWN, DIFFUSERS = "ddpo_fair", "diffusers"  # engines


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    above: list[str] = []

    def work() -> None:
        options = command_line.options(_flags(), arguments, __doc__)
        if options.plan:
            plan(options)
        else:
            above.extend(audit(options).above)

    kept = "what was drawn and classified is kept"
    return process.run("ddpo_fair.audit", work, kept) or (ABOVE if above else 0)


def folder(images: str | os.PathLike, **options: Any) -> "audit_result.Audit":
    """Audits a folder of images; writes, prints and returns what it found.

    Options are the command's flags, with _ for -, e.g. `prompt="photo of a nurse"`; a
    list is for a flag that takes several. A UserError for what can be fixed.
    """
    return _audit(images=images, **options)


def model(
    reference: str | os.PathLike, images_per_prompt: int, **options: Any
) -> "audit_result.Audit":
    """Draws with a text-to-image model and audits its images; else as `folder`."""
    return _audit(model=reference, images_per_prompt=images_per_prompt, **options)


def _audit(**options: Any) -> "audit_result.Audit":
    arguments, known = [], _flags()
    for name, given in options.items():
        flag = name.replace("_", "-")
        values = given if isinstance(given, list | tuple) else [given]
        if flag in known and not isinstance(known[flag], flags.MultiFlag) and values:
            values = [",".join(map(str, values))] if len(values) > 1 else values
        arguments += [f"--{flag}={value}" for value in values if value is not None]
    try:
        return audit(command_line.options(known, arguments, __doc__))
    finally:
        files.let_go()  # a notebook lives on


def plan(options: flags.FlagValues) -> None:
    """Prints what so many images of each prompt will show."""
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair.auditing import image_list, image_plan

    images, texts = options["images-per-prompt"].value, [""]
    if images is None:
        raise UserError("--plan needs --images-per-prompt, e.g. 100.")
    others = ("target", "targets", "calibration", "baseline", "fail-above")
    if given := [f"--{name}" for name in others if options[name].present]:
        raise UserError(
            "--plan says how far off equal shares a fair model will seem, and nothing"
            f" more; leave {' and '.join(given)} out."
        )
    if options.prompts is not None:
        texts = image_list.read_prompts(options.prompts)
    for attribute in map(classes.attribute, options.attributes):
        print(*image_plan.lines(attribute, images, len(texts)), sep="\n")


def audit(options: flags.FlagValues) -> "audit_result.Audit":
    """Draws images if that is asked for, classifies, writes and prints.

    A UserError for what the user can fix.
    """
    from ddpo_fair import parallel  # seconds of imports, as above
    from ddpo_fair.auditing import (
        audit_page,
        audit_result,
        audit_source,
        calibration,
        classified,
    )

    config = settings(options)
    output = files.given("--output", options.output)
    for name, mark in audit_result.MARKS.items():  # npm, say, writes an audit.json too
        files.output(f"--output/{name}", output / name, mark)
    if options.engine == DIFFUSERS:  # JAX would take the memory that torch draws in
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parallel.start(config.distributed.cpu_devices)
    list_images, source = audit_source.of(options, config)
    given = "calibration", options.calibration, config.attributes
    references = attribute_rules.by_attribute(*given)
    calibrations = calibration.of(references, config, options.faces)
    audits = _audits(options, config)
    baseline = audit_result.baseline(options.baseline, set(config.attributes), output)
    models = classified.load(config, audits)
    calibrations |= calibration.of(references, config, options.faces, models.own)
    listed = list_images()
    found = classified.classify(
        models, listed.images, options.confidence, options.faces, output
    )
    source |= {"targets": options.targets, "baseline": options.baseline}
    result = audit_result.of(
        config,
        listed,
        found,
        calibrations,
        models.known["own"],
        audits,
        baseline,
        source={"images": str(listed.root), **source},
        fail_above=options["fail-above"].value,
    )
    audit_result.write(output, result, calibrations)
    said = [*result.notes, *audit_page.sentences(vars(result)), *result.above]
    print(*map(errors.paragraph, said), sep="\n")
    print(f"Wrote {output / audit_result.RESULT} and {output / audit_result.PAGE}.")
    return result


def _audits(options: flags.FlagValues, config: ConfigDict) -> dict[str, str]:
    """The audit classifier of each attribute that has one; dlib knows gender only."""
    from ddpo_fair.classifiers import audit_classifier

    given = "audit-classifier", options["audit-classifier"].value, config.attributes
    found = attribute_rules.by_attribute(*given)
    gender, dlib = classes.GENDER.name, audit_classifier.DLIB
    if dlib in found.values() and found.get(gender) != dlib:
        raise UserError("--audit-classifier=dlib classifies by gender; audit gender.")
    return {x: one for x, one in found.items() if one != dlib or x == gender}


def settings(options: flags.FlagValues) -> ConfigDict:
    """The attributes, their classifiers and targets as a config.

    A UserError for an unknown attribute, or shares that are no target.
    """
    known = {name: classes.attribute(name).classes for name in options.attributes}
    if not known:
        raise UserError("--attributes is empty; give one, e.g. gender.")
    config = configuration.defaults(known)
    targets = attribute_rules.by_attribute("target", options.target, known)
    references = dict.fromkeys(known, configuration.EMBEDDED)
    own = attribute_rules.by_attribute("classifier", options.classifier, known)
    for name, reference in {**references, **own}.items():
        target = ()
        if (given := targets.get(name)) is not None:
            target = attribute_rules.shares(given)
            if not attribute_rules.distribution(target, len(known[name])):
                rule = attribute_rules.rule_of_target(known[name])
                raise UserError(f"--target={shown(given)} of {name} {rule}")
        one = configuration.attribute(reference, known[name], target)
        one.confidence_threshold = options.confidence
        config.attributes[name] = one
    return config


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, number, several, yes = command_line.definers(values)
    several_of = "; of one attribute NAME=..., may be given again"
    texts("images", None, "Folder of images, with a sub-folder for each prompt")
    where = "a folder, or owner/name on the Hugging Face hub"
    texts("model", None, f"Draws images instead: embedded, embedded_flow, {where}")
    texts("variant", "", "Which of its files, e.g. fp16; the usual ones if empty")
    texts("lora", None, "LoRA to merge into it: a file, a folder, a name on the hub")
    engines = "Draws: our networks, or diffusers (extra torch), whatever it can load"
    flags.DEFINE_enum("engine", OWN, (OWN, DIFFUSERS), engines, flag_values=values)
    texts("prompt", None, "The prompt of all images")
    table = "A .csv or .jsonl with the columns file and prompt"
    texts("prompts", None, f"{table}; with --model also a .txt with a prompt a line")
    whole("images-per-prompt", None, "To draw with --model, or of --plan", 1, 10**5)
    whole("seed", 0, "Of the images that are drawn", 0, 2**31 - 1)
    usual = "if not given ddpo_fair.train's, of the variant of the model's kind"
    whole("steps", None, f"Denoising steps; {usual}", 1, 1000)
    number("guidance-scale", None, f"Classifier-free guidance; {usual}", 0, 100)
    number("eta", None, f"Noise of each step, DDPM's is 1; {usual}", 0, 1)
    whole("batch", None, f"Images drawn together on a device; {usual}", 1, 4096)
    kinds = ("float32", "bfloat16")
    flags.DEFINE_enum("dtype", kinds[0], kinds, "In which it draws", flag_values=values)
    known = ", ".join(classes.DEFAULTS)
    flags.DEFINE_list("attributes", ["gender"], f"Of {known}", flag_values=values)
    several("classifier", [], f"embedded, if not given, typology, {where}{several_of}")
    second = f"A second: dlib (extra audit), {where}{several_of}"
    several("audit-classifier", [], second)
    several("target", [], "Wanted share of each class, e.g. 0.5,0.5" + several_of)
    texts("targets", None, "JSON {prompt: {attribute: shares}}, as config.targets")
    several("calibration", [], command_line.CALIBRATION)
    yes(
        "faces",
        False,
        "Crops the largest face (extra audit); classifiers of crops need it",
    )
    number("confidence", 0.7, "That an answer needs", 0, 0.999)
    texts("baseline", None, "audit.json of another audit, to compare with")
    number("fail-above", None, "Exit status 1 if the mean bias is surely above", 0, 2)
    yes("plan", False, "Only prints what --images-per-prompt will show")
    texts("output", "audit", "Folder of audit.json, audit.html and drawn images")
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
