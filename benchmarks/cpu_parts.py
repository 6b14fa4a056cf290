"""Where an epoch's time goes on this CPU: `python benchmarks/cpu_parts.py`.

The embedded model's programs, each alone, and how much of the rate of a plain matrix
product on the same cores they reach. FLOPs are those that `--plan` counts.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import cpu
import gpu_setup
import jax
import jax.numpy as jnp

from ddpo_fair import experiment, parallel, rng
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import sampler
from ddpo_fair.learning import learner, policy_update
from ddpo_fair.training import assembly, plan
from ddpo_fair.training import epoch as epochs

PRODUCT = "matrix product"
REPEATS = 5  # of a part, after one that compiles


def main() -> None:
    parts = measure(sys.argv[1:])
    print("| part | s | GFLOP | of the matrix product's rate |")
    print("|---|---|---|---|")
    reference = parts[PRODUCT]["gflop"] / parts[PRODUCT]["seconds"]
    for name, part in parts.items():
        seconds, gflop = part["seconds"], part["gflop"]
        share = gflop / seconds / reference
        print(f"| {name} | {seconds:.2f} | {gflop:.0f} | {share:.0%} |")


def measure(flags: list[str]) -> dict[str, dict[str, float]]:
    """Seconds and FLOP of an epoch's programs, each alone, and of a matrix product."""
    command, _ = experiment.parse([f"--config={cpu.CONFIG}", *flags], "cpu")
    config = command.config
    parallel.start(config.distributed.cpu_devices)
    run, state = assembly.build(config)
    params = learner.unet_params(run.learner, run.base, state.params)
    samples = epochs.sample(run, params, 0)
    trajectory = samples.trajectories[0]
    keys, text = trajectory.keys, trajectory.text
    latents = trajectory.latents[:, :, -1]
    images = sampler.decode(run.policy.model, run.vae_params, latents)
    selected = learner.selection(
        rng.key(0), run.learner, parallel.num_devices(), run.images_per_device
    )
    chosen = [x[0] for x in selected]
    advantages = parallel.split(jnp.ones(run.num_images))
    data = policy_update.EpochData(
        run.base, trajectory, advantages, run.uncond_embedding
    )

    def update() -> Any:
        nonlocal state
        state, *_ = policy_update.program(run.learner)(state, data, *chosen)
        return state

    square = parallel.split(jnp.ones((2 * config.distributed.cpu_devices, 2048, 2048)))
    product = jax.jit(jax.vmap(jax.vmap(jnp.dot)))
    programs = {
        "sampling": lambda: (
            sampler.sample(run.policy, params, keys, text, run.uncond_embedding).latents
        ),
        "decoding": lambda: sampler.decode(run.policy.model, run.vae_params, latents),
        "classifying": lambda: classifier.classify(
            run.classifiers, run.classifier_params, images
        ),
        "updating": update,
        PRODUCT: lambda: product(square, square),
    }
    flops = {
        name: value * parallel.num_devices()
        for name, value in plan.flops(config, parallel.num_devices()).items()
    }
    assert config.sample.batches == 1, "the programs are timed on one batch"
    flops[PRODUCT] = 2 * square.shape[0] * square.shape[1] * 2048**3
    times = {"updating": config.train.updates_per_epoch}
    found = {}
    for name, program in programs.items():
        timing = gpu_setup.time_of(partial(finish, program), REPEATS)
        seconds = timing["seconds"] * times.get(name, 1)
        found[name] = {"seconds": seconds, "gflop": flops[name] / 1e9}
    return found


def finish(program: Callable[[], Any]) -> None:
    """Runs a program to its end on the devices."""
    jax.block_until_ready(program())


if __name__ == "__main__":
    main()
