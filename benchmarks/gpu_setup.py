"""What the parts of gpu.py share: networks of real size with random weights, clocks."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STEPS, TINY_STEPS = 20, 4
GUIDANCE, RANK = 5.0, 16
TURNS = 4  # microbatches of an update


def num_steps(options: Any) -> int:
    """Denoising steps of an image."""
    return TINY_STEPS if options.tiny else STEPS


def make(options: Any) -> SimpleNamespace:
    """Networks of real size with random weights on the device; one batch's inputs."""
    import jax
    import jax.numpy as jnp

    from ddpo_fair.diffusion import ddim, sampler, stable_diffusion

    parsed, dtype = configs(options), jnp.bfloat16
    remat = {"none": False, "full": True}.get(options.remat, options.remat)
    model = stable_diffusion.of_configs(Path(), parsed, dtype, remat)
    shapes, model = model.params, dataclasses.replace(model, params={})
    steps = num_steps(options)
    random = jax.random.key(0)
    width = parsed["unet"]["cross_attention_dim"]
    return SimpleNamespace(
        model=model,
        policy=sampler.Policy(
            model, ddim.schedule(parsed["scheduler"], steps, 1.0), GUIDANCE
        ),
        steps=steps,
        unet=jax.device_put(random_weights(shapes["unet"])),
        vae=jax.device_put(random_weights(shapes["vae"])),
        keys=jax.random.split(random, (1, options.batch)),
        text=jax.random.normal(random, (1, options.batch, 77, width)),
        null=jax.random.normal(random, (77, width)),
    )


def update(options: Any, setup: Any, trajectory: Any, turns: int) -> tuple:
    """The jitted update, its state, and its other arguments."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpo_fair import config
    from ddpo_fair.learning import learner, policy_update
    from ddpo_fair.models import lora

    settings = config.defaults()
    train = settings.train
    train.update(
        clip_range=1e-4,
        updates_per_epoch=1,
        skip_last_steps=0,
        microbatch=options.batch,
        learning_rate=3e-4,
        final_learning_rate=1.0,
        warmup_updates=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lora={"rank": RANK, "scale": 1.0},
    )
    optimizer = learner.make_optimizer(settings)
    params = lora.init(jax.random.key(2), setup.unet, RANK, lora.ATTENTION)
    state = learner.TrainState(params, jax.jit(optimizer.init)(params), jnp.int32(0))
    of = learner.Learner(setup.policy, train, turns, optimizer)
    images = jnp.arange(options.batch, dtype=jnp.int32)[None]
    chosen = np.linspace(0, setup.steps - 1, turns).astype(np.int32)
    steps = jnp.broadcast_to(jnp.asarray(chosen), (1, options.batch, turns))
    advantages = jax.random.normal(jax.random.key(3), (1, options.batch))
    data = policy_update.EpochData(setup.unet, trajectory, advantages, setup.null)
    return policy_update.program(of), state, (data, images, steps)


def configs(options: Any) -> dict[str, Any]:
    """The parsed configs of Stable Diffusion 1.x, or of a toy of its shape."""
    from ddpo_fair.models import published

    configs = copy.deepcopy(published.STABLE_DIFFUSION_1)
    if options.tiny:
        narrow = {"block_out_channels": [32, 64, 64, 64], "layers_per_block": 1}
        configs["unet"] |= {**narrow, "cross_attention_dim": 48, "sample_size": 16}
        configs["vae"] |= {**narrow, "block_out_channels": [32, 32, 32, 32]}
        text = {"hidden_size": 48, "vocab_size": 100, "num_hidden_layers": 1}
        configs["text_encoder"] |= text
    return configs


def random_weights(shapes: Any) -> Any:
    """Float32 weights that keep a signal's size; cut from one pool, to be quick."""
    import jax
    import numpy as np

    pool = np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32)

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        if path[-1].key == "bias":
            return np.zeros(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1])
        return np.resize(pool, leaf.shape) / np.float32(np.sqrt(fan_in))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def unet_flops(setup: Any) -> float:
    """Of one forward pass of one image."""
    import jax.numpy as jnp

    return flops_of(
        lambda params, *x: setup.model.denoiser.apply({"params": params}, *x),
        setup.unet,
        jnp.zeros((1, *setup.model.latent_shape)),
        jnp.zeros(1, jnp.int32),
        jnp.zeros((1, 77, setup.null.shape[-1])),
    )


def flops_of(function: Callable, *arguments: Any) -> float:
    """Operations of one call without loops, as XLA counts them on a CPU."""
    import jax

    from ddpo_fair import parallel

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    target = parallel.one_cpu()
    with parallel.made_for(target), jax.default_device(target.devices[0]):
        return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def time_of(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median seconds of a call, and what the first one took longer: the compiler."""
    begin = time.perf_counter()
    function()
    first = time.perf_counter() - begin
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    median = statistics.median(times)
    return {"seconds": median, "compile_seconds": max(0.0, first - median)}


def rates(flops: int, timing: dict[str, float]) -> dict[str, float]:
    import jax

    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "tflops": flops / timing["seconds"] / 1e12,
        "peak_gb": memory.get("peak_bytes_in_use", 0) / 1e9,
    }


def profile(options: Any, function: Callable[[], Any]) -> None:
    if options.profile:
        import jax

        with jax.profiler.trace(options.profile):
            function()
