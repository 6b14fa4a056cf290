"""A plan is what the compiler says of the run's own programs."""

import importlib.util
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from tiny_run import bytes_on_one

from ddpo_fair import config as configuration
from ddpo_fair import parallel, rng, train
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import sampler
from ddpo_fair.errors import UserError
from ddpo_fair.learning import learner, policy_update
from ddpo_fair.models import convolution, published
from ddpo_fair.training import assembly, plan, programs
from ddpo_fair.training import epoch as epochs


def lowered_by_the_run(config):
    """Programs lowered with the run's own arrays, and bytes beside them, by name."""
    run, state = assembly.build(config)
    weights = learner.unet_params(run.learner, run.base, state.params)
    first, second = both = epochs.sample(run, weights, 0).trajectories
    latents, model = first.latents[:, :, -1], run.policy.model
    images = sampler.decode(model, run.vae_params, latents)
    epoch = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), first, second)
    advantages = parallel.split(np.ones(run.num_images, np.float32))
    n = run.images_per_device
    chosen = learner.selection(rng.key(0), run.learner, parallel.num_devices(), n)
    chosen = [np.asarray(x[0]) for x in chosen]
    null, scorer = run.uncond_embedding, run.classifier_params
    weights_of_kl = advantages if config.train.base_kl_weight else None
    data = policy_update.EpochData(run.base, epoch, advantages, null, weights_of_kl)
    if config.train.recompute_log_probs:
        data = data.replace(trajectory=policy_update.with_means(epoch))
        chosen += [True]
    always = bytes_on_one(run.base, state, run.vae_params, scorer)
    base = set(map(id, jax.tree.leaves(run.base)))
    others = [x for x in jax.tree.leaves(weights) if id(x) not in base]
    merged = bytes_on_one(others) if base else 0
    assert len(others) == 1 or not base  # all but the adapted kernel are shared
    batch = bytes_on_one(first)
    given = weights, first.keys, first.text, null
    sampling = sampler.sampling_program(run.policy).lower(*given)
    decoding = sampler.decoding_program(model).lower(run.vae_params, latents)
    made = run.classifiers, parallel.made_for.value, config.reward.views
    classifying = classifier.program(*made).lower(scorer, images)
    updating = policy_update.program(run.learner).lower(state, data, *chosen)
    beside = always + merged + batch
    return {
        "sampling": (sampling, beside - bytes_on_one(weights)),
        "decoding": (decoding, beside + batch - bytes_on_one(run.vae_params)),
        "classifying": (classifying, beside + batch - bytes_on_one(scorer)),
        "updating": (updating, bytes_on_one(run.vae_params, scorer, both)),
    }


@pytest.mark.long
@pytest.mark.parametrize("rank", [2, 0])
def test_a_plan_is_of_the_runs_own_programs(tiny, tmp_path, rank):
    config = tiny_model.config(*tiny, tmp_path)
    config.train.lora.rank, config.train.shard_optimizer = rank, rank == 0
    config.train.lora.target_modules = ("conv_out",)  # compiles soon
    if rank == 0:  # then the test of its optimizer compiles the same program
        config.train.updates_per_epoch = 1
    config.train.recompute_log_probs = rank > 0
    config.reward.views, config.train.base_kl_weight = 1 + rank // 2, 0.1 * rank
    expected = lowered_by_the_run(config)
    models = programs.read(config)
    for program in programs.lower(config, *models):
        lowered, beside = expected.pop(program.name.split()[0])
        assert program.beside == beside
        sizes, own = (
            one.compile().memory_analysis() for one in (program.lowered, lowered)
        )
        for field in ("argument", "output", "alias", "temp"):
            name = f"{field}_size_in_bytes"
            assert getattr(sizes, name) == getattr(own, name), (program.name, name)
    assert not expected


@pytest.mark.parametrize(("devices", "updating"), [(1, 90 + 40 * 3 / 5), (8, 180)])
def test_recomputed_log_probs_count_as_a_forward_pass(monkeypatch, devices, updating):
    def lower(_):
        for name, flops in (("sampling", 4.0), ("updating", 9.0)):
            lowered = SimpleNamespace(
                cost_analysis=lambda flops=flops: {"flops": flops}
            )
            yield programs.Program(f"{name} so many", lowered, 5, 2, 0)

    config = configuration.defaults()
    config.sample.num_steps, config.train.skip_last_steps = 5, 2
    config.train.recompute_log_probs = True
    monkeypatch.setattr(programs, "read", lambda _: ())
    monkeypatch.setattr(programs, "lower", lower)
    assert plan.flops(config, devices) == {"sampling": 40, "updating": updating}
    assert plan.flops(config, devices, "sampling") == {"sampling": 40}


def test_the_command_prints_a_plan_and_runs_nothing(tiny, capsys, monkeypatch):
    def lower(config, *_):
        x, w = jax.ShapeDtypeStruct((8, 500, 1000), jnp.float32), jnp.ones((1000, 500))
        program = jax.jit(lambda x: (x @ w).mean(0))
        lowered = program.lower(parallel.spread_shapes(x))
        yield programs.Program("sampling 7 images", lowered, 3, 2, 10**9)

    model, classifier = tiny
    monkeypatch.setattr(programs, "lower", lower)
    monkeypatch.setattr(train.stopping.Stop, "listen", lambda _: None)
    arguments = [
        "--config=configs/mech_eng.py:embedded",
        f"--config.model={model}",
        f"--config.attributes.gender.classifier={classifier}",
        "--config.train.lora.target_modules=('all',)",
        "--plan",
    ]
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "for 8 x cpu, at hand." in printed
    row = next(line for line in printed.splitlines() if line.startswith("sampling 7"))
    arguments, results, temporary, beside, in_all = map(float, row.split()[3:])
    # GB: 500 x 1000 float32 of the device's own part, 500 x 500 of the mean
    assert (arguments, results, beside) == (0.002, 0.001, 1.0)
    assert in_all == pytest.approx(1.003 + temporary, abs=1e-3)
    assert "all-reduce of f32: 1.000 MB" in printed and "it fits." in printed
    # 8 products of 2 x 500 x 1000 x 500, for the counting device has all parts;
    # three turns of a loop, two calls in an epoch
    assert "sampling 0.024" in printed


@pytest.mark.parametrize(
    ("target", "plugin", "command"),
    [
        ("h100", "jax_cuda13_plugin", "pip install 'jax[cuda13]=="),
        ("v5e:2x2", "libtpu", "pip install 'jax[tpu]=="),
    ],
)
def test_a_missing_compiler_is_named_with_its_command(target, plugin, command):
    if importlib.util.find_spec(plugin):
        pytest.skip(f"{plugin} is installed")
    with pytest.raises(UserError) as refusal:
        plan.described(target)
    assert f"{command}{jax.__version__}'" in str(refusal.value)


def test_a_gpus_memory_is_what_jax_takes_of_it(monkeypatch):
    monkeypatch.setattr(plan, "_gpus", lambda shape: (shape,))
    monkeypatch.delenv(plan.FRACTION, raising=False)
    assert plan.described("h100").memory == 63707234304  # .75 of 84942979072
    monkeypatch.setenv(plan.FRACTION, ".5")
    assert plan.described("h100:1x2x8").memory == 42471489536
    monkeypatch.setenv(plan.FRACTION, "92%")
    with pytest.raises(UserError, match="at most 1"):
        plan.described("h100")


class Gpu:
    platform = "gpu"
    process_index = 0


def test_programs_ask_for_the_devices_they_are_made_for():
    assert parallel.on_cpu() and not parallel.has_flash_attention()
    x, kernel = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)

    def traced():
        return str(jax.make_jaxpr(convolution.convolve, (2, 3))(x, kernel, 1, (1, 1)))

    assert "custom_vjp" in traced()  # which is for CPUs
    with parallel.made_for(parallel.Target((Gpu(), Gpu()), has_flash_attention=True)):
        assert parallel.num_devices() == 2 and parallel.has_flash_attention()
        assert not parallel.on_cpu() and "custom_vjp" not in traced()
    assert parallel.on_cpu() and not parallel.has_flash_attention()


COMPILED = """HloModule jit_update
%sum (a: f32[], b: f32[]) -> f32[] {
}
%body.1 (p: (f32[8])) -> (f32[8]) {
  %all-reduce.3 = f32[8]{0} all-reduce(%g), to_apply=%sum
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (f32[8]) while(%t), condition=%until, body=%body.1
  %all-reduce-start = (bf16[16,4]{1,0}, f32[]) all-reduce-start(%a, %b), to_apply=%sum
  %c.1 = (bf16[2]{0}, u8[7]{0}) custom-call(%x), custom_call_target="__cudnn$fmhaX"
  %c.2 = bf16[2]{0} custom-call(%x), custom_call_target="__cudnn$convForward"
  %c.3 = bf16[2]{0} custom-call(%x), custom_call_target="__cudnn$convBackwardInput"
  %d = f32[2,2]{1,0} dot(%x, %y), lhs_contracting_dims={1}
}
"""


def test_kernels_and_collectives_are_counted_by_hand():
    assert plan.kernels(COMPILED) == [
        "1 flash attentions of cuDNN",
        "2 convolutions of cuDNN",
        "1 convolutions and products of XLA",
    ]
    assert plan.collectives(COMPILED) == [
        "all-reduce of f32 in every turn of a loop: 0.000 MB in 1 arrays",
        "all-reduce of bf16: 0.000 MB in 1 arrays",
        "all-reduce of f32: 0.000 MB in 1 arrays",
    ]
    large = "bf16[1000,4000]{1,0}, f32[1000]{0}"
    nested = COMPILED.replace("bf16[16,4]{1,0}, f32[]", f"({large}), ({large})")
    for text in (COMPILED.replace("bf16[16,4]", "bf16[1000,4000]"), nested):
        assert "all-reduce of bf16: 8.000 MB in 1 arrays" in plan.collectives(text)


class Refused:
    """A program that asks for more than a TPU has."""

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM (512.00G of 15.75G).\nMore."
        )


def test_a_program_that_the_compiler_refuses_does_not_fit(tiny, monkeypatch):
    program = programs.Program("sampling 9 images", Refused(), 1, 1, 0)
    monkeypatch.setattr(programs, "lower", lambda *_: [program])
    monkeypatch.setattr(plan, "flops", lambda *_: {"sampling": 2e14})
    lines = []
    plan.write(tiny_model.config(*tiny, tiny[0]), None, lines.append)
    printed = "\n".join(lines)
    assert "refuses it: Ran out of memory on HBM (512.00G of 15.75G).\n" in printed
    assert "Most at once: inf GB, sampling 9 images." in printed
    assert "it does not fit. Lower sample.batch_per_device" in printed
    assert "200.000 TFLOP" in printed and " 2 s," in printed


@pytest.mark.long
def test_stable_diffusion_costs_what_is_published():
    config = configuration.choose_model(configuration.defaults(), "sd15")
    models = programs.read(config)
    with parallel.made_for(parallel.one_cpu()):
        sampling, decoding, classifying = (
            program.lowered.cost_analysis()["flops"] * program.turns / 8
            for _, program in zip(
                range(3), programs.lower(config, *models), strict=False
            )
        )
    # Of an image: 803 GFLOP an evaluation of the UNet, two with guidance, 50 steps;
    # XLA leaves out the products with the zeros around an image.
    assert sampling == pytest.approx(803e9 * 2 * 50, rel=0.02)
    assert decoding == pytest.approx(2.5e12, rel=0.02)
    assert classifying == pytest.approx(35e9, rel=0.05)


def test_a_model_that_cannot_be_had_is_refused_with_a_way_out():
    config = configuration.defaults()
    config.model = "someone/else"
    with pytest.raises(UserError, match="hf download someone/else --local-dir"):
        programs.read(config)
    assert "someone/else" not in published.MODELS
