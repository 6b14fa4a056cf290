"""What a run is made of: loaded, placed on the devices, compiled when first called."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_rules, parallel, prompts, rng
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import learner, losses, old_log_probs
from ddpo_fair.models import lora, sources

ALL_SITES = ("all",)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same from the first epoch to the last."""

    config: ConfigDict
    num_images: int  # of an epoch, on all devices
    image_size: int  # pixels
    sample: Callable[..., sampler.Trajectory]
    decode: Callable[..., jax.Array]
    classify: Callable[..., jax.Array]
    update: Callable[..., tuple[learner.TrainState, dict[str, jax.Array]]]
    recompute: Callable[..., sampler.Trajectory] | None  # if the config wants it
    select: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    unet_params: Callable[[Any], Any]  # of the trained parameters
    image_keys: Callable[..., jax.Array]  # (purpose, epoch, first, per_device)
    base: Any  # the UNet's weights under LoRA; {} in full fine-tuning
    vae_params: Any
    classifier_params: Any
    explicit: tuple[prompts.Prompt, ...]  # rewarded for what they ask for; or ()
    text: np.ndarray  # float32 [P + E, L, D], of each prompt, then of each explicit one
    null: jax.Array  # [L, D], of the empty prompt


def build(config: ConfigDict) -> tuple[Run, learner.TrainState]:
    """The run of a config, and its state before any training.

    Raises:
        UserError: for weights that are missing, do not fit, or cannot be trained.
    """
    remat, dtype = remat_of(config), jnp.dtype(config.dtype)
    model_folder = sources.model_folder(config.model, config.variant)
    judge = classifier.load(sources.classifier_folder(config.classifier), dtype)
    model = stable_diffusion.load(model_folder, dtype, remat, config.variant or None)
    chain = ddim.schedule(model.scheduler, config.sample.num_steps, config.sample.eta)
    ddim.check_policy(chain)
    settings = learner_settings(config, model.latent_shape)
    updates = config.epochs * config.train.inner_epochs * settings.updates_per_epoch
    transform = learner.optimizer(config.train, updates)
    state, base = _initial_state(config, model, transform)
    explicit = config_rules.explicit_prompts(config)
    texts = ["", *config.prompts, *(prompt.text for prompt in explicit)]
    text = stable_diffusion.encode_prompts(model, texts)
    vae_params = parallel.replicate(model.params["vae"])
    light = dataclasses.replace(model, params={})  # what is compiled needs no weights
    num_devices = parallel.num_devices()
    per_device = config.sample.batch_per_device * config.sample.batches
    run = Run(
        config=config,
        num_images=num_devices * per_device,
        image_size=model.image_size,
        sample=sampler.make_sampler(light, chain, config.sample.guidance_scale),
        decode=sampler.make_decoder(light),
        classify=classifier.make_classify(dataclasses.replace(judge, params=None)),
        update=learner.make_update(
            light,
            chain,
            settings,
            transform,
            jax.tree.map(lambda x: x.sharding, state)
            if config.train.shard_optimizer
            else None,
        ),
        recompute=old_log_probs.make_recompute(light, chain, settings)
        if settings.recompute
        else None,
        select=jax.jit(
            lambda key: learner.selection(key, settings, num_devices, per_device)
        ),
        unet_params=_unet_params(base, settings),
        image_keys=_image_keys(config),
        base=base,
        vae_params=vae_params,
        classifier_params=parallel.replicate(judge.params),
        explicit=explicit,
        text=text[1:],
        null=parallel.replicate(text[0]),
    )
    return run, state


def remat_of(config: ConfigDict) -> bool | str:
    """`config.train.remat` as `unet.UNet` takes it."""
    return {"none": False, "full": True}.get(config.train.remat, config.train.remat)


def learner_settings(
    config: ConfigDict, latent_shape: tuple[int, int, int]
) -> learner.Settings:
    """The learner's settings of a config."""
    train = config.train
    return learner.Settings(
        objective=train.objective,
        surrogate=losses.Settings(
            clip_range=train.clip_range,
            rollback=train.rollback,
            trust_region=train.trust_region,
            kl_penalty=train.kl_penalty,
            num_dims=int(np.prod(latent_shape)),
        ),
        guidance_scale=config.sample.guidance_scale if train.guidance else 1.0,
        updates_per_epoch=train.updates_per_epoch,
        steps_per_update=config_rules.steps_per_update(configuration.flatten(config)),
        last_step=config.sample.num_steps - train.skip_last_steps,
        microbatch=train.microbatch,
        lora_scale=train.lora.scale if train.lora.rank else 0.0,
        recompute=train.recompute_log_probs,
    )


def _initial_state(
    config: ConfigDict, model: stable_diffusion.Model, transform: Any
) -> tuple[learner.TrainState, Any]:
    """The state before training, and the weights under LoRA ({} without)."""
    if config.train.lora.rank:
        base = parallel.replicate(model.params["unet"])
        shapes = jax.eval_shape(lambda: base)
        start = jax.jit(lambda key: adapters(key, config, shapes))
        params = start(rng.key(config.seed, "lora"))
    else:
        base = {}
        # A copy, for the state is donated and must not share the loaded arrays.
        params = jax.tree.map(np.array, model.params["unet"])
    optimizer = transform.init(params)
    if config.train.shard_optimizer:
        optimizer = parallel.place(optimizer, parallel.divided(optimizer))
    else:
        optimizer = parallel.replicate(optimizer)
    params, count = parallel.replicate((params, jnp.int32(0)))
    return learner.TrainState(params, optimizer, count), base


def adapters(key: jax.Array, config: ConfigDict, unet_shapes: Any) -> lora.Adapters:
    """New adapters where `config.train.lora` wants them."""
    settings = config.train.lora
    sites = (
        lora.EVERYWHERE
        if settings.target_modules == ALL_SITES
        else settings.target_modules
    )
    return lora.init(key, unet_shapes, settings.rank, sites)


def state_shapes(config: ConfigDict, unet_shapes: Any) -> learner.TrainState:
    """Shapes of the state that a run of `config` trains; computes nothing."""
    params = unet_shapes
    if config.train.lora.rank:
        key = jax.random.key(0)
        params = jax.eval_shape(lambda: adapters(key, config, unet_shapes))
    transform = learner.optimizer(config.train, 1)  # the number changes no shape
    optimizer = jax.eval_shape(transform.init, params)
    return learner.TrainState(params, optimizer, jax.ShapeDtypeStruct((), jnp.int32))


def _unet_params(base: Any, settings: learner.Settings) -> Callable[[Any], Any]:
    if settings.lora_scale == 0.0:
        return lambda params: params
    merge = jax.jit(lambda base, params: learner.merged(base, params, settings))
    return lambda params: merge(base, params)


def _image_keys(config: ConfigDict) -> Callable[..., jax.Array]:
    """Keys [D, n] of images `first`, `first + 1`, ... of a purpose and an epoch.

    Image i's key is `rng.key(seed, purpose, epoch, i)`; grids, whose pictures are the
    same in every run, take eval.seed and no epoch.
    """

    def named(purpose: str) -> Callable[..., jax.Array]:
        def one(epoch: jax.Array, index: jax.Array) -> jax.Array:
            if purpose == "grid":
                return rng.key(config.eval.seed, "evaluation", index)
            if purpose == "evaluation":
                return rng.key(config.seed, "evaluation", epoch, index)
            return rng.key(config.seed, epoch, purpose, index)

        many = jax.vmap(one, in_axes=(None, 0))
        return parallel.pmap(many, in_axes=(None, 0))

    functions = {name: named(name) for name in ("sample", "evaluation", "grid")}

    def keys(purpose: str, epoch: int, indices: np.ndarray) -> jax.Array:
        placed = parallel.split(indices.reshape(-1).astype(np.int32))
        return functions[purpose](epoch, placed)

    return keys
