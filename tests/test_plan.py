"""Costs counted by hand, at published sizes, and of whole runs."""

import jax
import jax.numpy as jnp
import official_configs
import pytest
import tiny_model

from ddpo_fair import command_line, train
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError
from ddpo_fair.models import unet, vae, vit, weights
from ddpo_fair.planning import architectures, costs, plan


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_products_and_convolutions_are_counted_by_hand():
    def program(x, kernel, w):
        y = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.reshape(2, -1) @ w

    found = costs.of(program, shape(2, 8, 8, 3), shape(3, 3, 3, 5), shape(80, 7))
    convolution = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    assert found.flops == convolution + 2 * (2 * 7) * 80


def test_loops_count_every_turn():
    def program(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=11)[0]

    found = costs.of(jax.jit(program), shape(4, 8), shape(8, 8))
    assert found.flops == 11 * 2 * 4 * 8 * 8


def test_gradient_of_a_strided_convolution_counts_no_zeros():
    def program(kernel, x):
        y = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.square(y).sum()  # so that the gradient needs the forward pass

    arguments = shape(2, 2, 3, 5), shape(1, 8, 8, 3)
    forward = costs.of(program, *arguments).flops
    both = costs.of(jax.grad(program, (0, 1)), *arguments).flops
    assert forward == 2 * (4 * 4 * 5) * (2 * 2 * 3)
    assert both == 3 * forward


def test_memory_is_what_lives_at_once():
    def program(x, w, v):
        y = jnp.tanh(x @ w) + 1.0  # [128, 512]; the sum is read by the next product
        return jnp.tanh(y @ v)  # [128, 4]; the last tanh is fused

    found = costs.of(program, shape(128, 256), shape(256, 512), shape(512, 4))
    assert found.working_bytes == 2 * 4 * 128 * 512


def test_memory_keeps_what_the_gradient_needs():
    def program(x, w):
        for _ in range(3):
            x = jnp.sin(x @ w)
        return x.sum()

    def of(function):
        return costs.of(jax.grad(function), shape(1000, 8), shape(8, 8)).working_bytes

    step = 4 * 1000 * 8
    assert of(program) >= 3 * step
    assert of(jax.checkpoint(program)) <= of(program)


@pytest.mark.parametrize(("name", "reference"), [("unet", 803e9), ("vae", 2.5e12)])
def test_stable_diffusion_costs_what_is_published(name, reference):
    if name == "unet":
        network = unet.UNet(unet.Config.from_dict(official_configs.UNET_1_5))
        inputs = shape(1, 64, 64, 4), shape(1, dtype=jnp.int32), shape(1, 77, 768)
        params = weights.init_template(network, *inputs)
        method = None
    else:
        network = vae.AutoencoderKL(vae.Config.from_dict(official_configs.VAE_1_5))
        inputs = (shape(1, 64, 64, 4),)
        params = weights.init_template(network, (1, 64, 64, 3))
        method = "decode"
    found = costs.of(
        lambda params, *x: network.apply({"params": params}, *x, method=method),
        params,
        *inputs,
    )
    assert found.flops == pytest.approx(reference, rel=0.02)


def test_vit_costs_what_is_published():
    network = vit.ImageClassifier(vit.Config.from_dict(official_configs.VIT_BASE))
    image = shape(1, 224, 224, 3)
    params = weights.init_template(network, image)
    found = costs.of(lambda p, x: network.apply({"params": p}, x), params, image)
    assert found.flops == pytest.approx(35e9, rel=0.02)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    return (
        tiny_model.save_model(root / "model"),
        tiny_model.save_classifier(root / "classifier"),
        root,
    )


@pytest.mark.parametrize("rank", [2, 0])
def test_a_plan_adds_up(folders, rank):
    config = tiny_model.config(*folders)
    config.train.lora.rank, config.train.lora.target_modules = rank, ("all",)
    config.sample.batch_per_device, config.sample.batches = 2, 3
    found = plan.make(config)
    read = weights.load(folders[0] / "unet", architectures.model(config).params["unet"])
    assert found.unet == sum(x.nbytes for x in jax.tree.leaves(read))
    latents, text = (
        5 * 8 * 8 * 4,
        16
        * architectures.model(config).configs["text_encoder"][
            "max_position_embeddings"
        ],
    )
    keys, log_probs = 2, 4
    assert found.trajectories == 4 * 6 * (latents + text + keys + log_probs)
    if rank:
        # parameters, two moments of Adam; two counters and the number of updates
        assert found.state == 3 * 4 * found.num_trained + 3 * 4
        assert found.merged == found.unet
    else:
        assert found.num_trained == found.num_params
        assert found.optimizer == 2 * found.unet + 3 * 4
    flops = found.epoch_flops
    # Of an image and a step: two evaluations to sample; forward and backward to update,
    # the latter without the gradient of the input.
    assert 2.5 < flops["updating"] / flops["sampling"] <= 3.1
    assert max(found.phases.values()) > found.unet + found.others


def test_weights_that_lora_leaves_alone_cost_no_gradient(folders):
    config = tiny_model.config(*folders)
    forward = plan.make(config).epoch_flops["sampling"]
    costs_of = {}
    for sites in (("to_q",), ("conv_out",)):
        config.train.lora.rank, config.train.lora.target_modules = 2, sites
        costs_of[sites] = plan.make(config).epoch_flops["updating"] / forward
    # Forward, and back to the first adapted layer: the whole way, or hardly at all.
    assert 1.5 < costs_of["to_q",] < 2.2
    assert 1.0 < costs_of["conv_out",] < 1.1


def test_images_and_steps_cost_in_proportion(folders):
    config = tiny_model.config(*folders)
    once = plan.make(config)
    config.sample.num_steps *= 2
    config.sample.batches *= 2
    twice = plan.make(config)
    ratio = twice.epoch_flops["sampling"] / once.epoch_flops["sampling"]
    assert ratio == pytest.approx(4)
    assert twice.updating.working_bytes < 1.1 * once.updating.working_bytes


def test_the_command_prints_a_plan_and_runs_nothing(folders, capsys, monkeypatch):
    model, classifier, _ = folders
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(train.stopping.Stop, "listen", lambda _: None)
    arguments = [
        "--config=configs/mech_eng.py:embedded",
        f"--config.model={model}",
        f"--config.classifier={classifier}",
        "--config.train.lora.target_modules=('all',)",
        "--plan=8",
    ]
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Memory of each device" in printed
    assert "together" in printed


def test_published_sizes_need_no_file():
    config = configuration.choose_model(configuration.defaults(), "sd15")
    params = architectures.model(config).params
    sizes = {
        part: sum(x.size for x in jax.tree.leaves(shapes))
        for part, shapes in params.items()
    }
    # the numbers of parameters that diffusers' own modules have
    assert sizes == {"unet": 859520964, "vae": 83653863, "text_encoder": 123060480}
    judge = sum(x.size for x in jax.tree.leaves(architectures.judge(config).params))
    assert judge == 85800194


def test_an_unknown_model_is_refused_without_a_download():
    config = configuration.defaults()
    config.model = "someone/else"
    with pytest.raises(UserError, match="known for CompVis/stable-diffusion-v1-4"):
        architectures.model(config)


def test_the_help_tells_of_the_flag():
    assert "--plan" in command_line.help_text("ddpo_fair.train")
