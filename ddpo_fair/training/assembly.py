"""What a run is made of: loaded, and placed on the devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import attribute_rules, config_rules, parallel, rng
from ddpo_fair import config as configuration
from ddpo_fair.classifiers import classes, classifier, typology
from ddpo_fair.classifiers.classes import Attribute
from ddpo_fair.classifiers.classifier import Classifier
from ddpo_fair.diffusion import gaussian_step, networks, sampler, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.learning import goals, learner
from ddpo_fair.learning.learner import Learner, TrainState
from ddpo_fair.models import lora, published, sources

ALL_MODULES = ("all",)
SECOND_WIDTH = 1024  # of the text states of Stable Diffusion 2


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same from the first epoch to the last."""

    config: ConfigDict
    policy: sampler.Policy  # the model as it samples
    learner: Learner  # what the updates are compiled for
    # Without their weights; their attributes are, in order, the columns of the answers.
    classifiers: tuple[classifier.AnyClassifier, ...]
    goals: tuple[goals.Goal, ...]
    base: Any  # the UNet's weights under LoRA; {} where all weights are trained
    vae_params: Any
    classifier_params: tuple[Any, ...]
    text: np.ndarray  # float32 [P, L, C], of all `texts`
    uncond_embedding: jax.Array  # float32 [L, C], of the empty prompt

    @property
    def images_per_device(self) -> int:
        """Of an epoch, n."""
        return self.config.sample.batch_per_device * self.config.sample.batches

    @property
    def num_images(self) -> int:
        """Of an epoch, on all devices, N."""
        return parallel.num_devices() * self.images_per_device


def build(config: ConfigDict) -> tuple[Run, TrainState]:
    """A config's run, and its state before training; a UserError for unfit weights."""
    dtype = jnp.dtype(config.dtype)
    folder = sources.model_folder(config.model, config.variant)
    loaded = load_classifiers(config, dtype)
    remat, variant = remat_of(config), config.variant or None
    all_texts, time_ids = ["", *texts(config)], config.sample.time_ids
    how = dtype, remat, variant, config.base_lora, all_texts
    model = stable_diffusion.load(folder, *how)
    _check_memory(config, model)
    text = stable_diffusion.encode_prompts(model, all_texts, time_ids)
    return assemble(config, model, loaded, text)


def _check_memory(config: ConfigDict, model: stable_diffusion.Model) -> None:
    """Raises a UserError where XLA would end the process, of a CPU with less memory."""
    sample, memory = config.sample, parallel.at_hand().memory
    latents = sample.batches * (sample.num_steps + 1) * np.prod(model.latent_shape)
    floats = sample.batch_per_device * (latents + 3 * model.image_size**2)
    if 4 * floats > memory:
        raise UserError(
            f"sample.batch_per_device={sample.batch_per_device} x sample.batches="
            f"{sample.batches} images of {model.image_size} x {model.image_size} pixels"
            f" and their latents take {4 * floats / 1e9:.1f} GB of each device, which"
            f" has {memory / 1e9:.1f}; lower them."
        )


def variant_of(configs: dict[str, dict[str, Any]]) -> str:
    """The variant for a model of these config.json; an export has its base's."""
    part = networks.denoising_part(configs)
    for name, folder in sources.SHIPPED["model"].items():
        if configs[part] == stable_diffusion.read_configs(folder).get(part):
            return name
    if part == networks.TRANSFORMER:
        return "sd35"
    if sources.is_xl(configs):
        return "sdxl"
    width = configs[networks.UNET].get("cross_attention_dim")
    return "sd21" if width == SECOND_WIDTH else "sd15"


def load_classifiers(
    config: ConfigDict, dtype: Any, beside: str = "", with_weights: bool = True
) -> tuple[classifier.AnyClassifier, ...]:
    """The classifiers of a config's attributes but `beside`; or shapes for weights."""

    def load(reference: str, wanted: Sequence[Attribute]) -> classifier.AnyClassifier:
        if reference == classes.TYPOLOGY:
            return typology.Typology(tuple(wanted))
        configs = published.CLASSIFIERS.get(reference.partition("@")[0])
        if configs and not with_weights:
            return classifier.of_configs(reference, *configs, dtype, wanted)
        folder = sources.classifier_folder(reference, with_weights)
        return classifier.load(folder, dtype, wanted, with_weights)

    found: dict[str, list[Attribute]] = {}
    wanted = {x: one for x, one in attribute_rules.of(config).items() if x != beside}
    for name, attribute in wanted.items():
        reference = config.attributes[name].classifier
        if reference == configuration.EMBEDDED:
            reference = str(sources.classifier_folder(reference, attribute=name))
        found.setdefault(reference, []).append(attribute)
    return tuple(load(*item) for item in found.items())


def remat_of(config: ConfigDict) -> bool | str:
    """`config.train.remat` as `unet.UNet` takes it."""
    return {"none": False, "full": True}.get(config.train.remat, config.train.remat)


def texts(config: ConfigDict) -> list[str]:
    """A run's prompts: those that learn, their explicit forms, preservation prompts."""
    explicit = [prompt.text for prompt in config_rules.explicit_prompts(config)]
    return [*config.prompts, *explicit, *config_rules.preserved_prompts(config)]


def assemble(
    config: ConfigDict,
    model: stable_diffusion.Model,
    loaded: Sequence[Classifier],
    text: np.ndarray,
) -> tuple[Run, TrainState]:
    """The run of a model and its classifiers, and its state before any training.

    Where the weights are shapes, so are the run's and the state's. `text` embeds "" and
    all `texts`. A UserError for a schedule that cannot be trained.
    """
    sample = config.sample
    noise = sample.eta, sample.sde, sample.sde_window
    schedule = model.schedule(sample.num_steps, *noise)
    trained = config_rules.trained_steps(configuration.flatten(config))
    gaussian_step.check_policy(schedule, trained)
    alone = dataclasses.replace(model, params={})  # programs would keep weights alive
    policy = sampler.Policy(alone, schedule, sample.guidance_scale)
    weights = model.params[model.part]
    state = initial_state(config, weights)
    base: dict[str, Any] = {}
    if config.train.lora.rank:
        base = lora.frozen(weights, state.params, model.denoiser.dtype)
    run = Run(
        config=config,
        policy=policy,
        learner=_learner(config, policy, state),
        classifiers=tuple(dataclasses.replace(one, params=None) for one in loaded),
        goals=goals.of(config, attribute_rules.targets(config)),
        base=parallel.replicate(base),
        vae_params=parallel.replicate(model.params["vae"]),
        classifier_params=parallel.replicate(tuple(one.params for one in loaded)),
        text=text[1:],
        uncond_embedding=parallel.replicate(text[0]),
    )
    return run, state


def _learner(config: ConfigDict, policy: sampler.Policy, state: TrainState) -> Learner:
    """The learner; where the optimizer is sharded, the state stays as it is placed."""
    sharding = None
    if config.train.shard_optimizer:
        sharding = jax.tree.map(lambda x: x.sharding, state)
    if not config.train.guidance:
        policy = dataclasses.replace(policy, guidance_scale=1.0)
    steps = config_rules.steps_per_update(configuration.flatten(config))
    optimizer = learner.make_optimizer(config)
    return Learner(policy, config.train, steps, optimizer, sharding)


def initial_state(config: ConfigDict, unet: Any) -> TrainState:
    """The state before training, placed; shapes where the UNet's weights are shapes."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), unet)
    only_shapes = isinstance(jax.tree.leaves(unet)[0], jax.ShapeDtypeStruct)
    make = jax.eval_shape if only_shapes else lambda f, *x: jax.jit(f)(*x)
    if (settings := config.train.lora).rank:
        everywhere = settings.target_modules == ALL_MODULES
        modules = lora.EVERYWHERE if everywhere else settings.target_modules

        def adapters(key: jax.Array) -> lora.Adapters:
            return lora.init(key, shapes, settings.rank, modules)

        key = rng.key(config.seed, "lora")
        params = jax.eval_shape(adapters, key) if only_shapes else adapters(key)
    else:
        # A copy, for the state is donated and must not share the loaded arrays.
        params = shapes if only_shapes else jax.tree.map(np.array, unet)
    moments = make(learner.make_optimizer(config).init, params)
    shard = config.train.shard_optimizer
    moments = (parallel.divide if shard else parallel.replicate)(moments)
    params, count = parallel.replicate((params, make(lambda: jnp.int32(0))))
    return TrainState(params, moments, count)
