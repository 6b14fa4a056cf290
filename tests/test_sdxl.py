"""Stable Diffusion XL, small: its UNet and whole pipeline against diffusers'."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny_model
import tiny_run
from test_models import UNET_1, load, save_torch

from ddpo_fair import exporting, rng
from ddpo_fair.diffusion import ddim, networks, sampler, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.models import unet

NUM_STEPS, GUIDANCE = 5, 5.0
PROMPT = tiny_model.PROMPTS[0]
# Text 12, and six sizes of 8 each.
UNET = UNET_1 | {
    "sample_size": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 8], "attention_head_dim": [2, 4],
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 12 + 6 * 8,
}  # fmt: skip
TIME_IDS = (1024, 768, 16, 32, 512, 640)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.save_model(
        tmp_path_factory.mktemp("xl") / "model", configs=tiny_model.XL
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "differentiated"),
    [
        pytest.param({}, True, id="SDXL"),
        # SSD-1B's form, without the middle's attention.
        pytest.param(
            {
                "transformer_layers_per_block": [1, [8]],
                "reverse_transformer_layers_per_block": [[8, 1], 1],
                "mid_block_type": "UNetMidBlock2D",
            },
            False,
            id="SSD-1B",
        ),
    ],
)
def test_unet_and_gradient_equal_torch(torch, tmp_path, changes, differentiated):
    config = UNET | changes
    reference = save_torch(torch, tmp_path, "unet", config)
    network, params = load("unet", tmp_path)
    random = np.random.default_rng(0)
    latents, cotangent = random.standard_normal((2, 2, 8, 8, 4), np.float32)
    states = random.standard_normal((2, 7, 24), np.float32)
    pooled = random.standard_normal((2, 12), np.float32)
    times = np.array([3, 981], np.int32)
    inputs = [parity.to_torch(torch, latents), *map(torch.from_numpy, (times, states))]
    inputs[0].requires_grad_()
    inputs[2].requires_grad_()
    added = {
        "text_embeds": torch.from_numpy(pooled).requires_grad_(),
        "time_ids": torch.tensor([TIME_IDS, TIME_IDS]),
    }
    expected = reference(*inputs, added_cond_kwargs=added).sample
    text = np.zeros((2, 8, 24), np.float32)
    text[:, :7], text[:, 7, :12], text[:, 7, 12:18] = states, pooled, TIME_IDS

    def apply(params, latents, text):
        return network.apply({"params": params}, latents, times, text)

    @jax.jit
    def output_and_gradients(*inputs):
        if not differentiated:
            return apply(*inputs), ()
        output, pull_back = jax.vjp(apply, *inputs)
        of_params, *others = pull_back(jnp.asarray(cotangent))
        return output, (of_params["add_embedding.linear_1"]["kernel"], *others)

    output, gradients = output_and_gradients(params, latents, text)
    assert parity.relative_error(output, parity.to_numpy(expected)) < 1e-5
    if not differentiated:
        return
    (expected * parity.to_torch(torch, cotangent)).sum().backward()
    of_kernel, of_latents, of_text = gradients
    pairs = [
        (of_latents, parity.to_numpy(inputs[0].grad)),
        (of_text[:, :7], inputs[2].grad),
        (of_text[:, 7, :12], added["text_embeds"].grad),
        (of_kernel.T, reference.add_embedding.linear_1.weight.grad),
    ]
    assert max(parity.relative_error(*pair) for pair in pairs) < 1e-4


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((0, 0, 0, 0, 0, 0), id="own", marks=pytest.mark.long),
        pytest.param(TIME_IDS, id="given"),
    ],
)
def test_five_steps_from_the_prompt_equal_diffusers(torch, monkeypatch, folder, sizes):
    diffusers = pytest.importorskip("diffusers")
    settings = diffusers.EulerDiscreteScheduler.load_config(folder / "scheduler")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        parity.write_index(folder),
        scheduler=diffusers.DDIMScheduler.from_config(settings),
        add_watermarker=False,
    )
    model = stable_diffusion.load(folder)
    keys = jax.vmap(functools.partial(rng.key, 3))(np.arange(2))
    given = {"prompt": [PROMPT] * 2, "guidance_scale": GUIDANCE, "output_type": "np"}
    if any(sizes):
        given |= {
            f"{sign}{name}": size
            for sign in ("", "negative_")
            for name, size in zip(
                ("original_size", "crops_coords_top_left", "target_size"),
                (sizes[:2], sizes[2:4], sizes[4:]),
                strict=True,
            )
        }
    how = pipeline, keys, model.latent_shape, NUM_STEPS
    drawn, expected = parity.run_pipeline(torch, monkeypatch, *how, **given)

    text = stable_diffusion.encode_prompts(model, ["", PROMPT, PROMPT], sizes)
    assert not text[0, :-1].any()  # force_zeros_for_empty_prompt
    policy = sampler.Policy(
        model, ddim.schedule(model.scheduler, NUM_STEPS, 1.0), GUIDANCE
    )
    denoise = jax.jit(functools.partial(sampler.denoise, policy))
    latents = denoise(model.params["unet"], keys, text[1:], text[0]).latents
    for step in range(NUM_STEPS):
        # float32 sums in another order, which guidance multiplies
        assert parity.relative_error(latents[:, 1 + step], expected[step]) < 1e-4
    images = stable_diffusion.decode(model, model.params["vae"], latents[:, -1])
    np.testing.assert_allclose(images, drawn, rtol=0, atol=1e-3)


def test_diffusers_opens_what_is_exported(torch, folder, tiny, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample.time_ids": (*TIME_IDS[:2], 0, 0, *TIME_IDS[4:])}
    run = tiny_run.save(tiny_model.config(folder, tiny[1], tmp_path, **sizes))
    output = exporting.export(run, tmp_path / "out", "diffusers")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(output)
    assert type(pipeline) is diffusers.StableDiffusionXLPipeline
    assert pipeline.config.force_zeros_for_empty_prompt
    card = (output / "README.md").read_text("utf-8")
    assert "import DDIMScheduler, StableDiffusionXLPipeline" in card
    assert "    original_size=(1024, 768),\n    target_size=(512, 640),\n" in card


@pytest.mark.parametrize(
    ("part", "setting", "said"),
    [
        (
            "pipeline",
            {stable_diffusion.ZEROS: "false"},
            "must be None or True or False",
        ),
        ("unet", {"projection_class_embeddings_input_dim": 10}, "be above 48; use the"),
        ("vae", {"shift_factor": [0]}, "a number from -1000 to 1000 or null"),
    ],
    ids=["zeros", "pooled", "shift"],
)
def test_settings_that_cannot_be(tmp_path, part, setting, said):
    configs = tiny_model.XL | {part: tiny_model.XL.get(part, {}) | setting}
    with pytest.raises(UserError, match=said):
        stable_diffusion.of_configs(tmp_path, configs, jnp.float32)


def test_texts_end_as_the_tokenizer_says(folder, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "model")
    place = damaged / "text_encoder_2" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"eos_token_id": 3}))
    with pytest.raises(UserError, match="eos_token_id=3 must be 2 or None or "):
        stable_diffusion.load(damaged)


def test_sizes_are_sdxls_alone_and_parts_must_fit(tiny, folder):
    model = stable_diffusion.load(tiny[0])
    with pytest.raises(UserError, match="are SDXL's, and"):
        stable_diffusion.encode_prompts(model, [PROMPT], TIME_IDS)
    alone = {x: one for x, one in tiny_model.XL.items() if x != "text_encoder_2"}
    with pytest.raises(UserError, match=r"is no text_encoder_2: .* None; copy the"):
        networks.of_configs(alone, jnp.float32)
    other = tiny_model.XL | {"text_encoder_2": tiny_model.XL["text_encoder"]}
    with pytest.raises(UserError, match="projection_dim=512 must be 20, as its unet"):
        networks.of_configs(other, jnp.float32)
    layers = {"transformer_layers_per_block": [1, [2, 2]]}
    with pytest.raises(UserError, match="reverse_transformer_layers_per_block=None"):
        unet.Config.from_dict(UNET | layers | {"layers_per_block": 2})
    model = stable_diffusion.load(folder, jnp.bfloat16)
    assert (model.denoiser.dtype, model.vae.dtype) == (jnp.bfloat16, jnp.float32)
