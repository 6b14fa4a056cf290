"""Where the reward's signal is: which layers and which denoising steps to train.

    python benchmarks/gradient_signal.py \
        --config=configs/mech_eng_unrestrained.py:embedded
    python benchmarks/gradient_signal.py --config=configs/gender_skin_tone.py:embedded \
        --config.reward.combine=marginal --config.attributes.gender.weight=0

The policy gradient of one group of images is signal plus noise. Groups are independent,
so the mean inner product of two groups' gradients estimates |signal|^2 without bias,
and the mean squared norm |signal|^2 + |noise|^2. Their ratio is printed for each part
of the network and each of the first steps: 1 is signal alone, 0 is noise alone. Nothing
is trained. Embedded model, two cores: about 70 s a batch.
"""

import argparse
import collections
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import experiment, parallel
from ddpo_fair.learning import policy_update, scoring
from ddpo_fair.training import assembly, epoch

# A part: a block's ResNets, its self- and cross-attention, and the rest; of a flow's
# transformer a layer's attention, to_* of the image and add_* of the text, and others.
PART = re.compile(
    r"^((?:down|up)_blocks\.\d+|mid_block)\.(resnets|attentions\.\d+).*?(attn1|attn2|$)"
    r"|^(transformer_blocks\.\d+)\.(attn\.(?:to|add)|\w+)"
)
FIRST = 10_000  # epoch number of the images, far from any that trains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batches", type=int, default=4, help="epochs' images to draw")
    parser.add_argument("--steps", type=int, default=6, help="first steps to measure")
    parser.add_argument("--output", type=pathlib.Path, help="JSON of the table")
    options, overrides = parser.parse_known_args()
    flags = [f"--config={options.config}", *overrides]
    command, problems = experiment.parse(flags, "benchmarks/gradient_signal.py")
    if problems:
        parser.error(" ".join(problems))
    config = command.config
    config.train.lora.rank = 0  # the gradient of every weight
    config.train.skip_last_steps, config.sample.batches = 0, 1
    parallel.start(config.distributed.cpu_devices)
    print(table(measure(config, options.batches, options.steps), options.output))


def measure(config, batches: int, steps: int) -> dict[str, np.ndarray]:
    """Gradients of each layer's kernel, [groups, steps, size], by the layer's path."""
    run, state = assembly.build(config)
    gradient = make_gradient(run)
    size = config.train.microbatch
    found = collections.defaultdict(list)
    for batch in range(batches):
        samples = epoch.sample(run, state.params, FIRST + batch)
        answers = epoch.gather(run, samples.probabilities)
        names, asked = samples.names, samples.asked
        classes = {x.name: dict.fromkeys(names, 0) for x in run.goals}  # of `shift`
        scores = scoring.score(config, run.goals, answers, names, asked, classes, {})
        counts = {x: collections.Counter(y.tolist()) for x, y in scores.labels.items()}
        print(f"batch {batch}: {counts}", flush=True)
        placed = parallel.split(scores.advantages)
        for first in range(0, placed.shape[1] - size + 1, size):
            images = jnp.tile(jnp.arange(first, first + size), (len(placed), 1))
            of_steps = [
                gradient(
                    state.params,
                    samples.trajectories[0],
                    placed,
                    images,
                    jnp.full_like(images, step),
                    run.uncond_embedding,
                )
                for step in range(steps)
            ]
            for path, _ in jax.tree_util.tree_leaves_with_path(of_steps[0]):
                keys = [key.key for key in path]
                if keys[-1] == "kernel":
                    leaves = [functools.reduce(dict.get, keys, g) for g in of_steps]
                    stacked = np.stack([np.asarray(leaf).ravel() for leaf in leaves])
                    found[".".join(keys[:-1])].append(stacked)
    return {path: np.stack(groups) for path, groups in found.items()}


def make_gradient(run: assembly.Run):
    """The jitted policy gradient of one group of images and their steps."""

    @jax.jit
    def gradient(params, trajectory, advantages, images, steps, uncond_embedding):
        def loss(params):
            data = policy_update.EpochData({}, trajectory, advantages, uncond_embedding)
            batch = policy_update.pairs(data, images, steps)
            one = functools.partial(
                policy_update.surrogate_loss, run.learner, params, uncond_embedding
            )
            return jax.vmap(one)(batch)[0].mean()

        return jax.grad(loss)(params)

    return gradient


def ratio(gradients: np.ndarray) -> float:
    """|signal|^2 / (|signal|^2 + |noise|^2) of [groups, size]."""
    products = gradients @ gradients.T
    count, diagonal = len(products), np.trace(products)
    between = (products.sum() - diagonal) / (count * (count - 1))
    return float(between / (diagonal / count))


def table(gradients: dict[str, np.ndarray], output: pathlib.Path | None) -> str:
    """Parts of the UNet, those with the most signal in the first two steps first."""
    parts = collections.defaultdict(list)
    for path, array in gradients.items():
        match = PART.match(path)
        parts[".".join(filter(None, match.groups())) if match else path].append(array)
    parts["all kernels"] = list(gradients.values())
    rows = {}
    for part, arrays in parts.items():
        joined = np.concatenate(arrays, axis=2)
        by_step = [ratio(joined[:, step]) for step in range(joined.shape[1])]
        first_two = ratio(joined[:, :2].sum(axis=1))
        rows[part] = {"first_two": first_two, "steps": by_step, "size": joined.shape[2]}
    rows = dict(sorted(rows.items(), key=lambda row: -row[1]["first_two"]))
    if output:
        output.write_text(json.dumps(rows, indent=1) + "\n")
    steps = len(next(iter(rows.values()))["steps"])
    lines = [f"{'part':32s} {'weights':>9s} {'first 2':>8s}  each of the {steps} first"]
    lines += [
        f"{part:32s} {row['size']:9,d} {row['first_two']:8.2f}  "
        + " ".join(f"{value:+.2f}" for value in row["steps"])
        for part, row in rows.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
