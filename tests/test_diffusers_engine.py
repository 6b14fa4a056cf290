"""Pipelines of random weights, made on the spot, that diffusers draws for an audit."""

import json

import numpy as np
import pytest

from ddpo_fair import audit
from ddpo_fair.auditing import diffusers_engine
from ddpo_fair.errors import UserError
from ddpo_fair.models import lora_files

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIDE, WIDTH = 16, 16  # of images; of embeddings


def clip(folder, projection=False):
    """A tokenizer of single bytes, and an encoder."""
    folder.mkdir(parents=True)
    units = [chr(x) for x in range(33, 127)]
    words = [*units, *(x + "</w>" for x in units), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return tokenizer, getattr(transformers, name)(config)


def t5():
    """A tokenizer of letters, and an encoder."""
    letters = [(x, -2.0) for x in "\u2581abcdefghijklmnopqrstuvwxyz"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0)]
    tokenizer = transformers.T5TokenizerFast(vocab=[*special, *letters])
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return tokenizer, transformers.T5EncoderModel(config)


def vae(channels):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        shift_factor=0.0,
        scaling_factor=1.0,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
    )


def unet(**changes):
    common = dict(
        block_out_channels=(8, 8),
        layers_per_block=1,
        sample_size=SIDE // 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return diffusers.UNet2DConditionModel(**common, **changes)


def sd1(folder):
    tokenizer, encoder = clip(folder / "clip")
    return diffusers.StableDiffusionPipeline(
        vae=vae(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
    )


def sdxl(folder):
    (one, first), (two, second) = clip(folder / "1"), clip(folder / "2", True)
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
    )
    network.register_to_config(cross_attention_dim=2 * WIDTH)
    network = diffusers.UNet2DConditionModel.from_config(network.config)
    return diffusers.StableDiffusionXLPipeline(
        vae(4), first, second, one, two, network, diffusers.EulerDiscreteScheduler()
    )


def sd3(folder):
    (one, first), (two, second) = clip(folder / "1", True), clip(folder / "2", True)
    network = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    other, third = t5()
    return diffusers.StableDiffusion3Pipeline(
        network, scheduler, vae(4), first, one, second, two, third, other
    )


def flux(folder):
    tokenizer, encoder = clip(folder / "clip")
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    other, third = t5()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(
        scheduler, vae(1), encoder, tokenizer, third, other, network
    )


@pytest.fixture(
    scope="module",
    params=[sd1, *(pytest.param(x, marks=pytest.mark.long) for x in (sdxl, sd3, flux))],
)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    request.param(folder).save_pretrained(folder / "model")
    return folder / "model"


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
    folder, mark = tmp_path / "model", tmp_path / "ran"
    sd1(tmp_path).save_pretrained(folder, safe_serialization=fault != "pickle")
    code = f"open({str(mark)!r}, 'w')"
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
    pipeline = sd1(tmp_path)
    pipeline.save_pretrained(tmp_path / "model")
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
            diffusers_engine.load(str(tmp_path / "model"), given),
            "a nurse",
            [1],
            num_inference_steps=1,
        )[0]
        for given in (None, str(lora))
    )
    assert np.abs(one - np.int64(other)).max() > 10
    with pytest.raises(UserError, match="nor a folder with"):
        lora_files.identity(tmp_path / "model")


def test_a_seed_is_of_the_prompt_and_the_image():
    given = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    seeds = {diffusers_engine.seed(*one) for one in given}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


def test_an_audit_draws_once_and_goes_on(tmp_path):
    sd1(tmp_path).save_pretrained(tmp_path / "model")
    arguments = [
        f"--model={tmp_path / 'model'}",
        "--engine=diffusers",
        "--steps=1",
        "--prompt=a nurse",
        "--attributes=skin_tone",
        "--classifier=typology",
        "--confidence=0",
        f"--output={tmp_path / 'audit'}",
    ]
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
