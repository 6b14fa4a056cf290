"""Stable Diffusion 3 as a whole, tiny: texts, five guided steps, images, a run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy
import tiny_model
import tiny_run

from ddpo_fair import audit, evaluate, exporting, rng
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import networks, sampler, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import run_log
from ddpo_fair.models import (
    layers,
    lora,
    lora_files,
    sd3_transformer,
    sources,
    t5,
    vae,
    weights,
)
from ddpo_fair.training import evaluation, run_folder, saved_run, stopping

CONFIGS_3 = tiny_model.CONFIGS_3
BUCKETS = "relative_attention_num_buckets"
DISTANCE = "relative_attention_max_distance"


NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}  # diffusers must be told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return tiny_model.save_model(folder, configs=tiny_model.CONFIGS_3)


def draw(torch, model, pipeline, prompts, num_steps, guidance):
    """Images by Euler's steps, and PyTorch's two of the same first latents."""
    uncond_embedding, *text = stable_diffusion.encode_prompts(model, ["", *prompts])
    keys = jax.vmap(functools.partial(rng.key, 3))(np.arange(len(prompts)))
    schedule = model.schedule(num_steps, 0.0, "flow_grpo")
    denoise = jax.jit(
        functools.partial(sampler.denoise, sampler.Policy(model, schedule, guidance))
    )
    params = model.params["transformer"]
    latents = denoise(params, keys, np.stack(text), uncond_embedding).latents
    images = stable_diffusion.decode(model, model.params["vae"], latents[:, -1])
    first = parity.to_torch(torch, np.asarray(latents[:2, 0]))
    how = {"guidance_scale": guidance, "num_inference_steps": num_steps}
    with torch.no_grad():
        drawn = pipeline(prompts[:2], latents=first, output_type="np", **how)
    return images, drawn.images


@pytest.mark.parametrize(
    "has_t5",
    [
        pytest.param(False, id="without T5"),
        pytest.param(True, id="with T5", marks=pytest.mark.long),
    ],
)
def test_five_guided_steps_equal_the_pipeline(torch, folder, has_t5):
    diffusers = pytest.importorskip("diffusers")
    if has_t5:
        tiny_model.add_t5(folder)
    model = stable_diffusion.load(folder)
    # T5's 256 states, or one row of zeros that counts as so many
    assert model.text_shape == (16 + (256 if has_t5 else 1) + 1, 40)
    none = {} if has_t5 else dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    place = parity.write_index(folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place, **none)
    pipeline.set_progress_bar_config(disable=True)
    prompts = list(tiny_model.PROMPTS)
    images, expected = draw(torch, model, pipeline, prompts, 5, 4.0)
    assert np.std(expected) > 0.1 and np.std(expected[0] - expected[1]) > 0
    # float32 sums in another order, which guidance multiplies
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-4)


@pytest.mark.long
def test_the_embedded_flow_model_is_diffusers_too_and_draws_what_is_asked(torch):
    diffusers = pytest.importorskip("diffusers")
    folder = sources.model_folder("embedded_flow")
    model = stable_diffusion.load(folder)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        folder, torch_dtype=torch.float32, **NO_T5
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"photo of the face of a {x} chef" for x in ("female", "male")]
    images, expected = draw(torch, model, pipeline, 6 * prompts, 15, 2.0)
    np.testing.assert_allclose(images[:2], expected, rtol=0, atol=1e-3)
    loaded = classifier.load(sources.classifier_folder("embedded"))
    answers = classifier.probabilities(loaded, loaded.params, images)
    asked = np.argmax(answers, axis=1) == np.arange(12) % 2  # female, male
    assert asked.sum() >= 10  # at chance in 2 % of all draws


@pytest.mark.parametrize("long", [layers.LONG, 1])
def test_one_state_counts_as_many_equal_ones(long, monkeypatch):
    monkeypatch.setattr(layers, "LONG", long)
    config = sd3_transformer.Config.from_dict(tiny_model.CONFIGS_3["transformer"])
    one = sd3_transformer.SD3Transformer(config, last_counts=7)
    many = sd3_transformer.SD3Transformer(config)
    size, width = config.sample_size, config.joint_attention_dim
    draw = np.random.default_rng(0).normal
    latents = draw(size=(2, size, size, config.in_channels)).astype(np.float32)
    *states, pooled = draw(size=(5, 2, width)).astype(np.float32)
    inputs = latents, jnp.float32([10, 900])
    few = np.stack([*states, pooled], axis=1)
    params = tiny_model.draw(
        weights.init_template(many, *(x.shape for x in (*inputs, few)))
    )
    repeated = np.stack([*states, *6 * [states[-1]], pooled], axis=1)

    @jax.jit
    def outputs(params):
        texts = (one, few), (many, repeated), (many, few)
        return [of.apply({"params": params}, *inputs, text) for of, text in texts]

    found, expected, other = outputs(params)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(other - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("part", "setting", "said"),
    [
        (
            "scheduler",
            tiny_model.SCHEDULER,
            "must be 'FlowMatchEulerDiscreteScheduler'",
        ),
        ("transformer", {"sample_size": 7}, "patch_size=2 must be a divisor of sample"),
        ("text_encoder", {"hidden_size": 24}, "at most 16,.*they may be swapped"),
        ("text_encoder_3", tiny_model.T5 | {BUCKETS: 3}, f"{BUCKETS}=3 must be 4 or"),
        ("text_encoder_3", tiny_model.T5 | {DISTANCE: 8}, f"{DISTANCE}=8 .*above 8"),
    ],
    ids=["scheduler", "odd", "swapped", "buckets", "distance"],
)
def test_settings_that_cannot_be(tmp_path, part, setting, said):
    configs = CONFIGS_3 | {part: CONFIGS_3.get(part, {}) | setting}
    with pytest.raises(UserError, match=said):
        stable_diffusion.of_configs(tmp_path, configs, jnp.float32)


def test_the_shift_of_a_vae_has_any_sign_and_t5s_words_either_name(tmp_path):
    config = vae.Config.from_dict(CONFIGS_3["vae"] | {"shift_factor": -0.1})
    assert config.shift_factor == -0.1
    tiny_model.add_t5(tmp_path)
    place = tmp_path / networks.TEXT_3 / "model.safetensors"
    tensors = safetensors.numpy.load_file(place)
    expected = tensors.pop("shared.weight")
    tensors["encoder.embed_tokens.weight"] = expected
    safetensors.numpy.save_file(tensors, place)
    encoder = t5.Encoder(t5.Config.from_dict(tiny_model.T5))
    template = weights.init_template(encoder, jax.ShapeDtypeStruct((1, 9), jnp.int32))
    found = weights.load(tmp_path / networks.TEXT_3, template)
    np.testing.assert_array_equal(found["shared"]["embedding"], expected)


def settings(folder, classifier, root, **changes):
    """Of a run of seconds on this model, with Flow-GRPO's noise."""
    return tiny_model.config(
        folder,
        classifier,
        root,
        **{"sample.eta": 0.7, "train.lora.target_modules": ("attn",), **changes},
    )


def test_diffusers_opens_what_is_exported(torch, folder, tiny, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    config = settings(folder, tiny[1], tmp_path)
    run = tiny_run.save(config)
    whole, adapters = (
        exporting.export(run, tmp_path / x, x) for x in ("diffusers", "lora")
    )
    pipeline = diffusers.DiffusionPipeline.from_pretrained(whole, **NO_T5)
    assert type(pipeline) is diffusers.StableDiffusion3Pipeline
    before = type(pipeline.transformer).from_pretrained(folder / "transformer")
    adapted = diffusers.DiffusionPipeline.from_pretrained(
        whole, transformer=before, **NO_T5
    )
    adapted.load_lora_weights(adapters)
    model = stable_diffusion.load(folder)
    base = model.params["transformer"]
    trained = saved_run.trained_params(saved_run.read(run), 3, base)
    trained = jax.tree.map(np.asarray, trained)  # hence nothing is compiled
    again = lora_files.load(adapters, model.params)
    again = lora.adapted(model.params, again)
    for name, kernel in lora.adapted(base, trained, config.train.lora.scale).items():
        np.testing.assert_allclose(
            again[f"transformer.{name}"], kernel, rtol=1e-5, atol=1e-6
        )
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, 8, 8, 4), dtype=np.float32)
    text = random.standard_normal((2, 9, 40), dtype=np.float32)
    times = np.array([3.25, 981.5], np.float32)
    predict = jax.jit(model.denoiser.apply)
    merged = lora.merge(base, trained, config.train.lora.scale)
    of_base, expected = (
        predict({"params": params}, latents, times, text) for params in (base, merged)
    )
    assert parity.relative_error(of_base, expected) > 0.1
    more = (model.denoiser.last_counts - 1) * [text[:, -2:-1]]  # T5's, if it is missing
    states = np.concatenate([text[:, :-1], *more], axis=1)
    for transformer in (pipeline.transformer, adapted.transformer):
        with torch.no_grad():
            found = transformer(
                parity.to_torch(torch, latents),
                torch.from_numpy(states),
                torch.from_numpy(text[:, -1, :16]),
                torch.from_numpy(times),
            ).sample
        assert parity.relative_error(parity.to_numpy(found), expected) < 1e-4
    assert pipeline.transformer.config.qk_norm == "rms_norm"
    card = (whole / "README.md").read_text()
    assert "StableDiffusion3Pipeline" in card and "DDIM" not in card
    with pytest.raises(UserError, match="use --format=lora"):
        exporting.export(run, tmp_path / "kohya", "kohya")


@pytest.mark.long
def test_a_run_trains_resumes_and_is_measured(folder, tiny, tmp_path, monkeypatch):
    changes = {"sample.sde_window": (1, 3), "train.microbatch": 2}  # of four steps
    changes |= {"epochs": 3}
    changes |= {"reward.name": "shift", "advantage.name": "group"}
    whole = settings(folder, tiny[1], tmp_path, **changes, **{"run.name": "whole"})
    tiny_run.train(whole)
    lines = run_log.read(run_folder.path_of(whole))
    assert max(line["ratio_deviation"] for line in lines) <= 1e-5  # on policy
    assert min(line["kl_last"] for line in lines) > 0  # it moves
    broken, stop = whole.copy_and_resolve_references(), stopping.Stop()
    broken.run.name = "broken"
    original = evaluation.evaluate

    def stop_and_evaluate(run, params, epoch, wait):
        stop.requested = True
        return original(run, params, epoch, wait)

    monkeypatch.setattr(evaluation, "evaluate", stop_and_evaluate)
    with pytest.raises(stopping.Interrupted):
        tiny_run.train(broken, stop)
    monkeypatch.undo()
    tiny_run.train(broken)
    one, other = map(run_folder.path_of, (whole, broken))
    assert tiny_run.numbers(one) == tiny_run.numbers(other)
    assert tiny_run.checksums(one)[3] == tiny_run.checksums(other)[3]
    flags = "--images=2", "--sets=trained", "--samplers=0:1:2", "--audit=none"
    assert evaluate.main([f"--run={one}", *flags]) == 0
    measured = json.loads(next(one.glob("evaluation_*/evaluation.json")).read_text())
    by_step = [x["estimate"] for x in measured["kl_to_base"]["nats_per_step"]]
    assert np.flatnonzero(by_step).tolist() == [1, 2]  # finite: of those with noise
    assert "noise from step 1 to 2 alone" in measured["notes"][-1]
    adapters = exporting.export(one, tmp_path / "lora", "lora")
    drawing = {"prompt": tiny_model.PROMPTS[0], "steps": 2, "eta": 0.7, "batch": 1}
    drawing |= {"classifier": tiny[1], "lora": adapters, "confidence": 0.5}
    drawn = audit.model(folder, 8, output=tmp_path / "audit", **drawing)
    assert drawn is not None and len([*(tmp_path / "audit").rglob("*.png")]) >= 8
