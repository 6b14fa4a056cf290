"""The rules that settings must obey, checked together and before anything is loaded."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_limits, prompt_sets, prompts
from ddpo_fair.errors import UserError, shown
from ddpo_fair.loggers import weights_and_biases

# What the rules between settings compute with.
JOINT = {
    "sample.batch_per_device",
    "sample.batches",
    "sample.num_steps",
    "train.updates_per_epoch",
    "train.timestep_fraction",
    "train.skip_last_steps",
    "train.microbatch",
    "eval.images",
}

# huggingface_hub's rule; all of owner/name has at most 96 characters.
MODEL_NAME = re.compile(
    r"(?=[^@]{3,96}(@|$))\w([\w.-]*\w)?/\w([\w.-]*\w)?(@[\w./-]{1,255})?", re.ASCII
)
VARIANT = re.compile(r"\w{0,40}", re.ASCII)
ADDRESS = re.compile(r"[\w.:\[\]-]{1,255}:\d{1,5}", re.ASCII)
RUN_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]{0,99}", re.ASCII)


def validate(
    config: ConfigDict, problems: list[str], num_devices: int | None = None
) -> None:
    """Raises one error that lists everything wrong with the settings.

    Args:
        config: all settings.
        problems: found earlier, one sentence each; listed first.
        num_devices: of all hosts, once they are known.

    Raises:
        UserError: name, value, rule and way out of each violation.
    """
    found = [*problems, *violations(config)]
    if not found and num_devices is not None:
        found = list(_on_devices(config, num_devices))
    if found:
        count = "" if len(found) == 1 else f"{len(found)} settings cannot be used. "
        raise UserError(count + " ".join(dict.fromkeys(found)))


def violations(config: ConfigDict) -> list[str]:
    """A sentence for every rule that the settings break."""
    flat = configuration.flatten(config)
    defaults = configuration.flatten(configuration.defaults())
    wrong = dict(_types(flat, defaults))
    flat = {name: defaults[name] if name in wrong else flat[name] for name in flat}
    wrong |= _ranges(flat)
    others = [*_choices(flat), *_texts(flat), *_target(flat)]
    together = [] if wrong.keys() & JOINT else list(_together(flat))
    return [*wrong.values(), *others, *together]


def _types(flat: dict[str, Any], defaults: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, default in defaults.items():
        value = flat[name]
        kind = type(default)
        inside = type(default[0]) if kind is tuple else None
        right = type(value) is kind and (
            inside is None or all(type(item) is inside for item in value)
        )
        if not right:
            yield (
                name,
                f"{name}={shown(value)} must be of type {kind.__name__}"
                f"{f' of {inside.__name__}' if inside else ''}, like"
                f" {shown(default)}.",
            )


def _ranges(flat: dict[str, Any]) -> dict[str, str]:
    wrong = {}
    for name, allowed in config_limits.RANGES.items():
        value = flat[name]
        inside = allowed.low <= value <= allowed.high and value < math.inf
        if not inside or (allowed.above and value == allowed.low):
            hint = config_limits.WAYS_OUT.get(name)
            rule = f"{allowed}; {hint}" if hint else f"{allowed}"
            wrong[name] = f"{name}={shown(value)} must be {rule}."
    return wrong


def _choices(flat: dict[str, Any]) -> Iterator[str]:
    for name, allowed in config_limits.CHOICES.items():
        if flat[name] not in allowed:
            yield (f"{name}={shown(flat[name])} must be one of {', '.join(allowed)}.")


def _texts(flat: dict[str, Any]) -> Iterator[str]:
    for name in ("model", "classifier"):
        if not _can_be_path(flat[name]):
            yield (
                f"{name}={shown(flat[name])} must be 'embedded', a folder,"
                " or owner/name on the Hugging Face hub."
            )
    if not VARIANT.fullmatch(flat["variant"]):
        yield (
            f"variant={shown(flat['variant'])} must be the middle of the names of"
            " weights, e.g. fp16 for model.fp16.safetensors, or empty."
        )
    if not RUN_NAME.fullmatch(flat["run.name"]):
        yield (
            f"run.name={shown(flat['run.name'])} must be a folder's name"
            " of letters, digits, '.', '_', '-', '+' and '=', at most 100, the first a"
            " letter or digit; run.dir says where the folder is."
        )
    if not _can_be_path(flat["run.dir"]):
        yield (
            f"run.dir={shown(flat['run.dir'])} must name a folder, without control"
            " characters; runs is usual."
        )
    sites = flat["train.lora.sites"]
    if not sites or not all(site.strip() for site in sites):
        yield (
            f"train.lora.sites={shown(sites)} must name layers, e.g. ('to_q', 'to_v'),"
            " or be 'all'."
        )
    address = flat["distributed.coordinator_address"]
    if address and not ADDRESS.fullmatch(address):
        yield (
            f"distributed.coordinator_address={shown(address)} must be host:port of"
            " process 0, e.g. 10.0.0.1:1234, or empty where the cluster knows."
        )
    yield from prompts.problems(flat["prompts"])
    yield from weights_and_biases.problems(flat["log.wandb"])


def _can_be_path(text: str) -> bool:
    return bool(text.strip()) and not any(ord(c) < 32 for c in text)


def _target(flat: dict[str, Any]) -> Iterator[str]:
    target = flat["reward.target"]
    if (
        len(target) != 2
        or not all(0 <= share <= 1 for share in target)
        or not math.isclose(sum(target), 1, abs_tol=1e-6)
    ):
        yield (
            f"reward.target={shown(target)} must be the wanted shares classified as"
            " female and as male, not negative, with sum 1, e.g. (0.5, 0.5)."
        )


def _together(flat: dict[str, Any]) -> Iterator[str]:
    """Rules between settings, each of which is right by itself."""
    per_device = flat["sample.batch_per_device"] * flat["sample.batches"]
    updates = flat["train.updates_per_epoch"]
    last_step = flat["sample.num_steps"] - flat["train.skip_last_steps"]
    if last_step < 1:
        yield (
            f"train.skip_last_steps={flat['train.skip_last_steps']} leaves none of"
            f" sample.num_steps={flat['sample.num_steps']} to train; skip fewer."
        )
    elif per_device % updates:
        yield (
            f"sample.batch_per_device={flat['sample.batch_per_device']} x"
            f" sample.batches={flat['sample.batches']} = {per_device} images per device"
            f" do not divide by train.updates_per_epoch={updates}; try"
            f" train.updates_per_epoch={_divisor(per_device, updates)}."
        )
    else:
        steps = steps_per_update(flat)
        work = per_device // updates * steps
        if work % flat["train.microbatch"]:
            yield (
                f"An update has {per_device // updates} images x {steps} steps = {work}"
                " pairs per device, which do not divide by"
                f" train.microbatch={flat['train.microbatch']}; try"
                f" train.microbatch={_divisor(work, flat['train.microbatch'])}."
            )
    needs_evaluation = (
        flat["reward.name"] == "shift" and flat["reward.target_class"] == "auto"
    )
    if needs_evaluation and not flat["eval.images"]:
        yield (
            "reward.target_class='auto' needs the evaluation before training, but"
            " eval.images=0; give eval.images, or the class: female or male."
        )
    processes, process = (
        flat[f"distributed.{name}"] for name in ("num_processes", "process_id")
    )
    if 0 < processes <= process:
        yield (
            f"distributed.process_id={process} must be below distributed.num_processes="
            f"{processes}: processes are numbered from 0."
        )
    if flat["sample.explicit_share"]:
        for text in flat["prompts"]:
            if not prompt_sets.explicit(text):
                yield (
                    f"sample.explicit_share={flat['sample.explicit_share']} needs an"
                    " explicit form of every prompt, but there is none of"
                    f" {shown(text)}: {prompt_sets.NO_FORM}; reword it, or give 0."
                )
    if 0 < flat["eval.images"] < len(flat["prompts"]):
        yield (
            f"eval.images={flat['eval.images']} must be at least one for each of the"
            f" {len(flat['prompts'])} prompts, or 0."
        )


def _on_devices(config: ConfigDict, num_devices: int) -> Iterator[str]:
    """Rules that depend on the number of devices."""
    sample = config.sample
    images = num_devices * sample.batch_per_device * sample.batches
    explicit = explicit_images(config, images)
    least = 2 * len(config.prompts)
    if images - explicit < least:
        beside = f" beside {explicit} of explicit ones" if explicit else ""
        batch = num_devices * sample.batch_per_device
        more = next(
            batches
            for batches in itertools.count(1)
            if batches * batch - explicit_images(config, batches * batch) >= least
        )
        yield (
            f"sample.batch_per_device={sample.batch_per_device} x sample.batches="
            f"{sample.batches} x {num_devices} devices = {images} images per epoch, but"
            f" {len(config.prompts)} prompts need {least}{beside}: a reward compares"
            f" the images of a prompt; try sample.batches={more}."
        )


def explicit_prompts(config: ConfigDict) -> tuple[prompt_sets.Prompt, ...]:
    """The prompts' explicit forms, if `sample.explicit_share` wants them."""
    if not config.sample.explicit_share:
        return ()
    return tuple(
        form
        for text in config.prompts
        for form in prompt_sets.explicit(text)
        if form.text not in config.prompts
    )


def explicit_images(config: ConfigDict, num_images: int) -> int:
    """How many of an epoch's images are of explicit prompts."""
    return round(config.sample.explicit_share * num_images)


def steps_per_update(flat: dict[str, Any]) -> int:
    """Denoising steps of each image that one update uses."""
    last_step = flat["sample.num_steps"] - flat["train.skip_last_steps"]
    return max(1, round(flat["train.timestep_fraction"] * last_step))


def _divisor(number: int, near: int) -> int:
    """The largest divisor of `number` that is at most `near`."""
    return next(d for d in range(min(near, number), 0, -1) if number % d == 0)
