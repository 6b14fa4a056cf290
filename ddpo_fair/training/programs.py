"""The programs of a run, lowered from shapes: no weight is read, nothing is run."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpo_fair import parallel
from ddpo_fair.classifiers import classifier, resize
from ddpo_fair.diffusion import sampler, stable_diffusion
from ddpo_fair.learning import learner, old_log_probs, policy_update
from ddpo_fair.models import options, published, sources, vit, weights
from ddpo_fair.training import assembly


@dataclasses.dataclass(frozen=True)
class Program:
    """One of a run's programs."""

    name: str
    lowered: jax.stages.Lowered
    turns: int  # of its loop
    calls: int  # in an epoch
    beside: int  # bytes that each device holds meanwhile, beyond the arguments


def read_model(config: ConfigDict) -> stable_diffusion.Model:
    """The text-to-image model with shapes for weights and without a tokenizer.

    Raises:
        UserError: if its config.json files cannot be had, or are not supported.
    """
    folder = Path(config.model)
    configs = published.MODELS.get(config.model.partition("@")[0])
    if configs is None:
        folder = sources.model_folder(config.model, config.variant, with_weights=False)
        configs = stable_diffusion.read_configs(folder)
    dtype, remat = jnp.dtype(config.dtype), assembly.remat_of(config)
    return stable_diffusion.of_configs(folder, configs, dtype, remat)


def read_classifier(config: ConfigDict) -> classifier.Classifier:
    """The classifier with shapes for weights; raises as `read_model` does."""
    folder = Path(config.classifier)
    known = published.CLASSIFIERS.get(config.classifier.partition("@")[0])
    if known is None:
        folder = sources.classifier_folder(config.classifier, with_weights=False)
    with options.of(folder):
        settings = vit.Config.from_dict(known or weights.read_config(folder))
    size, half = (settings.image_size,) * 2, (0.5,) * 3
    preprocessing = (
        classifier.Preprocessing(size, resize.BILINEAR, 1 / 255, half, half)
        if known
        else classifier.read_preprocessing(folder, settings)
    )
    classes = classifier.label_classes(settings.id2label, folder)
    network = vit.ImageClassifier(settings, jnp.dtype(config.dtype))
    shapes = weights.init_template(network, (1, *size, settings.num_channels))
    return classifier.Classifier(network, preprocessing, classes, shapes)


def lower(
    config: ConfigDict, model: stable_diffusion.Model, scorer: classifier.Classifier
) -> Iterator[Program]:
    """The programs in the order of an epoch, made as `assembly.build` makes them."""
    # Copies, for programs are kept for the objects that they are made of.
    policy = assembly.make_policy(config, dataclasses.replace(model, params={}))
    scorer_alone = dataclasses.replace(scorer, params=None)
    kept = _kept(config, model, scorer)
    drawing = _drawing(config, policy, scorer_alone, kept)
    yield from drawing
    yield from _learning(config, policy, kept, drawing[0].lowered.out_info)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Placed shapes of what every device keeps."""

    base: Any  # the UNet's weights under adapters; {} without
    state: learner.TrainState
    vae: Any
    classifier: Any
    uncond_embedding: jax.ShapeDtypeStruct


def _kept(
    config: ConfigDict, model: stable_diffusion.Model, scorer: classifier.Classifier
) -> _Kept:
    state = assembly.state_shapes(config, model.params["unet"])
    placed = parallel.replicated_shapes(state)
    if config.train.shard_optimizer:
        moments, shardings = state.optimizer, parallel.divided(state.optimizer)
        moments = parallel.placed_shapes(moments, shardings)
        placed = placed.replace(optimizer=moments)
    base = model.params["unet"] if config.train.lora.rank else {}
    others = (base, model.params["vae"], scorer.params, _text(model))
    base, *others = parallel.replicated_shapes(others)
    return _Kept(base, placed, *others)


def _text(model: stable_diffusion.Model, *batch: int) -> jax.ShapeDtypeStruct:
    """Shape of the embedding of one prompt, or of a batch."""
    length = model.text_encoder.config.max_position_embeddings
    return _shape(*batch, length, model.unet.config.cross_attention_dim)


def _drawing(
    config: ConfigDict,
    policy: sampler.Policy,
    scorer: classifier.Classifier,
    kept: _Kept,
) -> list[Program]:
    """Sampler, decoder and classifier."""
    model, size = policy.model, config.sample.batch_per_device
    shape, batches = (parallel.num_devices(), size), config.sample.batches
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape))
    inputs = parallel.spread_shapes((keys, _text(model, *shape)))
    weights = kept.base or kept.state.params
    sample = sampler.sampling_program(policy)
    sampling = sample.lower(weights, *inputs, kept.uncond_embedding)
    trajectories = num_bytes(parallel.spread_shapes(sampling.out_info))
    latents = _shape(*shape, *model.latent_shape)
    decoding = sampler.decoding_program(model).lower(kept.vae, latents)
    classify = classifier.program(scorer)
    classifying = classify.lower(kept.classifier, decoding.out_info)
    # With adapters also a UNet with the adapters in it.
    always = num_bytes((kept.base, kept.base, kept.state, kept.vae, kept.classifier))
    rows = (
        ("sampling", sampling, policy.num_steps, weights, batches - 1),
        ("decoding", decoding, 1, kept.vae, batches),
        ("classifying", classifying, 1, kept.classifier, batches),
    )
    return [
        Program(
            f"{name} {size} images",
            lowered,
            turns,
            batches,
            always - num_bytes(argument) + done * trajectories,
        )
        for name, lowered, turns, argument, done in rows
    ]


def _learning(
    config: ConfigDict, policy: sampler.Policy, kept: _Kept, batch: Any
) -> Iterator[Program]:
    """The update, and what recomputes the old log-probs where the config wants it.

    `batch` has the shapes of the trajectories of one batch.
    """
    train, state, batches = config.train, kept.state, config.sample.batches
    join = jax.vmap(lambda *parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts))
    epoch = parallel.spread_shapes(jax.eval_shape(join, *[batch] * batches))
    optimizer = assembly.make_optimizer(config)
    learns = assembly.make_learner(config, policy, optimizer, state)
    D, num_images = epoch.keys.shape
    m, S = num_images // train.updates_per_epoch, learns.steps_per_update
    turns, calls = (
        m * S // train.microbatch,
        train.inner_epochs * train.updates_per_epoch,
    )
    # Of the host, as in the run: the compiler places them.
    chosen = _shape(D, m, dtype=jnp.int32), _shape(D, m, S, dtype=jnp.int32)
    beside = num_bytes((kept.vae, kept.classifier))
    beside += num_bytes(epoch) if batches > 1 else 0  # the batches that were joined
    if train.recompute_log_probs:
        lowered = old_log_probs.program(learns).lower(
            state.params, kept.base, epoch, *chosen, kept.uncond_embedding
        )
        others = beside + num_bytes(state.optimizer)
        yield Program(f"recomputing {m * S} log-probs", lowered, turns, calls, others)
    advantages = parallel.spread_shapes(_shape(D, num_images))
    lowered = policy_update.program(learns).lower(
        state, kept.base, epoch, advantages, *chosen, kept.uncond_embedding
    )
    name = f"updating {m * S} pairs of image and step"
    yield Program(name, lowered, turns, calls, beside)


def _shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def num_bytes(tree: Any) -> int:
    """Bytes that each device holds of placed shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
