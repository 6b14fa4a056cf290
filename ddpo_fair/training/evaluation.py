"""How balanced the model is on fresh seeds, which are never trained on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import parallel, prompts, rng
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import sampler
from ddpo_fair.learning import rewards, scoring
from ddpo_fair.training import epoch as epochs
from ddpo_fair.training import metrics
from ddpo_fair.training.assembly import Run

TargetClasses = dict[str, dict[str, int]]  # a class or cell, by goal and prompt


@dataclasses.dataclass(frozen=True)
class Pending:
    """An evaluation on its way: fresh images, then those of the grid, then padding."""

    images: list[jax.Array]  # [D, B, H, W, 3] each; only those that a grid needs
    probabilities: list[jax.Array]  # [D, B, K] each


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished evaluation."""

    line: dict[str, Any]  # eval_ fields, also by prompt; {} where eval.images is 0
    labels: dict[str, np.ndarray]  # of each attribute, int [eval.images]
    names: np.ndarray  # str, prompt of each label
    grid: np.ndarray  # [log.images, H, W, 3]


def due(config: ConfigDict, epoch: int) -> bool:
    """Whether an evaluation follows this epoch; the first epoch's comes before it."""
    last = epoch == config.epochs - 1
    return epoch > 0 and (last or epoch % config.eval.every_epochs == 0)


def num_batches(run: Run) -> int:
    """Batches of one evaluation; they have the sampler's size, so nothing compiles."""
    total = run.config.eval.images + run.config.log.images
    return -(-total // (parallel.num_devices() * run.config.sample.batch_per_device))


def start(run: Run, unet_params: Any, epoch: int) -> Pending:
    """Starts drawing and classifying the images of an evaluation, in their order."""
    size = parallel.num_devices() * run.config.sample.batch_per_device
    fresh, count = run.config.eval.images, num_batches(run) * size
    num_prompts = len(run.config.prompts)
    parts = [prompts.fixed(num_prompts, n) for n in (fresh, count - fresh)]
    text_of = np.concatenate(parts)
    key = rng.key(run.config.seed, "evaluation", epoch)
    # The grid's seeds are the same in every run: they take eval.seed and no epoch.
    grid_key = rng.key(run.config.eval.seed, "evaluation")
    kept, probabilities = [], []
    for batch in range(num_batches(run)):
        numbers = np.arange(batch * size, (batch + 1) * size)
        own = sampler.image_keys(key, numbers)
        fixed = sampler.image_keys(grid_key, np.maximum(numbers - fresh, 0))
        keys = jax.jit(jnp.where)(parallel.split(numbers < fresh), own, fixed)
        _, images, found = epochs.draw(run, unet_params, keys, text_of[numbers])
        probabilities.append(found)
        if numbers[-1] >= fresh:
            kept.append(images)
    return Pending(kept, probabilities)


def finish(run: Run, pending: Pending) -> Result:
    """What an evaluation found; waits for the devices."""
    fresh, wanted = run.config.eval.images, run.config.log.images
    gathered = [parallel.gather(batch) for batch in pending.probabilities]
    probabilities = classifier.by_attribute(
        run.classifiers, np.concatenate(gathered)[:fresh]
    )
    images = np.concatenate([parallel.gather(batch) for batch in pending.images])
    first = fresh % gathered[0].shape[0]  # images of earlier batches are not kept
    grid = images[first : first + wanted]
    labels = scoring.labels_of(run.config, probabilities)
    names = np.array(run.config.prompts)[prompts.fixed(len(run.config.prompts), fresh)]
    measure = functools.partial(metrics.of_evaluation, run, probabilities, labels)
    every = np.full(fresh, True)
    line = metrics.by_prompt(run, measure, every, names) if fresh else {}
    return Result(line, labels, names, grid)


def target_classes(run: Run, result: Result) -> TargetClasses:
    """What `shift` rewards: what `target_class` names, or what a first result lacks."""
    found: TargetClasses = {}
    for goal in (goal for goal in run.goals if goal.reward == "shift"):
        attributes = [run.config.attributes[name] for name in goal.attributes]
        if all(one.target_class != "auto" for one in attributes):
            named = [one.classes.index(one.target_class) for one in attributes]
            cell = int(np.ravel_multi_index(named, goal.sizes))
            found[goal.name] = dict.fromkeys(run.config.prompts, cell)
            continue
        labels = goal.labels(result.labels)
        found[goal.name] = {
            prompt: rewards.underrepresented(labels[rows], goal.targets[prompt])
            for prompt, rows in rewards.groups(result.names).items()
        }
    return found
