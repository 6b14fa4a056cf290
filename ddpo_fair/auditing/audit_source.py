"""What an audit is of: images that are there, or that a model draws first."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ddpo_fair import attribute_rules, files, prompts, setting_rules
from ddpo_fair import config as configuration
from ddpo_fair.auditing import (
    audit_result,
    classified,
    diffusers_engine,
    drawn_images,
    image_list,
)
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import lora_files, sources

SAMPLER = ("steps", "guidance-scale", "eta")
OF_DRAWING = ("lora", "engine", "variant", "images-per-prompt", "seed", "dtype")
OF_DRAWING += ("batch", *SAMPLER)
Source = tuple[Callable[[], image_list.ImageList], dict[str, Any]]


def of(options: flags.FlagValues, config: ConfigDict) -> Source:
    """What lists the images, drawn if that is asked for, and where they are from.

    The config gets their prompts and the targets of these. A UserError for what cannot
    be listed or drawn, as far as that is known before any weights are read.
    """
    return (_found if options.model is None else _drawn)(options, config)


def _found(options: flags.FlagValues, config: ConfigDict) -> Source:
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
    files.output("--output", options.output, audit_result.RESULT, classified.KEPT)
    listed = image_list.of_folder(root, options.prompt, options.prompts)
    _set_targets(options, config, listed.prompts)
    return lambda: listed, {"prompts": options.prompts, "prompt": options.prompt}


def _drawn(options: flags.FlagValues, config: ConfigDict) -> Source:
    number = options["images-per-prompt"].value
    given = options.prompt is not None, options.prompts is not None
    if options.images is not None or number is None or sum(given) != 1:
        raise UserError(
            "--model needs --images-per-prompt, and --prompt or --prompts, which say"
            " what to draw; and no --images."
        )
    texts = image_list.read_prompts(options.prompts) if given[1] else [options.prompt]
    _set_targets(options, config, texts)
    pattern, rule = setting_rules.TEXTS["variant"]
    if not re.fullmatch(pattern, options.variant):
        raise UserError(f"--variant={shown(options.variant)} must be {rule}.")
    name = sources.absolute("model", options.model)
    wrong = list(prompts.problems(texts))
    if name in configuration.SHIPPED and not wrong:
        wrong = prompts.unknown(texts)
    if wrong:
        raise UserError(f"--prompt{'s' * given[1]}: {' '.join(wrong)}")
    lora = options.lora
    engine = diffusers_engine if options.engine == "diffusers" else drawn_images
    planned = drawn_images.Plan(
        options.engine,
        name,
        options.variant,
        fingerprint="",
        lora="" if lora is None else lora_files.identity(lora)["fingerprint"],
        dtype=options.dtype,
        seed=options.seed,
        prompts=tuple(texts),
        **{x.replace("-", "_"): options[x].value for x in SAMPLER},
    )
    planned, draw = engine.prepare(planned, lora, options.batch)
    known = planned._asdict() | {"lora": lora, "prompts": options.prompts}
    source = {x: None if y is None else str(y) for x, y in known.items()}
    output = files.output("--output", options.output, drawn_images.PLAN)
    return lambda: draw(output, number), source


def _set_targets(
    options: flags.FlagValues, config: ConfigDict, texts: Sequence[str]
) -> None:
    config.prompts, config.targets = tuple(texts), options.targets or ""
    try:
        attribute_rules.targets(config)
    except UserError as error:
        raise UserError(f"--{error}") from None
