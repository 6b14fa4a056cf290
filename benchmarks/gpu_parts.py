"""What gpu.py measures, a function each; torch and JAX never share a process."""

import functools
import time
from typing import Any

import gpu_setup

TURNS = 4  # microbatches of the peer's update


def matmul(options: Any) -> dict[str, Any]:
    """The device's own rate: a bfloat16 product of random matrices."""
    import jax
    import jax.numpy as jnp

    size = 256 if options.tiny else 8192
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    product = jax.jit(lambda a, b: a @ b)
    timing = gpu_setup.time_of(lambda: product(a, b).block_until_ready(), repeats=20)
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "tflops": 2 * size**3 / timing["seconds"] / 1e12,
        **timing,
    }


def _program(kind: str, options: Any) -> dict[str, Any]:
    """A program of a run, compiled here and called with random numbers."""
    import jax

    from ddpo_fair import config_rules, parallel
    from ddpo_fair.models import published
    from ddpo_fair.training import plan, programs

    config, problems = gpu_setup.config(options, options.variant)
    parallel.start(1)
    config_rules.validate(config, problems, parallel.num_devices())
    if options.tiny and config.model in published.MODELS:
        published.MODELS[config.model] = gpu_setup.configs(options.variant, True)
    begin = time.perf_counter()
    lowered = programs.lower(config, *programs.read(config))
    program = next(x for x in lowered if x.name.startswith(kind))
    middle = time.perf_counter()
    compiled = program.lowered.compile()
    end = time.perf_counter()
    shapes, tree = jax.tree.flatten(program.lowered.args_info)
    drawn = jax.tree.leaves(gpu_setup.draw(program.lowered.args_info))
    kept = [  # a call uses up what is donated: that is put there before each
        x if shape.donated else jax.device_put(x)
        for x, shape in zip(drawn, shapes, strict=True)
    ]

    def arguments() -> tuple:
        return jax.block_until_ready(jax.device_put(jax.tree.unflatten(tree, kept)))

    def call(positional: tuple, named: dict) -> None:
        jax.block_until_ready(compiled(*positional, **named))

    timing = gpu_setup.time_of(call, 3, arguments)
    needs, peak = program.needs(compiled), parallel.memory_gb()
    if options.profile:
        given = arguments()
        with jax.profiler.trace(options.profile):
            call(*given)
    # The old log-probs are calls of their own; what is recomputed is no useful work.
    config.train.update(recompute_log_probs=False, remat="none")
    work = plan.flops(config, parallel.num_devices(), kind)[kind] / program.calls
    count, unit = program.name.split()[1:3]
    return {
        "program": program.name,
        "lowering_seconds": middle - begin,
        "compile_seconds": end - middle,
        "seconds": timing["seconds"],
        f"{unit}_per_second": int(count) * parallel.num_devices() / timing["seconds"],
        "tflops": work / timing["seconds"] / 1e12,
        "peak_gb": peak,
        "beside_gb": needs.pop("beside") / 1e9,  # which a run holds meanwhile
        "needs_gb": sum(needs.values()) / 1e9,  # of the rest
    }


sampling, decoding, updating = (
    functools.partial(_program, kind) for kind in ("sampling", "decoding", "updating")
)


def peer_compiled(options: Any) -> dict[str, Any]:
    """The peer with `torch.compile`."""
    return peer(options, compiled=True)


def peer(options: Any, compiled: bool = False) -> dict[str, Any]:
    """The same sampling and update in PyTorch on diffusers, eager or compiled."""
    import peer
    import torch
    from diffusers import UNet2DConditionModel

    from ddpo_fair.diffusion import ddim

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    config, _ = gpu_setup.config(options, "sd15")
    configs = gpu_setup.configs("sd15", options.tiny)
    batch, steps = config.sample.batch_per_device, config.sample.num_steps
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chain = ddim.schedule(configs["scheduler"], steps, config.sample.eta)
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(configs["unet"])
    unet = unet.to(torch.bfloat16).to(memory_format=torch.channels_last)
    loop = peer.Peer(unet, chain, config.sample.guidance_scale, autocast=True)
    if compiled:
        unet.compile()  # in place: adapters added later are compiled with it
    width, size = unet.config.cross_attention_dim, unet.config.sample_size
    text = torch.randn((batch, 77, width), device=device)
    null = torch.randn((1, 77, width), device=device)
    shape = (unet.config.in_channels, size, size)
    sample = peer.synchronised(lambda: loop.sample(batch, shape, text, null))
    sampling = gpu_setup.time_of(sample, repeats=2)
    trajectory = sample()
    train = config.train
    loop.add_adapters(train.lora.rank, train.lora.target_modules, train.learning_rate)
    result = {
        "torch": torch.__version__,
        "images_per_second": batch / sampling["seconds"],
        "sample_seconds": sampling["seconds"],
    }
    advantages = torch.randn(batch, device=device)
    for microbatch in (4, 8):
        pairs = microbatch * TURNS
        images = torch.randint(batch, (pairs,), device=device)
        at = torch.randint(steps, (pairs,), device=device)
        chosen = (microbatch, images, at, train.clip_range)
        update = functools.partial(loop.update, trajectory, advantages, text, null)
        update = peer.synchronised(functools.partial(update, *chosen))
        try:
            updating = gpu_setup.time_of(update, repeats=2)
        except torch.OutOfMemoryError:
            break
        result[f"pairs_per_second_{microbatch}"] = pairs / updating["seconds"]
    if device == "cuda":
        result["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result
