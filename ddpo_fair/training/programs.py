"""The programs of a run, lowered from shapes: no weight is read, nothing is run."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import parallel
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import sampler, stable_diffusion
from ddpo_fair.learning import learner, policy_update
from ddpo_fair.models import lora, lora_files, published, sources
from ddpo_fair.training import assembly


@dataclasses.dataclass(frozen=True)
class Program:
    """One of a run's programs."""

    name: str
    lowered: jax.stages.Lowered
    turns: int  # of its loop
    calls: int  # in an epoch
    beside: int  # bytes that each device holds meanwhile, beyond the arguments

    def needs(self, compiled: jax.stages.Compiled) -> dict[str, int]:
        """Bytes that each device needs, by what for, when this is compiled."""
        memory = compiled.memory_analysis()
        return {
            "arguments": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "beside": self.beside,
        }


def read(
    config: ConfigDict,
) -> tuple[stable_diffusion.Model, tuple[classifier.AnyClassifier, ...]]:
    """Model and classifiers with shapes for weights; a UserError for unfit configs."""
    folder = Path(config.model)
    configs = published.MODELS.get(config.model.partition("@")[0])
    if configs is None:
        folder = sources.model_folder(config.model, config.variant, with_weights=False)
        configs = stable_diffusion.read_configs(folder)
    dtype, remat = jnp.dtype(config.dtype), assembly.remat_of(config)
    model = stable_diffusion.of_configs(folder, configs, dtype, remat)
    if config.base_lora:
        lora_files.load(config.base_lora, model.params)  # which refuses another model's
    return model, assembly.load_classifiers(config, dtype, with_weights=False)


def lower(
    config: ConfigDict,
    model: stable_diffusion.Model,
    scorers: Sequence[classifier.Classifier],
) -> Iterator[Program]:
    """The programs in the order of an epoch, of a run that is made of shapes."""
    count = 1 + len(assembly.texts(config))
    text = np.zeros((count, *model.text_shape), np.float32)
    run, state = assembly.assemble(config, model, scorers, text)
    drawing = _drawing(run, state)
    yield from drawing
    yield from _learning(run, state, drawing[0].lowered.out_info)


def _drawing(run: assembly.Run, state: learner.TrainState) -> list[Program]:
    """Sampler, decoder and classifier."""
    model, size = run.policy.model, run.config.sample.batch_per_device
    shape, batches = (parallel.num_devices(), size), run.config.sample.batches
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape))
    text = _shape(*shape, *run.text.shape[1:])
    weights, adapted = state.params, {}
    if run.base:  # the kernels of adapters are there a second time, as sampled with
        kernels, dtype = lora.kernels_of(run.base), model.denoiser.dtype
        adapted = {path: kernels[path].update(dtype=dtype) for path in state.params}
        weights = lora.replace(run.base, adapted)
    sampling = sampler.sampling_program(run.policy).lower(
        weights, *parallel.spread_shapes((keys, text)), run.uncond_embedding
    )
    trajectories = num_bytes(parallel.spread_shapes(sampling.out_info))
    latents = _shape(*shape, *model.latent_shape)
    decoding = sampler.decoding_program(model).lower(run.vae_params, latents)
    made = run.classifiers, parallel.made_for.value, run.config.reward.views
    classifying = classifier.program(*made).lower(
        run.classifier_params, decoding.out_info
    )
    kept = (run.base, adapted, state, run.vae_params, run.classifier_params)

    def program(name: str, lowered: Any, turns: int, argument: Any, done: int) -> Any:
        beside = num_bytes(kept) - num_bytes(argument) + done * trajectories
        return Program(f"{name} {size} images", lowered, turns, batches, beside)

    return [
        program("sampling", sampling, run.policy.num_steps, weights, batches - 1),
        program("decoding", decoding, 1, run.vae_params, batches),
        program("classifying", classifying, 1, run.classifier_params, batches),
    ]


def _learning(
    run: assembly.Run, state: learner.TrainState, batch: Any
) -> Iterator[Program]:
    """The update, and the old log-probs, of the shapes of a batch's trajectories."""
    train, batches = run.config.train, run.config.sample.batches
    join = jax.vmap(lambda *parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts))
    epoch = parallel.spread_shapes(jax.eval_shape(join, *[batch] * batches))
    D, num_images = epoch.keys.shape
    m, S = num_images // train.updates_per_epoch, run.learner.steps_per_update
    turns = m * S // train.microbatch
    calls = train.inner_epochs * train.updates_per_epoch
    # Of the host, as in the run: the compiler places them.
    chosen = _shape(D, m, dtype=jnp.int32), _shape(D, m, S, dtype=jnp.int32)
    beside = num_bytes((run.vae_params, run.classifier_params))
    beside += num_bytes(epoch) if batches > 1 else 0  # the batches that were joined
    advantages = parallel.spread_shapes(_shape(D, num_images))
    kl_weights = advantages if train.base_kl_weight else None
    data = policy_update.EpochData(
        run.base, epoch, advantages, run.uncond_embedding, kl_weights
    )
    if train.recompute_log_probs:
        data = data.replace(trajectory=policy_update.with_means(epoch))
    lowered = policy_update.program(run.learner).lower(state, data, *chosen, True)
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
