import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from ddpo_fair import errors
from ddpo_fair.models import unet, weights

SHAPES = ((2, 16, 16, 4), (2,), (2, 7, 24))

# Two levels, attention on one, as Stable Diffusion 1.x: convolutional projections.
VERSION_1 = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
# As 2.x: linear projections, heads per level; and two layers, plain level first.
VERSION_2 = VERSION_1 | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "upcast_attention": True,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
}


def draw_inputs():
    random = np.random.default_rng(0)
    latents = random.standard_normal(SHAPES[0], dtype=np.float32)
    text_states = random.standard_normal(SHAPES[2], dtype=np.float32)
    return latents, np.array([3, 981], np.int32), text_states


def save_torch(torch, folder, options):
    diffusers = pytest.importorskip("diffusers")
    network = parity.randomise(torch, diffusers.UNet2DConditionModel(**options))
    network.save_pretrained(folder)
    return network


def load(folder):
    network = unet.UNet(unet.Config.from_dict(weights.read_config(folder)))
    template = weights.init_template(network, *SHAPES)
    return network, weights.load(folder, template)


def run_torch(torch, network, latents, timesteps, text_states):
    return network(
        parity.to_torch(torch, latents),
        torch.from_numpy(timesteps),
        torch.from_numpy(text_states),
    ).sample


def test_output_and_gradient_equal_torch(torch, tmp_path):
    reference = save_torch(torch, tmp_path, VERSION_1)
    network, params = load(tmp_path)
    inputs = draw_inputs()
    cotangent = np.random.default_rng(1).standard_normal(SHAPES[0], dtype=np.float32)

    expected = run_torch(torch, reference, *inputs)
    (expected * parity.to_torch(torch, cotangent)).sum().backward()
    gradient_folder = tmp_path / "gradient"
    gradient_folder.mkdir()
    save_gradient(reference, gradient_folder)
    expected_gradient = weights.load(gradient_folder, params)

    @jax.jit
    def value_and_gradient(params):
        output, pullback = jax.vjp(
            lambda p: network.apply({"params": p}, *inputs), params
        )
        return output, pullback(jnp.asarray(cotangent))[0]

    output, gradient = value_and_gradient(params)
    # float32 sums in another order through some 30 layers
    assert parity.relative_error(output, parity.to_numpy(expected)) < 1e-4
    found, wanted = parity.flatten(gradient), parity.flatten(expected_gradient)
    assert found.keys() == wanted.keys()
    worst = max(parity.relative_error(found[k], wanted[k]) for k in found)
    assert worst < 1e-3


def save_gradient(reference, folder):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    gradient = {k: p.grad.contiguous() for k, p in reference.named_parameters()}
    safetensors_torch.save_file(gradient, folder / "model.safetensors")


def test_version_2_options_equal_torch(torch, tmp_path):
    reference = save_torch(torch, tmp_path, VERSION_2)
    network, params = load(tmp_path)
    inputs = draw_inputs()
    with torch.no_grad():
        expected = run_torch(torch, reference, *inputs)
    output = jax.jit(network.apply)({"params": params}, *inputs)
    assert output.dtype == jnp.float32
    assert parity.relative_error(output, parity.to_numpy(expected)) < 1e-4


def test_options_that_change_nothing_are_read():
    nothing = {"upcast_attention": None, "use_linear_projection": None, "decay": 0.9999}
    nothing |= {"optimization_step": 500, "class_embed_type": None, "_unknown": 1}
    found = unet.Config.from_dict(VERSION_1 | nothing)
    assert found == unet.Config.from_dict(VERSION_1)


# One level: what is asked below does not depend on their number.
ONE_LEVEL = VERSION_1 | {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


@pytest.fixture(scope="module")
def one_level():
    """A network, its parameters and inputs."""
    network = unet.UNet(unet.Config.from_dict(ONE_LEVEL))
    latents, timesteps, text_states = draw_inputs()
    inputs = (latents[:, :8, :8], timesteps, text_states)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    return network, parity.draw(weights.init_template(network, *shapes)), inputs


@pytest.mark.long
def test_recomputing_changes_no_gradient(one_level):
    network, params, inputs = one_level
    gradients = []
    for remat in (False, True, "dots_saveable"):
        of = unet.UNet(network.config, remat=remat)

        def loss(params, of=of):
            return jnp.square(of.apply({"params": params}, *inputs)).mean()

        gradients.append(parity.flatten(jax.jit(jax.grad(loss))(params)))
    expected, *recomputed = gradients
    for found in recomputed:
        assert found.keys() == expected.keys()
        # XLA fuses the recomputed blocks differently
        worst = max(parity.relative_error(found[k], expected[k]) for k in found)
        assert worst < 1e-4


def test_bfloat16_keeps_float32_parameters_and_output(one_level):
    network, params, inputs = one_level
    half = unet.UNet(network.config, jnp.bfloat16)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    template = weights.init_template(half, *shapes)
    assert {x.dtype for x in jax.tree.leaves(template)} == {jnp.dtype(jnp.float32)}
    expected, output = (
        jax.jit(of.apply)({"params": params}, *inputs) for of in (network, half)
    )
    assert output.dtype == jnp.float32
    # bfloat16 keeps 8 bits: 0.4 % a rounding, some 10 layers
    assert 0 < parity.relative_error(output, expected) < 0.05


def test_scalar_timestep_means_all(one_level):
    network, params, (latents, _, text_states) = one_level
    apply = jax.jit(network.apply)
    one = apply({"params": params}, latents, jnp.int32(7), text_states)
    every = apply({"params": params}, latents, jnp.full((2,), 7), text_states)
    np.testing.assert_allclose(one, every, rtol=1e-5, atol=1e-6)  # fused differently


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time'"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type='UNetMidBlock2D'"),
        ({"a_new_option": 3}, "a_new_option=3"),
        ({"down_block_types": ["AttnDownBlock2D"] * 2}, "AttnDownBlock2D"),
        ({"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block"),
        ({"attention_head_dim": 5}, "attention_head_dim=5"),
        ({"norm_num_groups": 5}, "norm_num_groups=5"),
        ({"block_out_channels": [32, 64, 64]}, "down_block_types"),
    ],
)
def test_unsupported_option_is_refused_by_name(change, named):
    with pytest.raises(errors.UserError, match=named):
        unet.Config.from_dict(VERSION_1 | change)


def test_options_that_are_off_are_accepted():
    off = {"class_embed_type": None, "a_new_option": None, "_class_name": "X"}
    assert unet.Config.from_dict(VERSION_1 | off) == unet.Config.from_dict(VERSION_1)


def test_latents_that_cannot_be_halved_are_refused():
    network = unet.UNet(unet.Config.from_dict(VERSION_1))
    with pytest.raises(errors.UserError, match="15 x 16 pixels"):
        weights.init_template(network, (1, 15, 16, 4), *SHAPES[1:])
