"""The published sizes: trees against torch's in the fast tests, outputs in the slow."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import official_configs
import parity
import pytest
from flax import traverse_util

from ddpo_fair.models import clip, unet, vae, vit, weights

TOKENS = jax.ShapeDtypeStruct((1, 77), jnp.int32)


def make(kind, config):
    """Our network of a kind and the inputs that its template is made of."""
    module, name, inputs = {
        "unet": (unet, "UNet", ((1, 64, 64, 4), (1,), (1, 77))),
        "vae": (vae, "AutoencoderKL", ((1, 64, 64, 3),)),
        "text": (clip, "TextEncoder", (TOKENS,)),
        "vit": (vit, "ImageClassifier", ((1, 224, 224, 3),)),
    }[kind]
    parsed = module.Config.from_dict(config)
    if kind == "unet":
        inputs = (*inputs[:2], (*inputs[2], parsed.cross_attention_dim))
    return getattr(module, name)(parsed), inputs


def make_torch(kind, config):
    """The reference's network of a kind."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    if kind in ("unet", "vae"):
        classes = (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL)
        return classes[kind == "vae"].from_config(config)
    if kind == "text":
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    return transformers.ViTForImageClassification(transformers.ViTConfig(**config))


def torch_shapes(template):
    """Shapes of a template under torch's names, in torch's order of axes."""
    return {
        weights._tensor_name(path): weights._torch_shape(path, leaf.shape)
        for path, leaf in traverse_util.flatten_dict(template).items()
    }


# Number of parameters as published, or counted by torch.
@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        ("unet", "UNET_1_5", 859_520_964),
        ("unet", "UNET_2_1", 865_910_724),
        ("vae", "VAE_1_5", 83_653_863),
        ("text", "TEXT_1_5", 123_060_480),
        ("text", "TEXT_2_1", 340_387_840),
    ],
)
def test_tree_has_torch_names_and_shapes(torch, kind, name, count):
    config = getattr(official_configs, name)
    network, inputs = make(kind, config)
    found = torch_shapes(weights.init_template(network, *inputs))
    with torch.device("meta"):
        reference = make_torch(kind, config)
    # transformers 5 left out the prefix that published files have
    prefix = "text_model." if kind == "text" else ""
    expected = {prefix + k: tuple(p.shape) for k, p in reference.named_parameters()}
    assert found == expected
    assert sum(map(np.prod, found.values())) == count


def draw_inputs(kind):
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, dtype=np.float32)

    if kind == "unet":
        return normal(1, 64, 64, 4), np.array([601], np.int32), normal(1, 77, 768)
    if kind == "text":
        return (random.integers(0, 49408, (1, 77), np.int32),)
    return (normal(1, 224, 224, 3),)


def run_torch(torch, reference, kind, inputs):
    """The reference's output, channels last."""
    with torch.no_grad():
        if kind == "text":
            tokens = torch.from_numpy(inputs[0]).long()
            return reference(tokens).last_hidden_state.numpy()
        images = parity.to_torch(torch, inputs[0])
        if kind == "vit":
            return reference(images).logits.numpy()
        others = [torch.from_numpy(x) for x in inputs[1:]]
        return parity.to_numpy(reference(images, *others).sample)


def load_measured(folder, template):
    """The weights of a folder, and the most memory that loading took, in bytes."""
    tracemalloc.start()  # NumPy tells it of its arrays
    params = weights.load(folder, template)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return params, peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("unet", "UNET_1_5"),
        ("vae", "VAE_1_5"),
        ("text", "TEXT_1_5"),
        ("vit", "VIT_BASE"),
    ],
)
def test_full_size_loads_lean_and_equals_torch(torch, tmp_path, kind, name):
    config = getattr(official_configs, name)
    inputs = draw_inputs(kind)
    reference = parity.randomise_norms(torch, make_torch(kind, config))
    expected = run_torch(torch, reference, kind, inputs)
    reference.save_pretrained(tmp_path)
    del reference  # 3.4 GB for the UNet

    network, shapes = make(kind, weights.read_config(tmp_path))
    params, peak = load_measured(tmp_path, weights.init_template(network, *shapes))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    output = jax.jit(network.apply)({"params": params}, *inputs)
    # float32 sums in another order, over up to 11,520 terms and some 100 layers
    error = parity.relative_error(output, expected)
    print(f"{name}: relative error {error:.1e}, peak of loading {peak / size:.3f}")
    assert error < 1e-4
    assert peak < 1.3 * size
