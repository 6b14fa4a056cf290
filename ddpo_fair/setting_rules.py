"""What each setting must be by itself: its type, its choices, its range, its form."""

import re
from collections.abc import Iterator
from typing import Any

from ddpo_fair import config as configuration
from ddpo_fair.errors import shown

OBJECTIVES = ("ppo", "ppo_rollback", "tr_ppo", "tr_ppo_rollback", "truly_ppo")  # losses
POLICIES = (  # of jax.checkpoint_policies, those that need no argument
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)
LARGEST = 2**31 - 1  # what a key is folded with
LARGEST_SIZE = 10**5  # pixels

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "reward.name": ("shift", "balance", "balance_loo"),
    "reward.combine": ("marginal", "joint"),
    "attributes.*.reward": ("", "shift", "balance", "balance_loo"),
    "advantage.name": ("batch", "group", "per_prompt", "fixed"),
    "sample.sde": ("flow_grpo", "dance_grpo"),
    "train.objective": OBJECTIVES,
    "train.on_divergence": ("stop", "restore"),
    "train.remat": ("none", "full", *POLICIES),
}

# Lowest and highest.
RANGES = {
    "seed": (0, LARGEST),
    "epochs": (1, 10**6),
    "attributes.*.confidence_threshold": (0, 0.999),
    "attributes.*.none_penalty": (0, 10),
    "attributes.*.weight": (0, 100),
    "advantage.scale": (1e-4, 1e4),
    "advantage.clip": (1e-3, 1e4),
    "advantage.buffer_size": (1, 10**7),
    "advantage.min_count": (1, 10**7),
    "reward.views": (1, 64),
    "sample.num_steps": (1, 1000),
    "sample.guidance_scale": (0, 100),
    "sample.eta": (0.01, 1),
    "sample.batch_per_device": (1, 10**6),
    "sample.batches": (1, 10**6),
    "sample.explicit_share": (0, 0.9),
    "sample.preserve_share": (0, 0.9),
    "sample.preserve_weight": (1e-3, 1e4),
    "train.clip_range": (1e-6, 1),
    "train.rollback": (0, 100),
    "train.trust_region": (1e-6, 1000),
    "train.kl_penalty": (0, 1e4),
    "train.base_kl_weight": (0, 1e4),
    "train.updates_per_epoch": (1, 10**6),
    "train.inner_epochs": (1, 10**4),
    "train.timestep_fraction": (0.001, 1),
    "train.skip_last_steps": (0, 999),
    "train.microbatch": (1, 10**6),
    "train.ratio_tolerance": (1e-6, 1000),
    "train.max_skipped_updates": (0, 10**6),
    "train.max_kl": (0, 1e6),
    "train.max_restores": (1, 1000),
    "train.lora.rank": (0, 4096),
    "train.lora.scale": (1e-4, 1000),
    "train.learning_rate": (1e-8, 1),
    "train.final_learning_rate": (0, 1),
    "train.warmup_updates": (0, 10**6),
    "train.adam_beta1": (0, 0.999999),
    "train.adam_beta2": (0, 0.999999),
    "train.adam_epsilon": (1e-15, 1),
    "train.weight_decay": (0, 1),
    "train.max_grad_norm": (1e-6, 1e6),
    "eval.images": (0, 10**6),
    "eval.every_epochs": (1, 10**6),
    "eval.seed": (0, LARGEST),
    "log.images": (1, 1024),
    "checkpoint.every_epochs": (1, 10**6),
    "checkpoint.keep": (2, 10**4),
    "distributed.cpu_devices": (1, 64),
    "distributed.num_processes": (0, 10**5),
    "distributed.process_id": (-1, 10**5),
    "distributed.timeout_seconds": (5, 10**5),
}
# What else to say of some.
HINTS = {
    "attributes.*.confidence_threshold": "; the paper has 0.7",
    "sample.eta": "; without noise a step has no likelihood to train; 1 is usual",
    "train.clip_range": "; DDPO has 0.0001, float32 resolves 1e-7",
    "train.learning_rate": "; 0.0003 is usual for LoRA",
    "checkpoint.keep": "; a second one serves where the newest is damaged",
    "distributed.cpu_devices": "; a core each is enough",
}

# What texts must be, and so in words.
PORT = r"0*([1-9]\d{0,3}|[1-5]\d{4}|6([0-4]\d{3}|5([0-4]\d\d|5([0-2]\d|3[0-5]))))"
PATH = r"(?!\s*$)[^\x00-\x1f]+"
A_MODEL = (PATH, "'embedded', a folder, or owner/name on the Hugging Face hub")
TEXTS = {
    "model": A_MODEL,
    "attributes.*.classifier": A_MODEL,
    "base_lora": (r"[^\x00-\x1f]*", "a *.safetensors file, owner/name, or empty"),
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


def wrong_types(
    flat: dict[str, Any], defaults: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Names of settings of a wrong type, and what they must be."""
    for name, default in defaults.items():
        value, kind = flat[name], type(default)
        inside = type((*default, "")[0]) if kind is tuple else None
        if type(value) is not kind or (
            inside and any(type(item) is not inside for item in value)
        ):
            items = f" of {inside.__name__}" if inside else ""
            yield name, f"of type {kind.__name__}{items}, like {shown(default)}"


def broken_rules(flat: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of settings that break a rule of their own, and what they must be."""
    for name, value in flat.items():
        kind = configuration.ATTRIBUTE.sub(r"attributes.*.\2", name)
        pattern, text_rule = TEXTS.get(kind, (".*", ""))
        if kind in RANGES:
            low, high = RANGES[kind]
            if not low <= value <= high:
                rule = f"at least {low:g} and at most {high:.10g}"
                yield name, rule + HINTS.get(kind, "")
        elif kind in CHOICES and value not in CHOICES[kind]:
            yield name, f"one of {', '.join(filter(None, CHOICES[kind]))}"
        elif kind in TEXTS and not re.fullmatch(pattern, value):
            yield name, text_rule
    sizes = flat["sample.time_ids"]
    if len(sizes) != 6 or not all(0 <= size <= LARGEST_SIZE for size in sizes):
        yield "sample.time_ids", f"six whole numbers from 0 to {LARGEST_SIZE}"
    window = flat["sample.sde_window"]
    _, most = RANGES["sample.num_steps"]
    if len(window) != 2 or not (0 <= window[0] < window[1] <= most or not any(window)):
        yield (
            "sample.sde_window",
            "the first step with noise, from 0, and the one behind the last, e.g. (0,"
            " 4), or (0, 0) for all",
        )
    modules = flat["train.lora.target_modules"]
    if not modules or not all(re.fullmatch(r"[\w.]+", module) for module in modules):
        yield (
            "train.lora.target_modules",
            "names of layers, e.g. ('to_q', 'to_v'), or 'all'",
        )
