"""Our networks against PyTorch's: small ones, and those of the published sizes."""

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import official_configs
import parity
import pytest
from flax import traverse_util

from ddpo_fair import config as configuration
from ddpo_fair import errors
from ddpo_fair.models import clip, rows, sd3_transformer, t5, unet, vae, vit, weights
from ddpo_fair.training import assembly, programs

# Two levels, attention on one, as Stable Diffusion 1.x: convolutional projections.
UNET_1 = {
    "sample_size": 16, "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1,
    "norm_num_groups": 8, "cross_attention_dim": 24, "attention_head_dim": 4,
}  # fmt: skip
# As 2.x: linear projections, heads per level; and two layers, plain level first.
UNET_2 = UNET_1 | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 2,
    "attention_head_dim": (2, 4), "use_linear_projection": True,
    "upcast_attention": True, "freq_shift": 1, "flip_sin_to_cos": False,
}  # fmt: skip
# One level, where their number does not matter.
ONE_LEVEL = UNET_1 | {
    "sample_size": 8, "block_out_channels": (32,), "mid_block_type": None,
    "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",),
}  # fmt: skip
A_ROW = ONE_LEVEL | {"transformer_layers_per_block": rows.MANY}
VAE = {
    "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1,
    "norm_num_groups": 8, "sample_size": 16,
}  # fmt: skip
# As the embedded model: more latent channels, no attention; and three levels.
VAE_PLAIN = VAE | {
    "block_out_channels": (32, 32, 64), "latent_channels": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "mid_block_add_attention": False,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
# As Stable Diffusion 3 and 3.5: 16 channels with a shift, no convolutions between.
VAE_3 = VAE | {
    "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
# As Stable Diffusion 3; the image is smaller than the table of positions.
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4,
    "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
    "joint_attention_dim": 24, "caption_projection_dim": 32,
    "pooled_projection_dim": 20, "pos_embed_max_size": 9, "dual_attention_layers": (),
    "qk_norm": None,
}  # fmt: skip
# As 3.5 Medium: a second attention in the first layer, norms of query and key.
SD35 = SD3 | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "image_size": 16, "patch_size": 8,
    "id2label": {0: "female", 1: "male", 2: "unsure"},
    "label2id": {"female": 0, "male": 1, "unsure": 2},
}  # fmt: skip
TEXT = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 9,
    "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 49,
}  # fmt: skip
TOKENS = np.array(
    [[48, 3, 7, 1, 49, 49, 49, 49, 49], [48, 9, 9, 12, 30, 31, 2, 5, 49]], np.int32
)
# Longer than the distances that have a bias each, and than the largest one.
T5 = {
    "model_type": "t5", "vocab_size": 50, "d_model": 32, "d_kv": 12, "d_ff": 64,
    "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
MODULES = {
    "unet": (unet, unet.UNet), "vae": (vae, vae.AutoencoderKL),
    "sd3": (sd3_transformer, sd3_transformer.SD3Transformer),
    "text": (clip, clip.TextEncoder),
    "text 3": (clip, functools.partial(clip.TextEncoder, projects=True)),
    "t5": (t5, t5.Encoder), "vit": (vit, vit.ImageClassifier),
}  # fmt: skip


def inputs_of(kind, config):
    """Random inputs of a network: two of a small one, one of a published one."""
    random = np.random.default_rng(0)
    size = config.get("sample_size", config.get("image_size", 0))
    count = 1 if size >= 64 or config.get("vocab_size", 0) > 50 else 2
    size = min(size, 224 if kind in ("vae", "vit") else 64)

    def normal(*shape):
        return random.standard_normal((count, *shape), dtype=np.float32)

    if kind == "unet":
        times = np.array([3, 981][-count:], np.int32)
        return normal(size, size, 4), times, normal(7, config["cross_attention_dim"])
    if kind == "sd3":
        times = np.array([3.25, 981.5][-count:], np.float32)
        latents = normal(size, size, config["in_channels"])
        return latents, times, normal(8, config["joint_attention_dim"])
    if kind == "t5":
        return (random.integers(0, 50, (2, 40), np.int32),)
    if kind.startswith("text"):
        if count == 2:
            return (TOKENS,)
        return (random.integers(0, config["vocab_size"], (1, 77), np.int32),)
    images = normal(size, size, 3)
    return (images.clip(-1, 1) if kind == "vae" else images,)


def make(kind, config):
    """Our network of a kind, and the shapes of its parameters."""
    module, network_class = MODULES[kind]
    network = network_class(module.Config.from_dict(config))
    inputs = inputs_of(kind, config)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    return network, weights.init_template(network, *shapes)


def torch_class(kind):
    if kind in ("unet", "sd3", "vae"):
        diffusers = pytest.importorskip("diffusers")
        name = {"unet": "UNet2DConditionModel", "sd3": "SD3Transformer2DModel"}
        return getattr(diffusers, name.get(kind, "AutoencoderKL"))
    transformers = pytest.importorskip("transformers")
    names = {"vit": "ViTForImageClassification", "text": "CLIPTextModel"}
    names |= {"text 3": "CLIPTextModelWithProjection", "t5": "T5EncoderModel"}
    return getattr(transformers, names[kind])


def make_torch(kind, config):
    """The reference's network of a kind."""
    network_class = torch_class(kind)
    if kind in ("unet", "sd3", "vae"):
        return network_class.from_config(config)
    return network_class(network_class.config_class(**config))


def save_torch(torch, folder, kind, config):
    """Such a network with random weights, in a folder."""
    network = parity.randomise(torch, make_torch(kind, config))
    network.save_pretrained(folder)
    return network


def load(kind, folder):
    network, template = make(kind, weights.read_config(folder))
    return network, weights.load(folder, template)


def run_torch(torch, reference, kind, inputs):
    """The reference's output, channels last; with its gradient where it is wanted."""
    if kind == "text 3":
        ids = torch.from_numpy(inputs[0]).long()
        output = reference(ids, output_hidden_states=True)
        states, pooled = output.hidden_states[-2], output.text_embeds
        return torch.cat([states.flatten(1), pooled], dim=1)
    if kind in ("text", "t5"):
        return reference(torch.from_numpy(inputs[0]).long()).last_hidden_state
    images = parity.to_torch(torch, inputs[0])
    if kind == "vit":
        return reference(images).logits
    others = [torch.from_numpy(x) for x in inputs[1:]]
    if kind == "sd3":
        times, text = others
        pooled = text[:, -1, : reference.config.pooled_projection_dim]
        output = reference(images, text[:, :-1], pooled, times)
        return output.sample.permute(0, 2, 3, 1)
    options = {}
    if kind == "unet" and reference.config.addition_embed_type:  # XL's, in the last row
        text = others[1]
        pooled, ids, _ = text[:, -1].tensor_split((1280, 1280 + 6), dim=1)
        others[1], added = text[:, :-1], {"text_embeds": pooled, "time_ids": ids}
        options["added_cond_kwargs"] = added
    return reference(images, *others, **options).sample.permute(0, 2, 3, 1)


def joined(output):
    """What a network returns as one array: a text encoder of XL's returns two."""
    if isinstance(output, jax.Array):
        return output
    return jnp.concatenate([x.reshape(len(x), -1) for x in output], axis=1)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("unet", UNET_2),
        ("vae", VAE_PLAIN),
        ("vae", VAE_3),
        ("sd3", SD3),
        ("vit", VIT),
        ("vit", VIT | {"qkv_bias": False, "layer_norm_eps": 1e-3}),
        ("text", TEXT),
        ("text", TEXT | {"hidden_act": "gelu"}),
        ("text 3", TEXT | {"projection_dim": 20}),
        ("text 3", TEXT | {"projection_dim": 20, "eos_token_id": 2}),  # old files
        ("t5", T5),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_output_equals_torch_and_torch_opens_what_we_save(
    torch, tmp_path, kind, config
):
    reference = save_torch(torch, tmp_path, kind, config)
    network, params = load(kind, tmp_path)
    inputs = inputs_of(kind, config)
    with torch.no_grad():
        expected = run_torch(torch, reference, kind, inputs).numpy()
    output = joined(jax.jit(network.apply)({"params": params}, *inputs))
    assert output.dtype == jnp.float32
    # float32 sums in another order
    assert parity.relative_error(output, expected) < 1e-4
    (file,) = tmp_path.glob("*.safetensors")
    reopened = parity.reopen(torch_class(kind), tmp_path, params, file.name)
    with torch.no_grad():
        again = run_torch(torch, reopened, kind, inputs).numpy()
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(
    ("kind", "config", "tolerance"),
    # float32 sums in another order through some 60 layers, and some 20; equal ones are
    # a row
    [
        ("unet", UNET_1 | {"transformer_layers_per_block": rows.MANY}, 1e-4),
        ("sd3", SD35 | {"num_layers": 1 + rows.MANY + 1}, 1e-5),
    ],
    ids=["unet 1.x", "sd 3.5"],
)
def test_output_and_gradient_equal_torch(torch, tmp_path, kind, config, tolerance):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    reference = save_torch(torch, tmp_path, kind, config)
    network, params = load(kind, tmp_path)
    inputs = inputs_of(kind, config)
    cotangent = np.random.default_rng(1).standard_normal(inputs[0].shape, np.float32)

    expected = run_torch(torch, reference, kind, inputs)
    (expected * torch.from_numpy(cotangent)).sum().backward()
    gradient = {k: p.grad.contiguous() for k, p in reference.named_parameters()}
    # what is no parameter of theirs has no gradient in ours
    gradient |= {k: torch.zeros_like(b) for k, b in reference.named_buffers()}
    (tmp_path / "gradient").mkdir()
    safetensors_torch.save_file(gradient, tmp_path / "gradient" / "model.safetensors")
    wanted = parity.flatten(weights.load(tmp_path / "gradient", params))

    @jax.jit
    def value_and_gradient(params):
        output, pullback = jax.vjp(
            lambda p: network.apply({"params": p}, *inputs), params
        )
        return output, pullback(jnp.asarray(cotangent))[0]

    output, gradient = value_and_gradient(params)
    assert parity.relative_error(output, expected.detach().numpy()) < tolerance
    found = parity.flatten(gradient)
    assert found.keys() == wanted.keys()
    for name in found:
        if np.any(wanted[name]) or np.any(found[name]):
            assert parity.relative_error(found[name], wanted[name]) < 10 * tolerance


@pytest.mark.long
def test_recomputing_changes_no_gradient():
    network, template = make("unet", A_ROW)
    params, inputs = parity.draw(template), inputs_of("unet", A_ROW)
    gradients = []
    config = configuration.defaults()
    for config.train.remat in ("none", "full", "dots_saveable"):
        of = unet.UNet(network.config, remat=assembly.remat_of(config))

        def loss(params, of=of):
            return jnp.square(of.apply({"params": params}, *inputs)).mean()

        gradients.append(parity.flatten(jax.jit(jax.grad(loss))(params)))
    expected, *recomputed = gradients
    for found in recomputed:
        assert found.keys() == expected.keys()
        # XLA fuses the recomputed blocks differently
        worst = max(parity.relative_error(found[k], expected[k]) for k in found)
        assert worst < 1e-4


@pytest.mark.parametrize(
    ("kind", "config", "few", "many"),
    [
        ("unet", "transformer_layers_per_block", 8, 20),
        ("sd3", "num_layers", 8 + 1, 20),  # the last one is another
    ],
)
def test_equal_layers_are_compiled_once(kind, config, few, many):
    base = ONE_LEVEL if kind == "unet" else SD3

    def products(number):
        network, template = make(kind, base | {config: number})
        inputs = inputs_of(kind, base)
        program = jax.jit(network.apply).lower({"params": template}, *inputs)
        return program.as_text().count("dot_general")

    assert products(many) == products(few)


def test_bfloat16_keeps_float32_and_a_scalar_timestep_means_all():
    network, template = make("unet", ONE_LEVEL)
    params = parity.draw(template)
    latents, _, text_states = inputs_of("unet", ONE_LEVEL)
    times = (np.full(2, 7, np.int32), np.int32(7), np.int32(500))
    half = unet.UNet(network.config, jnp.bfloat16)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (latents, times[0])]
    template = weights.init_template(half, *shapes, text_states)
    assert {x.dtype for x in jax.tree.leaves(template)} == {jnp.dtype(jnp.float32)}
    expected, output, other = (
        jax.jit(of.apply)({"params": params}, latents, time, text_states)
        for of, time in zip((network, half, half), times, strict=True)
    )
    assert output.dtype == jnp.float32
    # bfloat16 keeps 8 bits: 0.4 % a rounding, some 10 layers
    assert 0 < parity.relative_error(output, expected) < 0.05
    assert parity.relative_error(other, expected) > 0.05


def test_encoder_and_decoder_equal_torch(torch, tmp_path):
    reference = save_torch(torch, tmp_path, "vae", VAE)
    network, params = load("vae", tmp_path)
    (images,) = inputs_of("vae", VAE)
    with torch.no_grad():
        posterior = reference.encode(parity.to_torch(torch, images)).latent_dist
        decoded = reference.decode(posterior.mean).sample

    @jax.jit
    def encode_and_decode(params, images):
        mean, log_var = network.apply({"params": params}, images, method="encode")
        decoded = network.apply({"params": params}, mean, method="decode")
        return mean, log_var, decoded

    found = encode_and_decode(params, images)
    expected = (posterior.mean, posterior.logvar, decoded)
    for ours, theirs in zip(found, expected, strict=True):
        # float32 sums in another order
        assert parity.relative_error(ours, parity.to_numpy(theirs)) < 1e-4
    # The last four of eight channels are the log-variances, clipped as in torch.
    params["quant_conv"]["bias"] = np.array([0] * 4 + [99, -99, 0, 0], np.float32)
    _, log_var, _ = encode_and_decode(params, images)
    assert (log_var[..., 0] == 20).all() and (log_var[..., 1] == -30).all()


OLD_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_vae_names(torch, tensors):
    """The attention's names of older files: two networks, four layers, two each."""
    found = {}
    for name, tensor in tensors.items():
        for new, old in OLD_VAE.items():
            name = name.replace(f".{new}.", f".{old}.")
        found[name] = tensor
    assert len(found.keys() - tensors.keys()) == 16
    return found


def hub_text_names(torch, tensors):
    """transformers 5 saves without text_model. and position_ids."""
    prefix = (
        "" if any(name.startswith("text_model.") for name in tensors) else "text_model."
    )
    named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(9)[None]}


def with_pooler(torch, tensors):
    shapes = {"weight": (32, 32), "bias": (32,)}
    return tensors | {
        f"vit.pooler.dense.{name}": torch.zeros(shape) for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("kind", "config", "rename"),
    [
        ("vae", VAE, old_vae_names),
        ("text", TEXT, hub_text_names),
        ("vit", VIT, with_pooler),
    ],
)
def test_files_of_other_versions_are_read(torch, tmp_path, kind, config, rename):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    save_torch(torch, tmp_path, kind, config)
    _, expected = load(kind, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = rename(torch, safetensors_torch.load_file(file))
    safetensors_torch.save_file(tensors, file)
    _, found = load(kind, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("kind", "config", "change", "named"),
    [
        ("unet", UNET_1, {"class_embed_type": "timestep"}, "class_embed_type='timest"),
        ("unet", UNET_1, {"act_fn": "gelu"}, "act_fn='gelu'"),
        ("unet", UNET_1, {"addition_embed_type": "text"}, "embed_type='text'"),
        ("unet", UNET_1, {"addition_embed_type": "text_time"}, "addition_time_embed_"),
        ("unet", UNET_1, {"mid_block_type": "UNetMidBlock3D"}, "='UNetMidBlock3D'"),
        ("unet", UNET_1, {"a_new_option": 3}, "a_new_option=3"),
        ("unet", UNET_1, {"down_block_types": ["AttnDownBlock2D"] * 2}, "AttnDownB"),
        ("unet", UNET_1, {"transformer_layers_per_block": [1]}, "transformer_lay"),
        ("unet", UNET_1, {"attention_head_dim": 5}, "attention_head_dim=5"),
        ("unet", UNET_1, {"norm_num_groups": 5}, "norm_num_groups=5"),
        ("unet", UNET_1, {"block_out_channels": [32, 64, 64]}, "down_block_types"),
        ("vae", VAE, {"shift_factor": "a"}, "shift_factor='a'"),
        ("sd3", SD3, {"qk_norm": "layer_norm"}, "qk_norm='layer_norm'"),
        ("sd3", SD3, {"caption_projection_dim": 30}, "caption_projection_dim=30"),
        ("sd3", SD3, {"pooled_projection_dim": 25}, "pooled_projection_dim=25"),
        ("sd3", SD3, {"pos_embed_max_size": 3}, "sample_size=8"),
        ("sd3", SD3, {"a_new_option": 3}, "a_new_option=3"),
        ("vae", VAE, {"latents_mean": [0.0] * 4}, "latents_mean="),
        ("vae", VAE, {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "AttnDown"),
        ("vae", VAE, {"norm_num_groups": 5}, "norm_num_groups=5"),
        ("vae", VAE, {"scaling_factor": 1e-38}, "scaling_factor=1e-38 must be a num"),
        ("vit", VIT, {"model_type": "deit"}, "'deit' must be .* choose a classifier"),
        ("vit", VIT, {"architecture": "vit_base_patch16_224"}, "ecture=.*not timm"),
        ("vit", VIT, {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("vit", VIT, {"image_size": 20}, "image_size=20"),
        ("vit", VIT, {"image_size": [16, 16]}, "image_size="),
        ("vit", VIT, {"num_attention_heads": 5}, "num_attention_heads=5"),
        ("vit", VIT, {"id2label": {1: "a", 2: "b"}}, "id2label="),
        ("vit", VIT, {"label2id": {"male": 0}}, "'male' is 1, label2id that it is 0"),
        ("text", TEXT, {"model_type": "t5"}, "type='t5'.*use a Stable Diffusion"),
        ("text", TEXT, {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("text", TEXT, {"num_attention_heads": 5}, "num_attention_heads=5"),
        ("t5", T5, {"feed_forward_proj": "relu"}, "feed_forward_proj='relu' must be"),
    ],
    ids=lambda value: "" if value in (UNET_1, VAE, SD3, VIT, TEXT) else str(value)[:40],
)
def test_unsupported_option_is_refused_by_name(kind, config, change, named):
    with pytest.raises(errors.UserError, match=named):
        MODULES[kind][0].Config.from_dict(config | change)


def test_options_that_change_nothing_are_read():
    nothing = {"upcast_attention": None, "use_linear_projection": None, "decay": 0.9999}
    nothing |= {"optimization_step": 500, "class_embed_type": None, "_unknown": 1}
    nothing |= {"a_new_option": None, "_class_name": "X"}
    assert unet.Config.from_dict(UNET_1 | nothing) == unet.Config.from_dict(UNET_1)
    whole = {"model_type": "clip", "vision_config": {}, "text_config": TEXT}
    assert clip.Config.from_dict(whole) == clip.Config.from_dict(TEXT)


@pytest.mark.parametrize(
    ("kind", "config", "shapes", "named"),
    [
        ("unet", UNET_1, ((1, 15, 16, 4), (2,), (2, 7, 24)), "15 x 16 pixels"),
        ("sd3", SD3, ((1, 8, 20, 4), (1,), (1, 7, 24)), "8 x 20 pixels .* most 18"),
        ("vit", VIT, ((1, 32, 32, 3),), r"\(32, 32, 3\)"),
        ("text", TEXT, (jax.ShapeDtypeStruct((1, 10), jnp.int32),), "10 tokens"),
    ],
    ids=["unet", "sd3", "vit", "text"],
)
def test_inputs_of_another_size_are_refused(kind, config, shapes, named):
    module, network_class = MODULES[kind]
    network = network_class(module.Config.from_dict(config))
    with pytest.raises(errors.UserError, match=named):
        weights.init_template(network, *shapes)


def check_names_and_shapes(torch, kind, config, template):
    """That parameters have torch's names, in torch's order of axes."""
    found = weights.tensor_shapes(template)
    with torch.device("meta"):
        reference = make_torch(kind, config)
    # transformers 5 left out the prefix that published files have
    prefix = "text_model." if kind == "text" else ""
    tensors = reference.state_dict().items()
    assert found == {prefix + name: tuple(tensor.shape) for name, tensor in tensors}


# Text encoders end with a row of pooled text, and of sizes; diffusers joins T5's.
PUBLISHED = {
    "sd15": ((77, 768), "unet UNET_1_5, vae VAE_1_5, text_encoder TEXT_1_5"),
    "sd21": ((77, 1024), "unet UNET_2_1, text_encoder TEXT_2_1"),
    "sdxl": ((77 + 1, 2048), "unet UNET_XL, text_encoder_2 TEXT_2_XL"),
    "sd35": ((77 + 1 + 1, 4096), "transformer TRANSFORMER_3_5, vae VAE_3"),
}
KINDS = {"transformer": "sd3", "text_encoder": "text", "text_encoder_2": "text 3"}


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_torch_names_and_shapes_without_a_file(torch, name):
    settings = configuration.choose_model(configuration.defaults(), name)
    model, (scorer,) = programs.read(settings)
    text_shape, parts = PUBLISHED[name]
    for part, official in map(str.split, parts.split(", ")):
        kind, config = KINDS.get(part, part), getattr(official_configs, official)
        assert model.networks[part].config == MODULES[kind][0].Config.from_dict(config)
        check_names_and_shapes(torch, kind, config, model.params[part])
    assert model.text_shape == text_shape
    _, millions = official_configs.MODELS[settings.model]
    assert parity.millions(model.params[model.part]) == pytest.approx(millions, abs=1)
    # the number of parameters that transformers' own module has
    assert sum(x.size for x in jax.tree.leaves(scorer.params)) == 85800194


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("unet", "UNET_1_5"),
        ("unet", "UNET_XL"),
        ("sd3", "TRANSFORMER_3_5"),
        ("vae", "VAE_1_5"),
        ("text", "TEXT_1_5"),
        ("text 3", "TEXT_2_XL"),
        ("vit", "VIT_BASE"),
    ],
)
def test_full_size_loads_lean_and_equals_torch(torch, tmp_path, kind, name):
    config = getattr(official_configs, name)
    inputs = inputs_of(kind, config)
    reference = parity.randomise_norms(torch, make_torch(kind, config))
    with torch.no_grad():
        expected = run_torch(torch, reference, kind, inputs).numpy()
    reference.save_pretrained(tmp_path)
    del reference  # 3.4 GB of 1.5's UNet, 10 of the two largest

    network, template = make(kind, weights.read_config(tmp_path))
    tracemalloc.start()  # NumPy tells it of its arrays
    params = weights.load(tmp_path, template)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    flat = traverse_util.flatten_dict(params)
    del params  # each leaf of which goes when JAX has it
    params = {name: jnp.asarray(flat.pop(name)) for name in list(flat)}
    params = traverse_util.unflatten_dict(params)
    output = joined(jax.jit(network.apply)({"params": params}, *inputs))
    # float32 sums in another order, over up to 11,520 terms and some 100 layers
    error = parity.relative_error(output, expected)
    print(f"{name}: relative error {error:.1e}, peak of loading {peak / size:.3f}")
    assert error < 1e-4
    assert peak < 1.3 * size
