"""The rules that settings must obey, checked together and before anything is loaded."""

import importlib.util
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import prompts
from ddpo_fair.errors import UserError, shown

# Names of learning.losses.OBJECTIVES, which would need JAX to be imported.
OBJECTIVES = ("ppo", "ppo_rollback", "tr_ppo", "tr_ppo_rollback", "truly_ppo")
# Likewise models.unet.POLICIES, of jax.checkpoint_policies.
POLICIES = (
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)
LARGEST = 2**31 - 1  # what a key is folded with

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "reward.name": ("shift", "balance", "balance_loo"),
    "reward.target_class": ("auto", "female", "male"),
    "advantage.name": ("batch", "per_prompt", "fixed"),
    "train.objective": OBJECTIVES,
    "train.on_divergence": ("stop", "restore"),
    "train.remat": ("none", "full", *POLICIES),
}


class Range(NamedTuple):
    """Allowed numbers: `low <= x <= high`, or `low < x` if the bound is left out."""

    low: float
    high: float = math.inf
    above: bool = False  # whether `low` itself is left out

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:.10g}"


RANGES = {
    "seed": Range(0, LARGEST),
    "epochs": Range(1, 10**6),
    "confidence_threshold": Range(0, 0.999),
    "reward.none_penalty": Range(0, 10),
    "advantage.scale": Range(0, above=True),
    "advantage.clip": Range(0, above=True),
    "advantage.buffer_size": Range(1, 10**7),
    "advantage.min_count": Range(1, 10**7),
    "sample.num_steps": Range(1, 1000),
    "sample.guidance_scale": Range(0, 100),
    "sample.eta": Range(0, 1, above=True),
    "sample.batch_per_device": Range(1, 10**6),
    "sample.batches": Range(1, 10**6),
    "sample.explicit_share": Range(0, 0.9),
    "train.clip_range": Range(0, 1, above=True),
    "train.rollback": Range(0, 100),
    "train.trust_region": Range(0, above=True),
    "train.kl_penalty": Range(0),
    "train.updates_per_epoch": Range(1, 10**6),
    "train.inner_epochs": Range(1, 10**4),
    "train.timestep_fraction": Range(0, 1, above=True),
    "train.skip_last_steps": Range(0, 999),
    "train.microbatch": Range(1, 10**6),
    "train.ratio_tolerance": Range(0, above=True),
    "train.max_skipped_updates": Range(0, 10**6),
    "train.max_kl": Range(0),
    "train.max_restores": Range(1, 1000),
    "train.lora.rank": Range(0, 4096),
    "train.lora.scale": Range(0, 1000, above=True),
    "train.learning_rate": Range(0, 10, above=True),
    "train.final_learning_rate": Range(0, 1),
    "train.warmup_updates": Range(0, 10**6),
    "train.adam_beta1": Range(0, 0.999999),
    "train.adam_beta2": Range(0, 0.999999),
    "train.adam_epsilon": Range(0, 1, above=True),
    "train.weight_decay": Range(0, 1),
    "train.max_grad_norm": Range(0, above=True),
    "eval.images": Range(0, 10**6),
    "eval.every_epochs": Range(1, 10**6),
    "eval.seed": Range(0, LARGEST),
    "log.images": Range(1, 1024),
    "checkpoint.every_epochs": Range(1, 10**6),
    "checkpoint.keep": Range(2, 10**4),
    "distributed.cpu_devices": Range(1, 256),
    "distributed.num_processes": Range(0, 10**5),
    "distributed.process_id": Range(-1, 10**5),
    "distributed.timeout_seconds": Range(5, 10**5),
}

WAYS_OUT = {
    "sample.eta": "a chain without noise has no likelihood to train; 1 is usual",
    "checkpoint.keep": "a second one serves where the newest is damaged",
    "confidence_threshold": "the paper has 0.7",
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

VARIANT = re.compile(r"\w{0,40}", re.ASCII)
ADDRESS = re.compile(r"[\w.:\[\]-]{1,255}:\d{1,5}", re.ASCII)
WANDB_PROJECT = re.compile(r"([\w-]{1,64}/)?[\w .-]{1,128}|", re.ASCII)
RUN_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]{0,99}", re.ASCII)
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
    for name, allowed in RANGES.items():
        value = flat[name]
        inside = allowed.low <= value <= allowed.high and value < math.inf
        if not inside or (allowed.above and value == allowed.low):
            hint = WAYS_OUT.get(name)
            rule = f"{allowed}; {hint}" if hint else f"{allowed}"
            wrong[name] = f"{name}={shown(value)} must be {rule}."
    return wrong


def _choices(flat: dict[str, Any]) -> Iterator[str]:
    for name, allowed in CHOICES.items():
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
    sites = flat["train.lora.target_modules"]
    if not sites or not all(site.strip() for site in sites):
        yield (
            f"train.lora.target_modules={shown(sites)} must name layers, e.g."
            " ('to_q', 'to_v'), or be 'all'."
        )
    address = flat["distributed.coordinator_address"]
    if address and not ADDRESS.fullmatch(address):
        yield (
            f"distributed.coordinator_address={shown(address)} must be host:port of"
            " process 0, e.g. 10.0.0.1:1234, or empty where the cluster knows."
        )
    yield from prompts.problems(flat["prompts"])
    yield from _wandb(flat["log.wandb"])


def _wandb(project: str) -> Iterator[str]:
    """A sentence for everything that is wrong with `config.log.wandb`."""
    if not WANDB_PROJECT.fullmatch(project):
        yield (
            f"log.wandb={shown(project)} must be a project, or team/project, of"
            " letters, digits, ' ', '.', '_' and '-', or empty."
        )
    spec = importlib.util.find_spec("wandb") if project else None
    # A folder wandb/ in the way is a package without an origin.
    if project and (spec is None or spec.origin is None):
        yield (
            f"log.wandb={shown(project)} needs the package wandb, which is not"
            f" installed: {INSTALL_WANDB}"
        )


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
            if not prompts.explicit(text):
                yield (
                    f"sample.explicit_share={flat['sample.explicit_share']} needs an"
                    " explicit form of every prompt, but there is none of"
                    f" {shown(text)}: {prompts.NO_FORM}; reword it, or give 0."
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
