"""What gpu.py measures, a function each; torch and JAX never share a process."""

import functools
from typing import Any

import gpu_setup


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


def sample(options: Any) -> dict[str, Any]:
    """Guided sampling of one batch by the pmapped sampler."""
    import jax

    from ddpo_fair.diffusion import sampler

    setup = gpu_setup.make(options)
    sample = functools.partial(sampler.sample, setup.policy)
    arguments = (setup.unet, setup.keys, setup.text, setup.null)
    timing = gpu_setup.time_of(
        lambda: jax.block_until_ready(sample(*arguments)), repeats=3
    )
    gpu_setup.profile(options, lambda: jax.block_until_ready(sample(*arguments)))
    flops = 2 * options.batch * setup.steps * gpu_setup.unet_flops(setup)
    return {
        "images_per_second": options.batch / timing["seconds"],
        **gpu_setup.rates(flops, timing),
        **timing,
    }


def decode(options: Any) -> dict[str, Any]:
    """Decoding of one batch."""
    import jax

    from ddpo_fair.diffusion import sampler, stable_diffusion

    setup = gpu_setup.make(options)
    shape = (options.batch, *setup.model.latent_shape)
    latents = jax.random.normal(jax.random.key(0), (1, *shape))
    decode = functools.partial(sampler.decode, setup.model)
    arguments = (setup.vae, latents)
    timing = gpu_setup.time_of(
        lambda: decode(*arguments).block_until_ready(), repeats=5
    )
    flops = gpu_setup.flops_of(
        lambda params, x: stable_diffusion.decode(setup.model, params, x),
        setup.vae,
        latents[0],
    )
    return {
        "images_per_second": options.batch / timing["seconds"],
        **gpu_setup.rates(flops, timing),
        **timing,
    }


def update(options: Any) -> dict[str, Any]:
    """One optimizer step over `gpu_setup.TURNS` microbatches, LoRA on attention.

    The trajectories are noise: they cost the same.
    """
    import jax
    import jax.numpy as jnp

    from ddpo_fair.diffusion import sampler

    setup = gpu_setup.make(options)
    random = jax.random.key(1)
    shape = (1, options.batch, setup.steps + 1, *setup.model.latent_shape)
    trajectory = sampler.Trajectory(
        latents=jax.random.normal(random, shape),
        log_probs=jnp.zeros((*shape[:2], setup.steps)),
        keys=setup.keys,
        text=setup.text,
    )
    update, state, arguments = gpu_setup.update(
        options, setup, trajectory, gpu_setup.TURNS
    )
    holder = [state]

    def once() -> None:
        holder[0], *_ = update(holder[0], *arguments)
        jax.block_until_ready(holder[0].updates)

    timing = gpu_setup.time_of(once, repeats=3)
    gpu_setup.profile(options, once)
    pairs = options.batch * gpu_setup.TURNS
    # Forward, and twice that for the gradients of activations and of weights. The
    # latter is smaller for adapters, but theirs alone is not what a device is for.
    flops = 2 * pairs * 3 * gpu_setup.unet_flops(setup)
    return {
        "microbatch": options.batch,
        "pairs_per_second": pairs / timing["seconds"],
        "trajectories_per_second": pairs / timing["seconds"] / setup.steps,
        **gpu_setup.rates(flops, timing),
        **timing,
    }


def ratio(options: Any) -> dict[str, Any]:
    """Largest |ratio - 1| at the first update, sampler and learner in bfloat16."""
    import jax

    from ddpo_fair.diffusion import sampler

    setup = gpu_setup.make(options)
    trajectory = sampler.sample(
        setup.policy, setup.unet, setup.keys, setup.text, setup.null
    )
    update, state, arguments = gpu_setup.update(options, setup, trajectory, setup.steps)
    _, metrics, _ = jax.device_get(update(state, *arguments))
    names = ("ratio_deviation", "kl", "grad_norm")
    return {name: float(metrics[name]) for name in names}


def peer_compiled(options: Any) -> dict[str, Any]:
    """The peer with `torch.compile`."""
    return peer(options, compiled=True)


def peer(options: Any, compiled: bool = False) -> dict[str, Any]:
    """The same sampling and update in PyTorch on diffusers, eager or compiled."""
    import peer
    import torch
    from diffusers import UNet2DConditionModel

    from ddpo_fair.diffusion import ddim
    from ddpo_fair.models import lora

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    configs, steps = gpu_setup.configs(options), gpu_setup.num_steps(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chain = ddim.schedule(configs["scheduler"], steps, 1.0)
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(configs["unet"])
    unet = unet.to(torch.bfloat16).to(memory_format=torch.channels_last)
    loop = peer.Peer(unet, chain, gpu_setup.GUIDANCE, autocast=True)
    if compiled:
        unet.compile()  # in place: adapters added later are compiled with it
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    text = torch.randn((options.batch, 77, width), device=device)
    null = torch.randn((1, 77, width), device=device)
    shape = (unet.config.in_channels, size, size)
    sample = peer.synchronised(lambda: loop.sample(options.batch, shape, text, null))
    sampling = gpu_setup.time_of(sample, repeats=2)
    trajectory = sample()
    loop.add_adapters(gpu_setup.RANK, lora.ATTENTION, learning_rate=3e-4)
    result = {
        "torch": torch.__version__,
        "images_per_second": options.batch / sampling["seconds"],
        "sample_seconds": sampling["seconds"],
    }
    advantages = torch.randn(options.batch, device=device)
    for microbatch in (4, 8):
        pairs = microbatch * gpu_setup.TURNS
        images = torch.randint(options.batch, (pairs,), device=device)
        at = torch.randint(steps, (pairs,), device=device)
        update = peer.synchronised(
            lambda microbatch=microbatch, images=images, at=at: loop.update(
                trajectory, advantages, text, null, microbatch, images, at, 1e-4
            )
        )
        try:
            updating = gpu_setup.time_of(update, repeats=2)
        except torch.OutOfMemoryError:
            break
        result[f"pairs_per_second_{microbatch}"] = pairs / updating["seconds"]
    if device == "cuda":
        result["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result
