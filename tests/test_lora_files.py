"""LoRA of others, merged into the model that is trained: as diffusers merges them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import refusals
import safetensors.numpy
import tiny_model
import tiny_run

from ddpo_fair import exporting, train
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.evaluation import evaluation_models, evaluation_plan
from ddpo_fair.models import lora, lora_files, lora_names, rows, weights
from ddpo_fair.prompts import Prompt
from ddpo_fair.training import assembly, description, run_folder, saved_run

RANK, ALPHA = 2, 3.0
XL = tiny_model.XL | {  # with every kind of layer that SDXL has
    "unet": tiny_model.XL["unet"]
    | {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": [1, rows.MANY],
    }
}
FLOW = tiny_model.CONFIGS_3["scheduler"]["_class_name"]
FAMILIES = {
    "sd1": (tiny_model.CONFIGS, "DDIMScheduler"),
    "xl": (XL, "EulerDiscreteScheduler"),
    "sd3": (tiny_model.CONFIGS_3, FLOW),
}
HALVES = {
    "kohya": ("lora_down", "lora_up"),
    "diffusers": ("lora_A", "lora_B"),
    "older": ("lora.down", "lora.up"),
}


def save_lora(folder, style):
    """A file of random adapters of all layers of a model but the VAE's, and these."""
    kernels = rows.apart(lora.kernels_of(stable_diffusion.load(folder).params))
    names = [x for x in lora_names.layers(kernels).items() if x[0][:5] == "lora_"]
    if not any(layer.startswith("text_encoder_2") for layer in kernels):
        names.reverse()  # the last are SDXL's, its UNet's in Stability AI's code
    kohyas = {layer: name for name, layer in names}
    random, tensors, adapters = np.random.default_rng(0), {}, {}
    for layer in filter(kohyas.__contains__, kernels):  # always in the same order
        *window, fan_in, fan_out = kernels[layer].shape
        down = random.standard_normal((RANK, fan_in, *window), np.float32)
        up = random.standard_normal((fan_out, RANK, *(1 for _ in window)), np.float32)
        stem = kohyas[layer] if style == "kohya" else layer
        for half, array in zip(HALVES[style], (down, up), strict=True):
            if layer.startswith("text"):
                half = half.replace("lora.", "lora_linear_layer.")
            tensors[f"{stem}.{half}.weight"] = array
        if style == "kohya":
            tensors[f"{stem}.alpha"] = np.asarray(ALPHA, np.float32)
        adapters[layer] = down, up
    path = folder / f"{style}.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path, adapters


@pytest.mark.parametrize(
    ("family", "style"),
    [
        ("sd1", "kohya"),
        pytest.param("sd1", "older", marks=pytest.mark.long),
        ("xl", "kohya"),
        ("sd3", "diffusers"),
    ],
)
def test_every_layer_is_merged_as_diffusers_merges_it(torch, tmp_path, family, style):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    configs, scheduler = FAMILIES[family]
    folder = tiny_model.save_model(tmp_path / "model", configs=configs)
    index = exporting._pipeline(configs) | {"scheduler": ["diffusers", scheduler]}
    (folder / "model_index.json").write_text(json.dumps(index))
    path, adapters = save_lora(folder, style)
    before, found = (
        rows.apart(
            lora.kernels_of(stable_diffusion.load(folder, base_lora=file).params)
        )
        for file in ("", str(path))
    )
    absent = dict.fromkeys(name for name in index if name.endswith("_3"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.load_lora_weights(path)
    parts = {layer.partition(".")[0] for layer in found}
    pipeline.fuse_lora(components=sorted(parts - {"vae"}))
    pipeline.unload_lora_weights()
    theirs = {
        f"{part}.{name.replace('text_model.', '')}": tensor.numpy()
        for part in parts
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }
    for layer in found:
        expected = theirs[f"{layer.replace('text_model.', '')}.weight"]
        unmerged, merged = (
            weights.to_torch("kernel", x[layer]) for x in (before, found)
        )
        np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-4)
        assert (np.abs(expected - unmerged).max() > 0.1) == (layer in adapters), layer


@pytest.fixture(scope="module")
def styled(tiny, tmp_path_factory):
    """A run upon a model and a LoRA, its checkpoint 3 random; and the merged weights.

    These are W + alpha / rank * up @ down, written out.
    """
    root = tmp_path_factory.mktemp("styled")
    model = shutil.copytree(tiny[0], root / "model")
    path, adapters = save_lora(model, "kohya")
    config = tiny_model.config(model, tiny[1], root, base_lora=str(path))
    config.train.lora.target_modules = ("conv_out",)
    run = tiny_run.save(config)
    known = {x: description.identity(config, x) for x in ("base_lora", "model")}
    run_folder.write_config(run, config, known)
    params = stable_diffusion.load(model).params
    kernels = lora.kernels_of(params)
    for layer, (down, up) in adapters.items():
        product = np.einsum("or,r...->o...", up.reshape(len(up), RANK), down)
        delta = weights.from_torch("kernel", ALPHA / RANK * product)
        kernels[layer] = kernels[layer] + delta
    return run, lora.replace(params, kernels)


def assert_equal(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        jax.device_get(found),
        expected,
    )


def test_a_run_trains_and_is_measured_upon_the_merged_model(styled, tiny):
    run, expected = styled
    saved = saved_run.read(run)
    made, _ = assembly.build(saved.config)
    assert_equal(made.base, expected["unet"])  # to which the KL is
    prompts = [tiny_model.PROMPTS[0]]
    model = stable_diffusion.load(saved.config.model)
    merged = dataclasses.replace(model, params=expected)
    text = stable_diffusion.encode_prompts(merged, prompts)
    # The encoder multiplies the kernels' rounding: scale * up @ down is up to 17.
    np.testing.assert_allclose(made.text, text, rtol=0, atol=1e-4)
    texts = (Prompt(prompts[0], "trained"),)
    plan = evaluation_plan.Plan({"checkpoint": 3}, (), texts, 1, 0, 1, 1)
    models = evaluation_models.load(saved, plan, [tiny[1]])
    trained = saved_run.trained_params(saved, 3, expected["unet"])
    scale = saved.config.train.lora.scale
    after = lora.merge(expected["unet"], jax.device_get(trained), scale)
    assert_equal(models.unets, {"before": expected["unet"], "after": after})


def test_a_folder_is_exported_whole_and_adapters_alone(styled, tmp_path, capsys):
    run, expected = styled
    saved = saved_run.read(run)
    whole = exporting.export(run, tmp_path / "whole", "diffusers")
    assert not capsys.readouterr().out
    trained = saved_run.trained_params(saved, 3, expected["unet"])
    scale = saved.config.train.lora.scale
    after = lora.merge(expected["unet"], jax.device_get(trained), scale)
    found = stable_diffusion.load(whole).params
    assert_equal(found, {**expected, "unet": after})
    adapters = exporting.export(run, tmp_path / "adapters", "lora")
    assert lora_files.load(adapters, expected).keys() == {"unet.conv_out"}
    assert saved.config.base_lora in capsys.readouterr().out
    card = (adapters / "README.md").read_text()
    assert 'load_lora_weights("kohya.safetensors")\npipeline.fuse_lora()' in card
    digest = description.known(saved.record, "base_lora")["fingerprint"]
    assert f"fingerprint of base_lora | `{digest}`" in card


def test_another_lora_is_another_run(styled, tmp_path):
    saved = saved_run.read(styled[0])
    config, record = saved.config.copy_and_resolve_references(), saved.record
    assert description.differences_of(record, config) == []
    file = shutil.copy(config.base_lora, tmp_path)
    config.base_lora = str(file)  # moved
    now = description.identity(config, "base_lora")
    assert description.differences_of(record, config) == []
    assert description.check(record, "base_lora", str(file), now)
    renamed = lora_files.identity(shutil.copy(file, tmp_path / "my.safetensors"))
    assert description.check(record, "base_lora", "my.safetensors", renamed)
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({x: y + y for x, y in tensors.items() if y.shape}, file)
    now = description.identity(config, "base_lora")
    with pytest.raises(UserError, match=r"kohya\.safetensors differs"):
        description.check(record, "base_lora", str(file), now)
    config.base_lora = ""
    (change,) = description.differences_of(record, config)
    assert change.startswith("base_lora was ") and change.endswith("is now ''")
    none = json.loads(json.dumps(description.of(config, None)))
    (change,) = description.differences_of(none, saved.config)
    assert change.startswith("base_lora was '' and is now ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "is no file, nor a folder with"),
        (
            {"lora_unet_conv_in.lora_mid.weight": (2, 2)},
            "(LoCon with a core, not LoRA)",
        ),
        ({"lora_te2_text_projection.alpha": ()}, "the first: lora_te2_text_projection"),
        (
            {
                "unet.conv_in.lora_A.weight": (2, 3),
                "unet.conv_in.lora_B.weight": (3, 2),
            },
            "unet.conv_in.lora_A.weight of",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(sound, tmp_path, capsys, changes, said):
    file = tmp_path / "strange.safetensors"
    if changes:
        tensors = {x: np.ones(shape, np.float32) for x, shape in changes.items()}
        safetensors.numpy.save_file(tensors, file)
    given = {"base_lora": file, "run.dir": tmp_path}
    arguments = refusals.arguments_of(sound, **given)
    assert said in refusals.refused(train.main, arguments, capsys)
    assert said in refusals.refused(train.main, [*arguments, "--plan"], capsys)
