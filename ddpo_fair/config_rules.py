"""The rules that settings must obey, checked together and before anything is loaded."""

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from ddpo_fair import attribute_rules, prompts, setting_rules
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError, shown

MOST_BESIDE = 0.9  # of the images, of explicit and preservation prompts
LEAST_PENALTY = 1e-6  # of train.base_kl_weight; float32's share of a loss of 10
FEWEST_OF_A_CELL = 8  # images of a prompt in an epoch, of a joint target
# What the rules between settings compute with.
JOINT = {
    "sample.batch_per_device",
    "sample.batches",
    "sample.num_steps",
    "sample.sde_window",
    "train.updates_per_epoch",
    "train.timestep_fraction",
    "train.skip_last_steps",
    "train.microbatch",
    "eval.images",
}

PRESERVE = "sample.preserve_prompts"
EXPLICIT_FORMS = "explicit"  # in it: for the explicit forms of all prompts
INSTALL_WANDB = 'pip install "ddpo_fair[wandb]"; or leave log.wandb empty.'


def validate(
    config: ConfigDict, problems: list[str], num_devices: int | None = None
) -> None:
    """Raises one UserError with name, value, rule and way out of every violation.

    `problems` were found earlier; `num_devices` is of all hosts, once they are known.
    """
    found = [*problems, *violations(config)]
    if not found and num_devices is not None:
        found = list(_on_devices(config, num_devices))
    if found:
        count = "" if len(found) == 1 else f"{len(found)} settings cannot be used. "
        raise UserError(count + " ".join(dict.fromkeys(found)))


def violations(config: ConfigDict) -> list[str]:
    """A sentence for every rule that the settings break."""
    given = configuration.flatten(config)
    defaults = configuration.flatten(configuration.defaults(config.attributes))
    types = dict(setting_rules.wrong_types(given, defaults))
    flat = {name: defaults[name] if name in types else given[name] for name in given}
    rules = types | dict(setting_rules.broken_rules(flat))
    return [
        *(f"{x}={shown(given[x])} must be {rule}." for x, rule in rules.items()),
        *prompts.problems(flat["prompts"]),
        *prompts.problems(flat[PRESERVE], PRESERVE),
        *_wandb(flat["log.wandb"]),
        *([] if types else attribute_rules.problems(config)),
        *([] if rules.keys() & JOINT else _together(flat)),
    ]


def _wandb(project: str) -> Iterator[str]:
    spec = importlib.util.find_spec("wandb") if project else None
    # A folder wandb/ in the way is a package without an origin.
    if project and (spec is None or spec.origin is None):
        yield (
            f"log.wandb={shown(project)} needs the package wandb, which is not"
            f" installed: {INSTALL_WANDB}"
        )


def _divisions(flat: dict[str, Any], said: Callable[[str], str]) -> Iterator[str]:
    """Rules on what must divide, images among updates and pairs among microbatches."""
    per_device = flat["sample.batch_per_device"] * flat["sample.batches"]
    updates, microbatch = flat["train.updates_per_epoch"], flat["train.microbatch"]
    steps = steps_per_update(flat)
    pairs = per_device // updates * steps
    last = flat["sample.num_steps"] - flat["train.skip_last_steps"]
    if last < 1:
        yield (
            f"{said('train.skip_last_steps')} leaves none of"
            f" {said('sample.num_steps')} to train; skip fewer."
        )
    elif (end := flat["sample.sde_window"][1]) > last:
        way_out = "end it earlier"
        if end <= flat["sample.num_steps"]:
            way_out = f"give train.skip_last_steps={flat['sample.num_steps'] - end}"
        yield (
            f"{said('sample.sde_window')} must end at most at {last}, which is"
            f" {said('sample.num_steps')} less {said('train.skip_last_steps')}: all"
            f" steps with noise are trained; {way_out}."
        )
    elif per_device % updates:
        yield (
            f"{said('sample.batch_per_device')} x {said('sample.batches')} ="
            f" {per_device} images per device do not divide by"
            f" {said('train.updates_per_epoch')}; try"
            f" train.updates_per_epoch={_divisor(per_device, updates)}."
        )
    elif pairs % microbatch:
        yield (
            f"An update has {per_device // updates} images x {steps} steps = {pairs}"
            f" pairs per device, which do not divide by {said('train.microbatch')}; try"
            f" train.microbatch={_divisor(pairs, microbatch)}."
        )


def _together(flat: dict[str, Any]) -> Iterator[str]:
    """Rules between settings, each of which is right by itself."""

    def said(name: str) -> str:
        return f"{name}={shown(flat[name])}"

    yield from _divisions(flat, said)
    if 0 < flat["distributed.num_processes"] <= flat["distributed.process_id"]:
        yield (
            f"{said('distributed.process_id')} must be below"
            f" {said('distributed.num_processes')}: processes are numbered from 0."
        )
    asking = ["sample.explicit_share"] * bool(flat["sample.explicit_share"])
    asking += [PRESERVE] * (EXPLICIT_FORMS in flat[PRESERVE])
    for setting, text in itertools.product(asking, flat["prompts"]):
        if not prompts.explicit(text):
            yield (
                f"{said(setting)} needs an explicit form of every"
                f" prompt, but there is none of {shown(text)}: {prompts.NO_FORM};"
                f" reword it, or give {'()' if setting == PRESERVE else 0}."
            )
    if flat["train.base_kl_weight"] and not flat["train.lora.rank"]:
        yield (
            f"{said('train.base_kl_weight')} compares with the model as it came, which"
            " is kept under LoRA only; give train.lora.rank, e.g. 16, or"
            f" train.base_kl_weight=0{f' and {PRESERVE}=()' * bool(flat[PRESERVE])}."
        )
    if 0 < flat["train.base_kl_weight"] < LEAST_PENALTY:
        yield (
            f"{said('train.base_kl_weight')} would hold nothing; give {LEAST_PENALTY}"
            " or more, or 0."
        )
    yield from _preservation(flat, said)
    if 0 < flat["eval.images"] < len(flat["prompts"]):
        yield (
            f"{said('eval.images')} must be at least one for each of the"
            f" {len(flat['prompts'])} prompts, or 0."
        )


def _preservation(flat: dict[str, Any], said: Callable[[str], str]) -> Iterator[str]:
    """Rules on the preservation prompts, if there are any."""
    if not flat[PRESERVE]:
        return
    if not flat["train.base_kl_weight"]:
        yield (
            f"{said(PRESERVE)} act through the KL to the base policy alone; give"
            f" train.base_kl_weight, e.g. 0.03, or {PRESERVE}=()."
        )
    trained = {_plain(text) for text in flat["prompts"]}
    for text in flat[PRESERVE]:
        if _plain(text) in trained:
            yield (
                f"{PRESERVE}: {shown(text)} is one of the prompts, which train it; keep"
                " it in one of the two."
            )
        if text != EXPLICIT_FORMS == _plain(text):
            yield (
                f"{PRESERVE}: {shown(text)} must be {EXPLICIT_FORMS!r}, which stands"
                " for the explicit forms of all prompts; or say what to draw."
            )
    if flat["sample.preserve_share"] + flat["sample.explicit_share"] > MOST_BESIDE:
        yield (
            f"{said('sample.preserve_share')} and {said('sample.explicit_share')} must"
            f" be at most {MOST_BESIDE} together; the rest is of the prompts."
        )


def _plain(text: str) -> str:
    """A text as CLIP reads it: without capitals, and with single spaces."""
    return " ".join(text.lower().split())


def _on_devices(config: ConfigDict, num_devices: int) -> Iterator[str]:
    """Rules that depend on the number of devices."""
    sample = config.sample
    images = num_devices * sample.batch_per_device * sample.batches
    explicit, preserved = images_beside(config, images)
    if sample.explicit_share and not explicit:
        yield (
            f"sample.explicit_share={sample.explicit_share} of {images} images per"
            f" epoch is none; give at least {1 / images:.2g}, or 0."
        )
    if preserved_prompts(config) and not preserved:
        yield (
            f"sample.preserve_share={sample.preserve_share} of {images} images per"
            f" epoch is none; give at least {1 / images:.2g}, or {PRESERVE}=()."
        )

    def own(images: int) -> int:
        return images - sum(images_beside(config, images))

    yield from _joint(config, own(images), num_devices)
    least = 2 * len(config.prompts)
    if own(images) < least:
        beside = f" beside {explicit} of explicit ones" if explicit else ""
        beside += f" beside {preserved} of preserve_prompts" if preserved else ""
        batch = num_devices * sample.batch_per_device
        more = next(x for x in itertools.count(1) if own(x * batch) >= least)
        yield (
            f"sample.batch_per_device={sample.batch_per_device} x sample.batches="
            f"{sample.batches} x {num_devices} devices = {images} images per epoch, but"
            f" {len(config.prompts)} prompts need {least}{beside}: a reward compares"
            f" the images of a prompt; try sample.batches={more}."
        )


def _joint(config: ConfigDict, images: int, num_devices: int) -> Iterator[str]:
    """Whether a joint target has enough images of each of its cells."""
    sizes = [len(one.classes) for one in config.attributes.values() if one.weight]
    cells, num_prompts = math.prod(sizes), len(config.prompts)
    needed = FEWEST_OF_A_CELL * cells * num_prompts
    if config.reward.combine == "joint" and images < needed:
        batches = -(-needed // (num_devices * config.sample.batch_per_device))
        _, most = setting_rules.RANGES["sample.batches"]
        more = f"sample.batches={batches}, or " * (batches <= most)
        yield (
            f"reward.combine='joint' has {shown(cells)} cells for each of {num_prompts}"
            f" prompts, of which {images} images per epoch show too little: it needs"
            f" {FEWEST_OF_A_CELL} for each; try {more}reward.combine='marginal'."
        )


def explicit_prompts(config: ConfigDict) -> tuple[prompts.Prompt, ...]:
    """The prompts' explicit forms, if `sample.explicit_share` wants them."""
    return _explicit_forms(config) if config.sample.explicit_share else ()


def _explicit_forms(config: ConfigDict) -> tuple[prompts.Prompt, ...]:
    """Of all prompts; those that are prompts themselves are left out."""
    forms = (form for text in config.prompts for form in prompts.explicit(text))
    return tuple(form for form in forms if form.text not in config.prompts)


def images_beside(config: ConfigDict, num_images: int) -> tuple[int, int]:
    """How many of an epoch's images are of explicit and of preservation prompts."""
    share = config.sample.preserve_share if preserved_prompts(config) else 0.0
    return round(config.sample.explicit_share * num_images), round(share * num_images)


def preserved_prompts(config: ConfigDict) -> list[str]:
    """The preservation prompts, with the explicit forms that they may stand for."""
    given = config.sample.preserve_prompts
    forms = _explicit_forms(config) if EXPLICIT_FORMS in given else ()
    texts = [*(x for x in given if x != EXPLICIT_FORMS), *(x.text for x in forms)]
    return list(dict.fromkeys(texts))


def steps_per_update(flat: dict[str, Any]) -> int:
    """Denoising steps of each image that one update uses."""
    return max(1, round(flat["train.timestep_fraction"] * len(trained_steps(flat))))


def trained_steps(flat: dict[str, Any]) -> range:
    """Numbers of the denoising steps that are trained: the window's, if it has any."""
    window = flat["sample.sde_window"]
    last = flat["sample.num_steps"] - flat["train.skip_last_steps"]
    return range(*window) if any(window) else range(last)


def _divisor(number: int, near: int) -> int:
    """The largest divisor of `number` that is at most `near`."""
    return next(d for d in range(min(near, number), 0, -1) if number % d == 0)
