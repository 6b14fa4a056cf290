import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from ddpo_fair import errors
from ddpo_fair.models import clip, weights

OPTIONS = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 9,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "pad_token_id": 49,
}
TOKENS = np.array(
    [[48, 3, 7, 1, 49, 49, 49, 49, 49], [48, 9, 9, 12, 30, 31, 2, 5, 49]], np.int32
)


def save_torch(torch, folder, **changes):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(**OPTIONS | changes)
    network = parity.randomise(torch, transformers.CLIPTextModel(config))
    network.save_pretrained(folder)
    return network


def load(folder):
    network = clip.TextEncoder(clip.Config.from_dict(weights.read_config(folder)))
    shape = jax.ShapeDtypeStruct(TOKENS.shape, jnp.int32)
    return network, weights.load(folder, weights.init_template(network, shape))


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_output_equals_torch(torch, tmp_path, hidden_act):
    reference = save_torch(torch, tmp_path, hidden_act=hidden_act)
    network, params = load(tmp_path)
    with torch.no_grad():
        expected = reference(torch.from_numpy(TOKENS).long()).last_hidden_state
    output = jax.jit(network.apply)({"params": params}, TOKENS)
    # float32 sums in another order
    assert parity.relative_error(output, expected.numpy()) < 1e-4


def hub_layout(tensors):
    return {f"text_model.{name}": tensor for name, tensor in tensors.items()}


def test_hub_layout_with_position_ids_is_read(torch, tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    save_torch(torch, tmp_path)
    _, expected = load(tmp_path)  # transformers 5 saves without text_model.
    file = tmp_path / "model.safetensors"
    tensors = hub_layout(safetensors_torch.load_file(file))
    tensors["text_model.embeddings.position_ids"] = torch.arange(9)[None]
    safetensors_torch.save_file(tensors, file)
    _, found = load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_torch_opens_what_we_save_in_hub_layout(torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    reference = save_torch(torch, tmp_path)
    _, params = load(tmp_path)
    name = "model.safetensors"
    reopened = parity.reopen(transformers.CLIPTextModel, tmp_path, params, name)
    saved = safetensors_torch.load_file(tmp_path / "ours" / name)
    theirs = safetensors_torch.load_file(tmp_path / name)
    assert saved.keys() == hub_layout(theirs).keys()
    tokens = torch.from_numpy(TOKENS).long()
    with torch.no_grad():
        expected = reference(tokens).last_hidden_state
        output = reopened(tokens).last_hidden_state
    np.testing.assert_array_equal(output.numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "t5"}, "model_type='t5'.*use a Stable Diffusion"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"num_attention_heads": 5}, "num_attention_heads=5"),
    ],
)
def test_unsupported_option_is_refused_by_name(change, named):
    with pytest.raises(errors.UserError, match=named):
        clip.Config.from_dict(OPTIONS | change)


def test_the_config_of_a_whole_clip_holds_it():
    whole = {"model_type": "clip", "vision_config": {}, "text_config": OPTIONS}
    assert clip.Config.from_dict(whole) == clip.Config.from_dict(OPTIONS)


def test_too_many_tokens_are_refused():
    network = clip.TextEncoder(clip.Config.from_dict(OPTIONS))
    with pytest.raises(errors.UserError, match="10 tokens"):
        weights.init_template(network, jax.ShapeDtypeStruct((1, 10), jnp.int32))
