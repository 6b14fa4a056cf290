"""How balanced the model is on fresh seeds, which are never trained on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import parallel, rng
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import sampler
from ddpo_fair.learning import rewards, scoring
from ddpo_fair.training import epoch as epochs
from ddpo_fair.training import metrics
from ddpo_fair.training.assembly import Run

TargetClasses = dict[str, dict[str, int]]  # a class or cell, by goal and prompt


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


def evaluate(
    run: Run, unet_params: Any, epoch: int, wait: Callable[[list[jax.Array]], None]
) -> Result:
    """Draws and classifies fresh images, then those of the grid, then padding.

    `wait` is for the devices' answers.
    """
    size = parallel.num_devices() * run.config.sample.batch_per_device
    fresh, count = run.config.eval.images, num_batches(run) * size
    turns = np.concatenate([np.arange(fresh), np.arange(count - fresh)])
    text_of = turns % len(run.config.prompts)
    key = rng.key(run.config.seed, "evaluation", epoch)
    # The grid's seeds are the same in every run: they take eval.seed and no epoch.
    grid_key = rng.key(run.config.eval.seed, "evaluation")
    kept, answers = [], []
    for batch in range(num_batches(run)):
        numbers = np.arange(batch * size, (batch + 1) * size)
        own = sampler.image_keys(key, numbers)
        fixed = sampler.image_keys(grid_key, np.maximum(numbers - fresh, 0))
        keys = jax.jit(jnp.where)(parallel.split(numbers < fresh), own, fixed)
        _, images, found = epochs.draw(run, unet_params, keys, text_of[numbers])
        answers.append(found)
        if numbers[-1] >= fresh:
            kept.append(images)
    wait(answers)
    gathered = np.concatenate([parallel.gather(batch) for batch in answers])
    probabilities = classifier.by_attribute(run.classifiers, gathered[:fresh])
    images = np.concatenate([parallel.gather(batch) for batch in kept])
    first = fresh % size  # images of earlier batches are not kept
    grid = images[first : first + run.config.log.images]
    labels = scoring.labels_of(run.config, probabilities)
    names = np.array(run.config.prompts)[text_of[:fresh]]
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
