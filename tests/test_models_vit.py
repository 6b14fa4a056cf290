import jax
import numpy as np
import parity
import pytest

from ddpo_fair import errors
from ddpo_fair.models import vit, weights

OPTIONS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "id2label": {0: "female", 1: "male", 2: "unsure"},
    "label2id": {"female": 0, "male": 1, "unsure": 2},
}
PIXELS = (3, 16, 16, 3)


def save_torch(torch, folder, **changes):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**OPTIONS | changes)
    network = parity.randomise(torch, transformers.ViTForImageClassification(config))
    network.save_pretrained(folder)
    return network


def load(folder):
    network = vit.ImageClassifier(vit.Config.from_dict(weights.read_config(folder)))
    return network, weights.load(folder, weights.init_template(network, PIXELS))


def draw_pixels():
    return np.random.default_rng(0).standard_normal(PIXELS, dtype=np.float32)


@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": False, "layer_norm_eps": 1e-3}],
    ids=["default", "no bias"],
)
def test_logits_equal_torch(torch, tmp_path, changes):
    reference = save_torch(torch, tmp_path, **changes)
    network, params = load(tmp_path)
    pixels = draw_pixels()
    with torch.no_grad():
        expected = reference(parity.to_torch(torch, pixels)).logits
    logits = jax.jit(network.apply)({"params": params}, pixels)
    assert network.config.id2label == ("female", "male", "unsure")
    # float32 sums in another order
    assert parity.relative_error(logits, expected.numpy()) < 1e-4


def test_torch_opens_what_we_save(torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    reference = save_torch(torch, tmp_path)
    _, params = load(tmp_path)
    cls = transformers.ViTForImageClassification
    reopened = parity.reopen(cls, tmp_path, params, "model.safetensors")
    pixels = parity.to_torch(torch, draw_pixels())
    with torch.no_grad():
        expected, output = reference(pixels).logits, reopened(pixels).logits
    np.testing.assert_array_equal(output.numpy(), expected.numpy())


def test_pooler_of_older_files_is_ignored(torch, tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    save_torch(torch, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors_torch.load_file(file)
    tensors["vit.pooler.dense.weight"] = torch.zeros(32, 32)
    tensors["vit.pooler.dense.bias"] = torch.zeros(32)
    safetensors_torch.save_file(tensors, file)
    load(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "deit"}, "model_type='deit' must be .* choose a classifier"),
        ({"architecture": "vit_base_patch16_224"}, "architecture=.*not timm"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"image_size": 20}, "image_size=20"),
        ({"image_size": [16, 16]}, "image_size="),
        ({"num_attention_heads": 5}, "num_attention_heads=5"),
        ({"id2label": {1: "a", 2: "b"}}, "id2label="),
    ],
)
def test_unsupported_option_is_refused_by_name(change, named):
    with pytest.raises(errors.UserError, match=named):
        vit.Config.from_dict(OPTIONS | change)


def test_images_of_another_size_are_refused():
    network = vit.ImageClassifier(vit.Config.from_dict(OPTIONS))
    with pytest.raises(errors.UserError, match=r"\(32, 32, 3\)"):
        weights.init_template(network, (1, 32, 32, 3))
