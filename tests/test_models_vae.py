import jax
import numpy as np
import parity
import pytest

from ddpo_fair import errors
from ddpo_fair.models import vae, weights

OPTIONS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
}
# As the embedded model: more latent channels, no attention; and three levels.
PLAIN = OPTIONS | {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 8,
    "mid_block_add_attention": False,
}
IMAGES = (2, 16, 16, 3)


def save_torch(torch, folder, options):
    diffusers = pytest.importorskip("diffusers")
    network = parity.randomise(torch, diffusers.AutoencoderKL(**options))
    network.save_pretrained(folder)
    return network


def load(folder):
    network = vae.AutoencoderKL(vae.Config.from_dict(weights.read_config(folder)))
    return network, weights.load(folder, weights.init_template(network, IMAGES))


def draw_images():
    return np.random.default_rng(0).uniform(-1, 1, IMAGES).astype(np.float32)


@pytest.mark.parametrize("options", [OPTIONS, PLAIN], ids=["attention", "plain"])
def test_encoder_and_decoder_equal_torch(torch, tmp_path, options):
    reference = save_torch(torch, tmp_path, options)
    network, params = load(tmp_path)
    images = draw_images()
    with torch.no_grad():
        posterior = reference.encode(parity.to_torch(torch, images)).latent_dist
        decoded = reference.decode(posterior.mean).sample

    def encode_and_decode(params, images):
        mean, log_var = network.apply({"params": params}, images, method="encode")
        decoded = network.apply({"params": params}, mean, method="decode")
        return mean, log_var, decoded

    found = jax.jit(encode_and_decode)(params, images)
    expected = (posterior.mean, posterior.logvar, decoded)
    for ours, theirs in zip(found, expected, strict=True):
        # float32 sums in another order
        assert parity.relative_error(ours, parity.to_numpy(theirs)) < 1e-4


def test_log_variance_is_clipped_as_in_torch(torch, tmp_path):
    save_torch(torch, tmp_path, OPTIONS)
    network, params = load(tmp_path)
    # the last four of eight channels are the log-variances
    params["quant_conv"]["bias"] = np.array([0] * 4 + [99, -99, 0, 0], np.float32)
    _, log_var = network.apply({"params": params}, draw_images(), method="encode")
    assert (log_var[..., 0] == 20).all()
    assert (log_var[..., 1] == -30).all()


def test_torch_opens_what_we_save(torch, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    reference = save_torch(torch, tmp_path, PLAIN)
    _, params = load(tmp_path)
    reopened = parity.reopen(diffusers.AutoencoderKL, tmp_path, params)
    images = parity.to_torch(torch, draw_images())
    with torch.no_grad():
        expected, output = reference(images).sample, reopened(images).sample
    np.testing.assert_array_equal(output.numpy(), expected.numpy())


def test_attention_is_read_under_its_old_names(torch, tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    save_torch(torch, tmp_path, OPTIONS)
    _, expected = load(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = safetensors_torch.load_file(file)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value"}
    old_names["to_out.0"] = "proj_attn"
    renamed = 0
    for name in list(tensors):
        for new, old in old_names.items():
            if f".{new}." in name:
                tensors[name.replace(new, old)] = tensors.pop(name)
                renamed += 1
    assert renamed == 16  # two networks, four layers, weight and bias
    safetensors_torch.save_file(tensors, file)
    _, found = load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shift_factor": 0.1}, "shift_factor=0.1"),
        ({"use_quant_conv": False}, "use_quant_conv=False"),
        ({"latents_mean": [0.0] * 4}, "latents_mean="),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "AttnDownEncoderBlock"),
        ({"norm_num_groups": 5}, "norm_num_groups=5"),
        ({"scaling_factor": 1e-38}, "scaling_factor=1e-38 must be a number from"),
    ],
)
def test_unsupported_option_is_refused_by_name(change, named):
    with pytest.raises(errors.UserError, match=named):
        vae.Config.from_dict(OPTIONS | change)
