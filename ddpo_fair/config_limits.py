"""What each setting may be, whatever the others are."""

import math
from typing import NamedTuple

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
    "train.on_collapse": ("stop", "roll_back"),
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
    "confidence": Range(0, 0.999),
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
    "train.max_roll_backs": Range(1, 1000),
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
    "confidence": "the paper has 0.7",
}
