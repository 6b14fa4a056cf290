"""What a run is made of: loaded, and placed on the devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_rules, parallel, prompts, rng
from ddpo_fair.classifiers import classifier
from ddpo_fair.classifiers.classifier import Classifier
from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import learner
from ddpo_fair.learning.learner import Learner, TrainState
from ddpo_fair.models import lora, sources

ALL_MODULES = ("all",)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same from the first epoch to the last.

    Attributes:
        config: all settings.
        policy: the model as it samples.
        learner: what the updates are compiled for.
        classifier: without its weights.
        base: the UNet's weights under LoRA; {} where all weights are trained.
        vae_params: of the autoencoder.
        classifier_params: of the classifier.
        explicit: prompts that are rewarded for what they ask for; or ().
        text: float32 [P + E, L, C], embeddings of each prompt, then of each explicit
            one.
        uncond_embedding: float32 [L, C], of the empty prompt.
    """

    config: ConfigDict
    policy: sampler.Policy
    learner: Learner
    classifier: Classifier
    base: Any
    vae_params: Any
    classifier_params: Any
    explicit: tuple[prompts.Prompt, ...]
    text: np.ndarray
    uncond_embedding: jax.Array

    @property
    def images_per_device(self) -> int:
        """Of an epoch, n."""
        return self.config.sample.batch_per_device * self.config.sample.batches

    @property
    def num_images(self) -> int:
        """Of an epoch, on all devices, N."""
        return parallel.num_devices() * self.images_per_device


def build(config: ConfigDict) -> tuple[Run, TrainState]:
    """The run of a config, and its state before any training.

    Raises:
        UserError: for weights that are missing, do not fit, or cannot be trained.
    """
    dtype = jnp.dtype(config.dtype)
    model_folder = sources.model_folder(config.model, config.variant)
    loaded = classifier.load(sources.classifier_folder(config.classifier), dtype)
    model = stable_diffusion.load(
        model_folder, dtype, remat_of(config), config.variant or None
    )
    policy = make_policy(config, dataclasses.replace(model, params={}))
    optimizer = make_optimizer(config)
    state, base = _initial_state(config, model, optimizer)
    explicit = config_rules.explicit_prompts(config)
    texts = ["", *config.prompts, *(prompt.text for prompt in explicit)]
    text = stable_diffusion.encode_prompts(model, texts)
    run = Run(
        config=config,
        policy=policy,
        learner=make_learner(config, policy, optimizer, state),
        classifier=dataclasses.replace(loaded, params=None),
        base=base,
        vae_params=parallel.replicate(model.params["vae"]),
        classifier_params=parallel.replicate(loaded.params),
        explicit=explicit,
        text=text[1:],
        uncond_embedding=parallel.replicate(text[0]),
    )
    return run, state


def make_policy(config: ConfigDict, model: stable_diffusion.Model) -> sampler.Policy:
    """The policy of a config.

    Args:
        config: all settings.
        model: without its weights, which compiled programs would keep alive.

    Raises:
        UserError: for a schedule that the model does not have, or without noise.
    """
    schedule = ddim.schedule(
        model.scheduler, config.sample.num_steps, config.sample.eta
    )
    ddim.check_policy(schedule)
    return sampler.Policy(model, schedule, config.sample.guidance_scale)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of a config, whose rate falls over all its updates."""
    train = config.train
    updates = config.epochs * train.inner_epochs * train.updates_per_epoch
    return learner.make_optimizer(train, updates)


def make_learner(
    config: ConfigDict,
    policy: sampler.Policy,
    optimizer: optax.GradientTransformation,
    state: TrainState,
) -> Learner:
    """The learner of a config.

    Args:
        config: all settings.
        policy: of `make_policy`.
        optimizer: of `make_optimizer`.
        state: placed; where the optimizer is sharded it stays as it is placed.
    """
    sharding = None
    if config.train.shard_optimizer:
        sharding = jax.tree.map(lambda x: x.sharding, state)
    if not config.train.guidance:
        policy = dataclasses.replace(policy, guidance_scale=1.0)
    steps = config_rules.steps_per_update(configuration.flatten(config))
    return Learner(policy, config.train, steps, optimizer, sharding)


def remat_of(config: ConfigDict) -> bool | str:
    """`config.train.remat` as `unet.UNet` takes it."""
    return {"none": False, "full": True}.get(config.train.remat, config.train.remat)


def _initial_state(
    config: ConfigDict,
    model: stable_diffusion.Model,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Any]:
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
    moments = optimizer.init(params)
    if config.train.shard_optimizer:
        moments = parallel.place(moments, parallel.divided(moments))
    else:
        moments = parallel.replicate(moments)
    params, count = parallel.replicate((params, jnp.int32(0)))
    return TrainState(params, moments, count), base


def adapters(key: jax.Array, config: ConfigDict, unet_shapes: Any) -> lora.Adapters:
    """New adapters where `config.train.lora` wants them."""
    settings = config.train.lora
    modules = settings.target_modules
    everywhere = modules == ALL_MODULES
    return lora.init(
        key, unet_shapes, settings.rank, lora.EVERYWHERE if everywhere else modules
    )


def state_shapes(config: ConfigDict, unet_shapes: Any) -> TrainState:
    """Shapes of the state that a run of `config` trains; computes nothing."""
    params = unet_shapes
    if config.train.lora.rank:
        key = jax.random.key(0)
        params = jax.eval_shape(lambda: adapters(key, config, unet_shapes))
    moments = jax.eval_shape(make_optimizer(config).init, params)
    return TrainState(params, moments, jax.ShapeDtypeStruct((), jnp.int32))
