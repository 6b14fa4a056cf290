"""The command that audits images, or draws them first: how biased are they, how surely?

    python -m ddpo_fair.audit --images=DIR
    python -m ddpo_fair.audit --images=DIR --prompt='photo of a nurse' \\
        --calibration=MY_LABELLED_IMAGES --fail-above=0.2
    python -m ddpo_fair.audit --model=embedded --lora=fair_lora \\
        --prompt='photo of the face of a nurse' --images-per-prompt=100
    python -m ddpo_fair.audit --plan --images-per-prompt=100

DIR has a sub-folder for each prompt, unless --prompt or --prompts says what they are.
With --model they say what to draw; the same command again draws what is missing.
Writes audit.json and audit.html. Exit status: 0 finished, 1 the mean bias is surely
above --fail-above, 2 something for you to fix.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict

from ddpo_fair import attribute_rules, command_line, errors, files, process
from ddpo_fair import config as configuration
from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import sources

if TYPE_CHECKING:  # seconds
    from ddpo_fair.auditing import audit_result

RESULT = "audit.json"
ABOVE = 1  # exit status
OWN, DIFFUSERS = "ddpo_fair", "diffusers"  # engines
# Flags that are settings of `sample`.
SAMPLER = {
    "steps": "num_steps",
    "guidance-scale": "guidance_scale",
    "eta": "eta",
    "batch": "batch_per_device",
}
OF_DRAWING = ("lora", "engine", "images-per-prompt", "seed", "dtype", *SAMPLER)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    above: list[str] = []

    def work() -> None:
        options = command_line.options(_flags(), arguments, __doc__)
        if options.plan:
            plan(options)
        else:
            above.extend(audit(options).above)

    status = process.run("ddpo_fair.audit", work, "images that were drawn are kept")
    return status or (ABOVE if above else 0)


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
    options["images_per_prompt"] = images_per_prompt
    return _audit(model=reference, **options)


def _audit(**options: Any) -> "audit_result.Audit":
    arguments, known = [], _flags()
    for name, given in options.items():
        flag = name.replace("_", "-")
        values = given if isinstance(given, list | tuple) else [given]
        if flag in known and not isinstance(known[flag], flags.MultiFlag) and values:
            values = [",".join(map(str, values))] if len(values) > 1 else values
        arguments += [f"--{flag}={value}" for value in values if value is not None]
    return audit(command_line.options(known, arguments, __doc__))


def plan(options: flags.FlagValues) -> None:
    """Prints what so many images of each prompt will show."""
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair.auditing import image_list, image_plan

    images, texts = options["images-per-prompt"].value, [""]
    if images is None:
        raise UserError("--plan needs --images-per-prompt, e.g. 100.")
    if options.target or options.targets:
        raise UserError("--plan is of equal shares; leave --target and --targets out.")
    if options.prompts is not None:
        texts = image_list.read_prompts(options.prompts)
    for attribute in map(classes.attribute, options.attributes):
        print(*image_plan.lines(attribute, images, len(texts)), sep="\n")


def audit(options: flags.FlagValues) -> "audit_result.Audit":
    """Draws images if that is asked for, classifies, writes and prints.

    Raises:
        UserError: for what the user can fix.
    """
    from ddpo_fair import parallel  # seconds of imports, as above
    from ddpo_fair.auditing import audit_page, audit_result, calibration, classified

    config = settings(options)
    output = files.given("--output", options.output)
    if options.engine == DIFFUSERS:  # JAX would take the memory that torch draws in
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parallel.start(config.distributed.cpu_devices)
    list_images, source = (_found if options.model is None else _drawn)(options, config)
    references = command_line.by_attribute(
        "calibration", options.calibration, config.attributes
    )
    calibrations, labelled = calibration.kept(references, config, options.faces)
    audits = _audits(options, config)
    baseline = audit_result.baseline(options.baseline, set(config.attributes))
    models = classified.load(config)
    seconds = classified.load_audit(config, audits)
    calibrations |= calibration.of(labelled, models, config, options.faces)
    listed = list_images()
    found = classified.classify(
        models, listed.images, options.confidence, seconds, options.faces
    )
    result = audit_result.of(
        config,
        listed,
        found,
        calibrations,
        audits,
        baseline,
        source={
            "images": str(listed.root),
            "targets": options.targets,
            "baseline": options.baseline,
            **source,
        },
        fail_above=options["fail-above"].value,
    )
    audit_result.write(output, result, calibrations)
    said = [*result.notes, *audit_page.sentences(vars(result)), *result.above]
    print(*map(errors.paragraph, said), sep="\n")
    print(f"Wrote {output / RESULT} and {output / audit_result.PAGE}.")
    return result


def _found(options: flags.FlagValues, config: ConfigDict) -> tuple[Callable, dict]:
    """What lists the images of --images, and where they are from."""
    from ddpo_fair.auditing import image_list

    if options.images is None:
        raise UserError(
            "--images is missing, the folder to audit, or --model, which draws (with"
            " --lora or without); or give --plan."
        )
    drawing = [f"--{x}" for x in OF_DRAWING if options[x].present]
    if drawing:
        raise UserError(
            f"{', '.join(drawing)} is for images that are drawn, but --images are"
            " there; leave it out, or give --model in the place of --images."
        )
    root = files.given("--images", options.images)
    files.output("--output", options.output, RESULT)
    listed = image_list.of_folder(root, options.prompt, options.prompts)
    _set_targets(options, config, listed.prompts)
    return lambda: listed, {"prompts": options.prompts, "prompt": options.prompt}


def _drawn(options: flags.FlagValues, config: ConfigDict) -> tuple[Callable, dict]:
    """What draws the images of --model and lists them, and how they are drawn."""
    from ddpo_fair.auditing import drawn_images, image_list

    number = options["images-per-prompt"].value
    given = options.prompt is not None, options.prompts is not None
    if options.images is not None or number is None or sum(given) != 1:
        raise UserError(
            "--model needs --images-per-prompt, and --prompt or --prompts, which say"
            " what to draw; and no --images."
        )
    texts = image_list.read_prompts(options.prompts) if given[1] else [options.prompt]
    _set_targets(options, config, texts)
    config.model = sources.absolute("model", options.model)
    if options.engine == DIFFUSERS:
        return _drawn_by_diffusers(options, config)
    small = config.model == configuration.EMBEDDED
    usual = configuration.choose_model(
        configuration.defaults(), "embedded" if small else "sd15"
    )
    config.sample, config.seed, config.dtype = usual.sample, options.seed, options.dtype
    for flag, field in SAMPLER.items():
        if options[flag].value is not None:
            config.sample[field] = options[flag].value
    planned, adapters = drawn_images.plan(config, options.lora)
    batch = config.sample.batch_per_device
    source = {x: str(y) for x, y in planned._asdict().items() if x != "prompts"}
    source |= {"lora": options.lora, "prompts": options.prompts}
    output = files.output("--output", options.output, drawn_images.PLAN)
    return lambda: drawn_images.draw(output, planned, adapters, number, batch), source


def _drawn_by_diffusers(
    options: flags.FlagValues, config: ConfigDict
) -> tuple[Callable, dict]:
    """As `_drawn`, of another engine; what is not given is the pipeline's own."""
    from ddpo_fair.auditing import diffusers_engine, drawn_images

    planned = diffusers_engine.plan(
        config.model,
        options.lora,
        options.dtype,
        options.seed,
        config.prompts,
        num_inference_steps=options.steps,
        guidance_scale=options["guidance-scale"].value,
        eta=options.eta,
    )
    source = planned | planned["settings"]
    source = {x: str(y) for x, y in source.items() if isinstance(y, str | int | float)}
    source |= {"lora": options.lora, "prompts": options.prompts}
    output = files.output("--output", options.output, drawn_images.PLAN)
    rest = options.lora, options["images-per-prompt"].value, options.batch or 1
    return lambda: diffusers_engine.draw_all(output, planned, *rest), source


def _set_targets(
    options: flags.FlagValues, config: ConfigDict, texts: Sequence[str]
) -> None:
    """Sets a config's prompts and their targets; a UserError for a wrong table."""
    config.prompts, config.targets = tuple(texts), options.targets or ""
    try:
        attribute_rules.targets(config)
    except UserError as error:
        raise UserError(f"--{error}") from None


def _audits(options: flags.FlagValues, config: ConfigDict) -> dict[str, str]:
    """The audit classifier of each attribute that has one; dlib knows gender only."""
    from ddpo_fair.classifiers import audit_classifier

    given = options["audit-classifier"].value
    found = command_line.by_attribute("audit-classifier", given, config.attributes)
    gender, dlib = classes.GENDER.name, audit_classifier.DLIB
    if dlib in found.values() and found.get(gender) != dlib:
        raise UserError("--audit-classifier=dlib classifies by gender; audit gender.")
    return {x: one for x, one in found.items() if one != dlib or x == gender}


def settings(options: flags.FlagValues) -> ConfigDict:
    """The attributes, their classifiers and targets as a config.

    Raises:
        UserError: for an unknown attribute, or shares that are no target.
    """
    known = {name: classes.attribute(name) for name in options.attributes}
    if not known:
        raise UserError("--attributes is empty; give one, e.g. gender.")
    config = configuration.defaults(known)
    targets = command_line.by_attribute("target", options.target, known)
    references = dict.fromkeys(known, configuration.EMBEDDED)
    references |= command_line.by_attribute("classifier", options.classifier, known)
    for name, reference in references.items():
        names, target = known[name].classes, ()
        if name in targets:
            parts = targets[name].split(",")
            numbers = [float(x) for x in parts if re.fullmatch(r" *\d*\.?\d+ *", x)]
            target = tuple(numbers if len(numbers) == len(parts) else ())
            if not attribute_rules.distribution(target, len(names)):
                raise UserError(
                    f"--target={shown(targets[name])} of {name} must be the wanted"
                    f" shares of {', '.join(names)}, not negative, with sum 1, e.g."
                    f" {','.join(['0.25', '0.75', *['0'] * (len(names) - 2)])}."
                )
        one = configuration.attribute(reference, names, target)
        one.confidence_threshold = options.confidence
        config.attributes[name] = one
    return config


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, number = command_line.definers(values)
    several = functools.partial(flags.DEFINE_multi_string, flag_values=values)
    several_of = "; of one attribute NAME=..., may be given again"
    texts("images", None, "Folder of images, with a sub-folder for each prompt")
    where = "a folder, or owner/name on the Hugging Face hub"
    texts("model", None, f"Draws images instead: embedded, {where}")
    texts("lora", None, "Its adapters, a file or folder that ddpo_fair.export wrote")
    engines = "Draws: our networks, or diffusers (extra torch), whatever it can load"
    flags.DEFINE_enum("engine", OWN, (OWN, DIFFUSERS), engines, flag_values=values)
    texts("prompt", None, "The prompt of all images")
    table = "A .csv or .jsonl with the columns file and prompt"
    texts("prompts", None, f"{table}; with --model also a .txt with a prompt a line")
    whole("images-per-prompt", None, "To draw with --model, or of --plan", 1, 10**5)
    whole("seed", 0, "Of the images that are drawn", 0, 2**31 - 1)
    usual = "if not given ddpo_fair.train's, with :sd15 if not embedded"
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
    cropped = "Crops the largest face (extra audit); classifiers of crops need it"
    flags.DEFINE_bool("faces", False, cropped, flag_values=values)
    number("confidence", 0.7, "That an answer needs", 0, 0.999)
    texts("baseline", None, "audit.json of another audit, to compare with")
    number("fail-above", None, "Exit status 1 if the mean bias is surely above", 0, 2)
    planned = "Only prints what --images-per-prompt will show"
    flags.DEFINE_bool("plan", False, planned, flag_values=values)
    texts("output", "audit", f"Folder for {RESULT}, audit.html and drawn images")
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
