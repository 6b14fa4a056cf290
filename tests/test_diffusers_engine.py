"""Pipelines of random weights, made on the spot, that diffusers draws for an audit."""

import json

import numpy as np
import parity
import pytest
import tiny_model

from ddpo_fair import audit
from ddpo_fair.auditing import diffusers_engine
from ddpo_fair.errors import UserError
from ddpo_fair.models import lora_files

diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.torch")
torch = pytest.importorskip("torch")

SIDE = 16  # of images
CONFIGS = {
    "sd1": tiny_model.CONFIGS,
    "sdxl": tiny_model.XL,
    "sd3": tiny_model.CONFIGS_3,
}


def save(place, kind="sd1"):
    """The folder of a pipeline, below a place."""
    folder = place / kind
    if kind in CONFIGS:
        tiny_model.save_model(folder, configs=CONFIGS[kind])
        if kind == "sd3":
            tiny_model.add_t5(folder)
        return parity.write_index(folder)
    # Flux packs its latents; all but its network is the others'.
    one, three = (
        diffusers.DiffusionPipeline.from_pretrained(save(place, x))
        for x in ("sd1", "sd3")
    )
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4 * 4, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=40,
        pooled_projection_dim=16, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    texts = (one.text_encoder, one.tokenizer, three.text_encoder_3, three.tokenizer_3)
    pipeline = diffusers.FluxPipeline(three.scheduler, three.vae, *texts, network)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "sd1",
        *(pytest.param(x, marks=pytest.mark.long) for x in ("sdxl", "sd3", "flux")),
    ],
)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("saved"), request.param)


def test_an_image_is_that_of_its_seed_in_any_batch(saved):
    pipeline = diffusers_engine.load(str(saved))
    how = {"num_inference_steps": 2, "height": SIDE, "width": SIDE}
    seeds = [diffusers_engine.seed(0, "a nurse", image) for image in range(3)]
    together = diffusers_engine.draw(pipeline, "a nurse", seeds, **how)
    alone = diffusers_engine.draw(pipeline, "a nurse", seeds[2:], **how)
    assert {x.shape for x in together} == {(SIDE, SIDE, 3)}
    assert np.ptp(together[2] - np.int64(alone[0])) <= 2  # float32 in another order
    assert np.ptp(together[0] - np.int64(together[1])) > 20
    # The same as diffusers by itself.
    again = diffusers.DiffusionPipeline.from_pretrained(saved)
    generator = torch.Generator().manual_seed(seeds[2])
    (image,) = again("a nurse", generator=generator, **how).images
    assert np.abs(np.int64(np.asarray(image)) - alone[0]).max() <= 1
    with pytest.raises(UserError, match="has no eta_of_mine; leave it out"):
        diffusers_engine.draw(pipeline, "a nurse", [1], eta_of_mine=1.0)


@pytest.mark.parametrize("fault", ["pickle", "code", "index", "class"])
def test_pickles_and_code_are_refused(tmp_path, fault):
    folder, mark = save(tmp_path), tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')"
    for file in folder.rglob("*.safetensors") if fault == "pickle" else ():
        torch.save(safetensors.load_file(file), file.with_suffix(".bin"))
        file.unlink()
    if fault == "code":
        (folder / "unet" / "own.py").write_text(code)
    if fault in ("index", "class"):
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = ["own", "Own"] if fault == "index" else "DDPMPipeline"
        (folder / "own.py").write_text(code)
        (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="cannot be loaded by diffusers"):
        diffusers_engine.load(str(folder))
    assert not mark.exists()


def test_adapters_change_what_is_drawn(tmp_path):
    peft = pytest.importorskip("peft")
    model = str(save(tmp_path))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model)
    config = peft.LoraConfig(
        r=2, target_modules=["conv_out"], init_lora_weights="gaussian"
    )
    pipeline.unet.add_adapter(config)
    for name, weight in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=10)
    state = peft.get_peft_model_state_dict(pipeline.unet)
    lora = tmp_path / "lora"
    pipeline.save_lora_weights(lora, unet_lora_layers=state)
    one, other = (
        diffusers_engine.draw(
            diffusers_engine.load(model, given), "a nurse", [1], num_inference_steps=1
        )[0]
        for given in (None, str(lora))
    )
    assert np.abs(one - np.int64(other)).max() > 10
    with pytest.raises(UserError, match="nor a folder with"):
        lora_files.identity(model)


def test_a_seed_is_of_the_prompt_and_the_image():
    given = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    seeds = {diffusers_engine.seed(*one) for one in given}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


def test_an_audit_draws_once_and_goes_on(tmp_path):
    arguments = ["--engine=diffusers", "--steps=1", "--prompt=a nurse"]
    arguments += ["--attributes=skin_tone", "--classifier=typology", "--confidence=0"]
    arguments += [f"--model={save(tmp_path)}", f"--output={tmp_path / 'audit'}"]
    assert audit.main([*arguments, "--images-per-prompt=2"]) == 0
    images = tmp_path / "audit" / "images"
    first, second = sorted(images.rglob("*.png"))
    kept, drawn = first.read_bytes(), second.read_bytes()
    first.write_bytes(drawn)
    second.unlink()
    assert audit.main([*arguments, "--images-per-prompt=3", "--batch=2"]) == 0
    assert first.read_bytes() == drawn != kept  # what is there is not drawn again
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["images"] == 3 and found["source"]["engine"] == "diffusers"
    assert audit.main([*arguments, "--images-per-prompt=3", "--seed=1"]) == 2
