"""Stable Diffusion 3 as a whole, tiny: texts, five guided steps, images, a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny_model

from ddpo_fair import rng
from ddpo_fair.diffusion import networks, sampler, stable_diffusion
from ddpo_fair.models import t5, weights

NUM_STEPS, GUIDANCE = 5, 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return tiny_model.save_model(folder, configs=tiny_model.CONFIGS_3)


def add_t5(transformers, folder):
    """A T5 of random weights, whose tokenizer knows some letters, beside the others."""
    pieces = ["<pad>", "</s>", "<unk>", *"▁photfe"]
    vocabulary = [(piece, -1.0) for piece in pieces]
    transformers.T5Tokenizer(vocabulary).save_pretrained(folder / "tokenizer_3")
    encoder = t5.Encoder(t5.Config.from_dict(tiny_model.T5))
    template = weights.init_template(encoder, jax.ShapeDtypeStruct((1, 9), jnp.int32))
    place, name = folder / networks.TEXT_3, "model.safetensors"
    weights.save(place, tiny_model.draw(template), tiny_model.T5, name)


def open_pipeline(diffusers, transformers, folder, has_t5):
    """What PyTorch makes of the folder."""
    text = transformers.CLIPTextModelWithProjection.from_pretrained
    tokens = transformers.CLIPTokenizer.from_pretrained
    third = (None, None)
    if has_t5:
        third = (
            transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_3"),
            transformers.T5Tokenizer.from_pretrained(folder / "tokenizer_3"),
        )
    pipeline = diffusers.StableDiffusion3Pipeline(
        diffusers.SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            tiny_model.CONFIGS_3["scheduler"]
        ),
        diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        text(folder / "text_encoder"),
        tokens(folder / "tokenizer"),
        text(folder / "text_encoder_2"),
        tokens(folder / "tokenizer_2"),
        *third,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("has_t5", [False, True], ids=["without T5", "with T5"])
def test_five_guided_steps_equal_the_pipeline(torch, folder, has_t5):
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    if has_t5:
        add_t5(transformers, folder)
    model = stable_diffusion.load(folder)
    prompts = list(tiny_model.PROMPTS)
    uncond_embedding, *text = stable_diffusion.encode_prompts(model, ["", *prompts])
    assert uncond_embedding.shape == model.text_shape == (16 + 256 + 1, 40)
    keys = jax.vmap(functools.partial(rng.key, 3))(np.arange(len(prompts)))
    policy = sampler.Policy(
        model, model.schedule(NUM_STEPS, 0.0, "flow_grpo"), GUIDANCE
    )
    denoise = jax.jit(functools.partial(sampler.denoise, policy))
    params = model.params["transformer"]
    latents = denoise(params, keys, np.stack(text), uncond_embedding).latents
    images = stable_diffusion.decode(model, model.params["vae"], latents[:, -1])

    first = parity.to_torch(torch, np.asarray(latents[:, 0]))
    pipeline = open_pipeline(diffusers, transformers, folder, has_t5)
    with torch.no_grad():
        expected = pipeline(
            prompts,
            latents=first,
            guidance_scale=GUIDANCE,
            num_inference_steps=NUM_STEPS,
            output_type="np",
        ).images
    assert np.std(expected) > 0.1 and np.std(text[0] - text[1]) > 0
    # float32 sums in another order, which guidance multiplies
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-4)
