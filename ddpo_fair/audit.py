"""The command that audits images of any generator: how biased are they, how surely?

    python -m ddpo_fair.audit --images=DIR
    python -m ddpo_fair.audit --images=DIR --prompt='photo of a nurse' \\
        --calibration=MY_LABELLED_IMAGES --fail-above=0.2
    python -m ddpo_fair.audit --plan --images-per-prompt=100

DIR has a sub-folder for each prompt, unless --prompt or --prompts says what they are.
Writes audit.json and audit.html. Exit status: 0 finished, 1 the mean bias is surely
above --fail-above, 2 something for you to fix.
"""

import functools
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import attribute_rules, command_line, errors, files, process
from ddpo_fair import config as configuration
from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, shown

RESULT, PAGE = "audit.json", "audit.html"
VERSION = 1  # of audit.json; docs/audit.schema.json
ABOVE = 1  # exit status


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    failed: list[str] = []

    def work() -> None:
        options = command_line.options(_flags(), arguments, __doc__)
        if options.plan:
            plan(options)
        else:
            failed.extend(audit(options))

    status = process.run("ddpo_fair.audit", work, "nothing was written")
    return status or (ABOVE if failed else 0)


def plan(options: flags.FlagValues) -> None:
    """Prints what so many images of each prompt will show."""
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair.auditing import image_list, image_plan

    images, texts = options["images-per-prompt"].value, {""}
    if images is None:
        raise UserError("--plan needs --images-per-prompt, e.g. 100.")
    if options.prompts is not None:
        texts = {prompt for _, prompt in image_list.read_table(options.prompts)}
    for attribute in map(classes.attribute, options.attributes):
        print(*image_plan.lines(attribute, images, len(texts)), sep="\n")


def audit(options: flags.FlagValues) -> list[str]:
    """Classifies the images, writes and prints; what is above --fail-above.

    Raises:
        UserError: for what the user can fix.
    """
    from ddpo_fair import parallel  # seconds of imports, as above
    from ddpo_fair.auditing import audit_page, classified, figures, image_list

    if options.images is None:
        raise UserError("--images is missing: the folder to audit, or give --plan.")
    root, limit = files.given("--images", options.images), options["fail-above"].value
    output = files.output("--output", options.output, RESULT)
    config = settings(options)
    listed = image_list.of_folder(root, options.prompt, options.prompts)
    calibrations = by_attribute("calibration", options.calibration, config.attributes)
    baseline = {}
    if options.baseline is not None:
        baseline = _baseline(options.baseline, set(config.attributes))
    parallel.start(config.distributed.cpu_devices)
    models = classified.load(config)
    matrices = {
        name: classified.calibrate(models, name, folder, options.confidence)
        for name, folder in calibrations.items()
    }
    found = classified.classify(models, listed.images, options.confidence)
    content = {
        "version": VERSION,
        "written_by": {
            "version": ddpo_fair.__version__,
            "date": time.strftime("%Y-%m-%d %H:%M %z"),
        },
        "source": {
            "images": str(root),
            "prompts": options.prompts,
            "prompt": options.prompt,
            "baseline": options.baseline,
        },
        "images": len(found.rows),
        "prompts": len(listed.prompts),
        "unreadable": [
            [os.path.relpath(listed.images[row], root), why]
            for row, why in found.unreadable.items()
        ],
        "missing": listed.missing,
        "skipped": listed.skipped,
        "attributes": {
            name: {
                "classifier": one.classifier,
                "confidence": options.confidence,
                "calibration": calibrations.get(name),
                "classes": one.classes,
                **figures.of_attribute(
                    found.labels[name][found.rows],
                    listed.of_image[found.rows],
                    listed.prompts,
                    one.target,
                    matrices.get(name),
                ),
            }
            for name, one in config.attributes.items()
        },
        "fail_above": limit,
    }
    content = files.plain(content)
    for name in content["attributes"].keys() & baseline.keys():
        own = content["attributes"][name]
        try:
            own["baseline"] = figures.compare(own, baseline[name], name)
        except (LookupError, TypeError, AttributeError) as error:
            what = f"of {name} lacks what an audit writes ({error!r}); write it again."
            raise UserError(f"--baseline={shown(options.baseline)} {what}") from None
    content["notes"] = list(dict.fromkeys(figures.notes(content)))
    try:
        output.mkdir(parents=True, exist_ok=True)
        files.replace(output / PAGE, audit_page.build(content))
        files.replace(output / RESULT, files.json_text(content, indent=1))
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error}).") from error
    above = list(figures.above(content))
    said = [*content["notes"], *audit_page.sentences(content), *above]
    print(*map(errors.paragraph, said), sep="\n")
    print(f"Wrote {output / RESULT} and {output / PAGE}.")
    return above


def settings(options: flags.FlagValues) -> ConfigDict:
    """The attributes, their classifiers and targets as a config.

    Raises:
        UserError: for an unknown attribute, or shares that are no target.
    """
    known = {name: classes.attribute(name) for name in options.attributes}
    if not known:
        raise UserError("--attributes is empty; give one, e.g. gender.")
    config = configuration.defaults(known)
    targets = by_attribute("target", options.target, known)
    chosen = ["embedded", *options.classifier]
    references = by_attribute("classifier", chosen, known)
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
        config.attributes[name] = configuration.attribute(reference, names, target)
    return config


def by_attribute(
    flag: str, values: Sequence[str], names: Iterable[str]
) -> dict[str, str]:
    """What a flag says of each attribute: NAME=VALUE of one, VALUE of all others.

    Raises:
        UserError: if it is about an attribute that is not audited.
    """
    own: dict[str, str] = {}
    rest: dict[str, str] = {}
    for value in values:
        name, equals, said = value.partition("=")
        if equals and name in classes.DEFAULTS and name not in names:
            raise UserError(
                f"--{flag}={shown(value)} is about {name}, but --attributes are"
                f" {', '.join(names)}; add it, or leave this out."
            )
        if equals and name in names:
            own[name] = said
        else:
            rest = dict.fromkeys(names, value)
    return rest | own


def _baseline(text: str, names: set[str]) -> dict[str, Any]:
    """The attributes of another audit.json; a UserError if it has none of `names`."""
    path = files.given("--baseline", text)
    path = path / RESULT if path.is_dir() else path
    try:
        content = json.loads(files.content(path))
        if content["version"] != VERSION:
            raise ValueError(f"its version is {shown(content['version'])}")
        if not names & content["attributes"].keys():
            raise ValueError(f"it has none of the attributes {', '.join(names)}")
        return dict(content["attributes"])
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
        AttributeError,
    ) as error:
        raise UserError(
            f"--baseline={shown(text)} is no audit.json of version {VERSION} ({error});"
            " give one that this command wrote."
        ) from None


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, number = command_line.definers(values)
    several = functools.partial(flags.DEFINE_multi_string, flag_values=values)
    several_of = "; of one attribute NAME=..., may be given again"
    texts("images", None, "Folder of images, with a sub-folder for each prompt")
    texts("prompt", None, "The prompt of all images")
    texts("prompts", None, "A .csv or .jsonl with the columns file and prompt")
    known = ", ".join(classes.DEFAULTS)
    flags.DEFINE_list("attributes", ["gender"], f"Of {known}", flag_values=values)
    where = "embedded, typology, a folder, or owner/name on the Hugging Face hub"
    several("classifier", ["embedded"], where + several_of)
    several("target", [], "Wanted share of each class, e.g. 0.5,0.5" + several_of)
    several("calibration", [], "Folder with a folder of each class" + several_of)
    number("confidence", 0.7, "That an answer needs", 0, 0.999)
    texts("baseline", None, "audit.json of another audit, to compare with")
    number("fail-above", None, "Exit status 1 if the mean bias is surely above", 0, 2)
    planned = "Only prints what --images-per-prompt will show"
    flags.DEFINE_bool("plan", False, planned, flag_values=values)
    whole("images-per-prompt", None, "Of --plan", 1, 10**5)
    texts("output", "audit", f"Folder for {RESULT} and {PAGE}")
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
