"""A whole guided trajectory against diffusers' pipeline, small and at full size."""

import functools
import types

import jax
import numpy as np
import official_configs
import parity
import pytest
import tiny_model

from ddpo_fair import rng
from ddpo_fair.diffusion import ddim, sampler
from ddpo_fair.models import unet, weights

NUM_STEPS, GUIDANCE = 5, 5.0

# As DDIM reads it.
SCHEDULER = official_configs.SCHEDULER_1_5 | {"_class_name": "DDIMScheduler"}


@pytest.mark.parametrize(
    ("config", "num_images"),
    [
        pytest.param(tiny_model.UNET, 2, id="small", marks=pytest.mark.long),
        pytest.param(
            official_configs.UNET_1_5, 1, id="UNET_1_5", marks=pytest.mark.slow
        ),
    ],
)
def test_trajectory_equals_diffusers(torch, monkeypatch, tmp_path, config, num_images):
    diffusers = pytest.importorskip("diffusers")
    size, channels = config["sample_size"], config["in_channels"]
    shape = (size, size, channels)
    random = np.random.default_rng(0)
    states = (num_images + 1, 77, config["cross_attention_dim"])
    uncond_embedding, *text = random.standard_normal(states, dtype=np.float32)
    text = np.stack(text)
    keys = jax.vmap(functools.partial(rng.key, 3))(np.arange(num_images))
    reference = parity.randomise_norms(
        torch, diffusers.UNet2DConditionModel.from_config(config)
    )
    others = "vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"
    pipeline = diffusers.StableDiffusionPipeline(
        unet=reference,
        scheduler=diffusers.DDIMScheduler.from_config(SCHEDULER),
        requires_safety_checker=False,
        **dict.fromkeys(others),
    )
    nothing = np.repeat(uncond_embedding[None], num_images, 0)
    given = {"guidance_scale": GUIDANCE, "output_type": "latent"}
    given["prompt_embeds"] = torch.from_numpy(text)
    given["negative_prompt_embeds"] = torch.from_numpy(nothing)
    how = pipeline, keys, shape, NUM_STEPS
    _, expected = parity.run_pipeline(torch, monkeypatch, *how, **given)
    reference.save_pretrained(tmp_path)
    del pipeline, reference  # 3.4 GB at full size

    network = unet.UNet(unet.Config.from_dict(weights.read_config(tmp_path)))
    inputs = ((1, *shape), (1,), (1, *text.shape[1:]))
    params = weights.load(tmp_path, weights.init_template(network, *inputs))
    model = types.SimpleNamespace(denoiser=network, latent_shape=shape)
    schedule = ddim.schedule(SCHEDULER, NUM_STEPS, 1.0)
    policy = sampler.Policy(model, schedule, GUIDANCE)
    denoise = functools.partial(sampler.denoise, policy)
    drawn = jax.jit(denoise)(params, keys, text, uncond_embedding)
    found = np.moveaxis(np.asarray(drawn.latents)[:, 1:], 1, 0)
    errors = [
        parity.relative_error(*pair) for pair in zip(found, expected, strict=True)
    ]
    print(f"relative errors of {NUM_STEPS} steps: {errors}")
    # float32 sums in another order, which guidance multiplies
    assert max(errors) < (1e-3 if size == 64 else 1e-4)
