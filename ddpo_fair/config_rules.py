"""The rules that settings must obey, checked together and before anything is loaded."""

import importlib.util
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ddpo_fair import attribute_rules, prompts
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError, shown

OBJECTIVES = ("ppo", "ppo_rollback", "tr_ppo", "tr_ppo_rollback", "truly_ppo")  # losses
POLICIES = (  # of jax.checkpoint_policies, those that need no argument
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)
FEWEST_OF_A_CELL = 8  # images of a prompt in an epoch, of a joint target
LARGEST = 2**31 - 1  # what a key is folded with

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "reward.name": ("shift", "balance", "balance_loo"),
    "reward.combine": ("marginal", "joint"),
    "attributes.*.reward": ("", "shift", "balance", "balance_loo"),
    "advantage.name": ("batch", "per_prompt", "fixed"),
    "train.objective": OBJECTIVES,
    "train.on_divergence": ("stop", "restore"),
    "train.remat": ("none", "full", *POLICIES),
}


class Range(NamedTuple):
    """Allowed numbers: `low <= x <= high`."""

    low: float
    high: float
    hint: str = ""

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"at least {self.low:g} and at most {self.high:.10g}{self.hint}"


RANGES = {
    "seed": Range(0, LARGEST),
    "epochs": Range(1, 10**6),
    "attributes.*.confidence_threshold": Range(0, 0.999, "; the paper has 0.7"),
    "attributes.*.none_penalty": Range(0, 10),
    "attributes.*.weight": Range(0, 100),
    "advantage.scale": Range(1e-4, 1e4),
    "advantage.clip": Range(1e-3, 1e4),
    "advantage.buffer_size": Range(1, 10**7),
    "advantage.min_count": Range(1, 10**7),
    "sample.num_steps": Range(1, 1000),
    "sample.guidance_scale": Range(0, 100),
    "sample.eta": Range(
        0.01, 1, "; without noise a step has no likelihood to train; 1 is usual"
    ),
    "sample.batch_per_device": Range(1, 10**6),
    "sample.batches": Range(1, 10**6),
    "sample.explicit_share": Range(0, 0.9),
    "train.clip_range": Range(1e-6, 1, "; DDPO has 0.0001, float32 resolves 1e-7"),
    "train.rollback": Range(0, 100),
    "train.trust_region": Range(1e-6, 1000),
    "train.kl_penalty": Range(0, 1e4),
    "train.updates_per_epoch": Range(1, 10**6),
    "train.inner_epochs": Range(1, 10**4),
    "train.timestep_fraction": Range(0.001, 1),
    "train.skip_last_steps": Range(0, 999),
    "train.microbatch": Range(1, 10**6),
    "train.ratio_tolerance": Range(1e-6, 1000),
    "train.max_skipped_updates": Range(0, 10**6),
    "train.max_kl": Range(0, 1e6),
    "train.max_restores": Range(1, 1000),
    "train.lora.rank": Range(0, 4096),
    "train.lora.scale": Range(1e-4, 1000),
    "train.learning_rate": Range(1e-8, 1, "; 0.0003 is usual for LoRA"),
    "train.final_learning_rate": Range(0, 1),
    "train.warmup_updates": Range(0, 10**6),
    "train.adam_beta1": Range(0, 0.999999),
    "train.adam_beta2": Range(0, 0.999999),
    "train.adam_epsilon": Range(1e-15, 1),
    "train.weight_decay": Range(0, 1),
    "train.max_grad_norm": Range(1e-6, 1e6),
    "eval.images": Range(0, 10**6),
    "eval.every_epochs": Range(1, 10**6),
    "eval.seed": Range(0, LARGEST),
    "log.images": Range(1, 1024),
    "checkpoint.every_epochs": Range(1, 10**6),
    "checkpoint.keep": Range(
        2, 10**4, "; a second one serves where the newest is damaged"
    ),
    "distributed.cpu_devices": Range(1, 64, "; a core each is enough"),
    "distributed.num_processes": Range(0, 10**5),
    "distributed.process_id": Range(-1, 10**5),
    "distributed.timeout_seconds": Range(5, 10**5),
}

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

# What texts must be, and so in words.
PORT = r"0*([1-9]\d{0,3}|[1-5]\d{4}|6([0-4]\d{3}|5([0-4]\d\d|5([0-2]\d|3[0-5]))))"
PATH = r"(?!\s*$)[^\x00-\x1f]+"
A_MODEL = (PATH, "'embedded', a folder, or owner/name on the Hugging Face hub")
TEXTS = {
    "model": A_MODEL,
    "attributes.*.classifier": A_MODEL,
    "targets": (r"[^\x00-\x1f]*", "a JSON file's path, or empty"),
    "variant": (
        r"[A-Za-z0-9_]{0,40}",
        "the middle of the names of weights, e.g. fp16 for model.fp16.safetensors, or"
        " empty",
    ),
    "run.name": (
        r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}",
        "a folder's name of letters, digits, '.', '_', '-', '+' and '=', at most 100,"
        " the first a letter or digit; run.dir says where the folder is",
    ),
    "run.dir": (PATH, "a folder's path without control characters, e.g. runs"),
    "distributed.coordinator_address": (
        rf"([A-Za-z0-9_.:\[\]-]{{1,255}}:{PORT})?",
        "host:port of process 0, e.g. 10.0.0.1:1234, with a port of at most 65535, or"
        " empty where the cluster knows",
    ),
    "log.wandb": (
        r"(([A-Za-z0-9_-]{1,64}/)?[A-Za-z0-9_ .-]{1,128})?",
        "a project, or team/project, of letters, digits, ' ', '.', '_' and '-', or"
        " empty",
    ),
}
INSTALL_WANDB = 'pip install "ddpo_fair[wandb]"; or leave log.wandb empty.'


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
    given = configuration.flatten(config)
    defaults = configuration.flatten(configuration.defaults(config.attributes))
    types = dict(_types(given, defaults))
    flat = {name: defaults[name] if name in types else given[name] for name in given}
    rules = types | dict(_rules(flat))
    return [
        *(f"{x}={shown(given[x])} must be {rule}." for x, rule in rules.items()),
        *prompts.problems(flat["prompts"]),
        *_wandb(flat["log.wandb"]),
        *([] if types else attribute_rules.problems(config)),
        *([] if rules.keys() & JOINT else _together(flat)),
    ]


def _types(flat: dict[str, Any], defaults: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of settings of a wrong type, and what they must be."""
    for name, default in defaults.items():
        value, kind = flat[name], type(default)
        inside = type(default[0]) if kind is tuple else None
        if type(value) is not kind or (
            inside and any(type(item) is not inside for item in value)
        ):
            items = f" of {inside.__name__}" if inside else ""
            yield name, f"of type {kind.__name__}{items}, like {shown(default)}"


def _rules(flat: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of settings that break a rule of their own, and what they must be."""
    for name, value in flat.items():
        kind = configuration.ATTRIBUTE.sub(r"attributes.*.\2", name)
        pattern, text_rule = TEXTS.get(kind, (".*", ""))
        if kind in RANGES and value not in RANGES[kind]:
            yield name, str(RANGES[kind])
        elif kind in CHOICES and value not in CHOICES[kind]:
            yield name, f"one of {', '.join(filter(None, CHOICES[kind]))}"
        elif kind in TEXTS and not re.fullmatch(pattern, value):
            yield name, text_rule
    modules = flat["train.lora.target_modules"]
    if not modules or not all(re.fullmatch(r"[\w.]+", module) for module in modules):
        yield (
            "train.lora.target_modules",
            "names of layers, e.g. ('to_q', 'to_v'), or 'all'",
        )


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
    if flat["train.skip_last_steps"] >= flat["sample.num_steps"]:
        yield (
            f"{said('train.skip_last_steps')} leaves none of"
            f" {said('sample.num_steps')} to train; skip fewer."
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
    for text in flat["prompts"] if flat["sample.explicit_share"] else ():
        if not prompts.explicit(text):
            yield (
                f"{said('sample.explicit_share')} needs an explicit form of every"
                f" prompt, but there is none of {shown(text)}: {prompts.NO_FORM};"
                " reword it, or give 0."
            )
    if 0 < flat["eval.images"] < len(flat["prompts"]):
        yield (
            f"{said('eval.images')} must be at least one for each of the"
            f" {len(flat['prompts'])} prompts, or 0."
        )


def _on_devices(config: ConfigDict, num_devices: int) -> Iterator[str]:
    """Rules that depend on the number of devices."""
    sample = config.sample
    images = num_devices * sample.batch_per_device * sample.batches
    explicit = explicit_images(config, images)
    if sample.explicit_share and not explicit:
        yield (
            f"sample.explicit_share={sample.explicit_share} of {images} images per"
            f" epoch is none; give at least {1 / images:.2g}, or 0."
        )
    yield from _joint(config, images - explicit, num_devices)
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


def _joint(config: ConfigDict, images: int, num_devices: int) -> Iterator[str]:
    """Whether a joint target has enough images of each of its cells."""
    sizes = [len(one.classes) for one in config.attributes.values() if one.weight]
    cells, num_prompts = math.prod(sizes), len(config.prompts)
    needed = FEWEST_OF_A_CELL * cells * num_prompts
    if config.reward.combine == "joint" and images < needed:
        batches = -(-needed // (num_devices * config.sample.batch_per_device))
        most = RANGES["sample.batches"].high
        more = f"sample.batches={batches}, or " * (batches <= most)
        yield (
            f"reward.combine='joint' has {shown(cells)} cells for each of {num_prompts}"
            f" prompts, of which {images} images per epoch show too little: it needs"
            f" {FEWEST_OF_A_CELL} for each; try {more}reward.combine='marginal'."
        )


def explicit_prompts(config: ConfigDict) -> tuple[prompts.Prompt, ...]:
    """The prompts' explicit forms, if `sample.explicit_share` wants them."""
    if not config.sample.explicit_share:
        return ()
    return tuple(
        form
        for text in config.prompts
        for form in prompts.explicit(text)
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
