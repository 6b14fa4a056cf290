"""Settings: documented, sound as they are, overridden by name and type."""

import importlib.metadata
import json
import pathlib

import jax
import pytest
import tiny_model
import tiny_run
from absl import flags
from refusals import refused

from ddpo_fair import (
    accelerator,
    command_line,
    config_rules,
    experiment,
    process,
    setting_rules,
    train,
)
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError
from ddpo_fair.learning import losses

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(ROOT.glob("configs/*.py"))

# Scripts rely on these names.
PROMISED = """
seed epochs model run.dir run.name prompts reward.name sample.num_steps
sample.guidance_scale sample.eta sample.batch_per_device sample.batches train.objective
train.learning_rate train.updates_per_epoch eval.images eval.every_epochs
"""


TARGET, PRESERVED = "attributes.gender.target", "sample.preserve_prompts"


def parse(*arguments, path=ROOT / "configs" / "mech_eng.py", variant=":embedded"):
    return experiment.parse([f"--config={path}{variant}", *arguments], "some.module")


def test_names_and_choices_that_are_promised_exist():
    assert set(PROMISED.split()) <= set(configuration.flatten(configuration.defaults()))
    for module, names in (
        (losses, setting_rules.OBJECTIVES),
        (jax.checkpoint_policies, setting_rules.POLICIES),
    ):
        assert all(callable(getattr(module, name)) for name in names)


@pytest.mark.parametrize("variant", configuration.VARIANTS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_is_sound(path, variant):
    command, problems = parse(path=path, variant=f":{variant}")
    train.check(command.config, problems)
    assert command.variant == variant
    assert (command.config.model == "embedded") == (variant == "embedded")
    assert command.config.run.name == path.stem
    assert f"--config=configs/{path.name}" in path.read_text().split('"""')[1]


def test_the_files_of_a_variant_are_its_own_models():
    given = "--config.model=mine", "--config.variant=bf16"
    for arguments, files in (((), "fp16"), (given[:1], ""), (given, "bf16")):
        assert parse(*arguments, variant=":sdxl")[0].config.variant == files


def test_help_explains_every_setting():
    with pytest.raises(process.Help) as text:
        parse("--help", variant=":sd35")
    assert "\n  --config.sample.num_steps=10\n" in str(text.value)
    with pytest.raises(process.Help) as text:
        experiment.parse(["--help"], "some.module")
    assert "num_steps=15   (:sd15, :sd21, :sdxl 50; :sd35 10)" in str(text.value)
    lines = str(text.value).splitlines()
    assert lines[0].startswith("python -m some.module --config=configs/mech_eng.py")
    for name in configuration.flatten(configuration.defaults()):
        start = f"  --config.{name}="
        places = [i for i, line in enumerate(lines) if line.startswith(start)]
        assert len(places) == 1, name
        assert lines[places[0] + 1].startswith("      "), name


def test_help_of_a_flag_has_its_default_as_it_is_typed():
    values = flags.FlagValues()
    texts, whole, _, several, switch = command_line.definers(values)
    texts("kind", "float32", "Of number")
    texts("folder", None, "To write")
    whole("seed", 0, "Of the images")
    several("prompt", [], "A text; may be given again")
    flags.DEFINE_list("sets", ["a", "b"], "Of prompts", flag_values=values)
    switch("faces", False, "Crops")
    with pytest.raises(process.Help) as text:
        command_line.read(values, ["--help"], None)
    assert [line.strip() for line in str(text.value).splitlines()[2:]] == [
        *("--kind=float32", "Of number", "--folder=", "To write"),
        *("--seed=0", "Of the images", "--prompt=", "A text; may be given again"),
        *("--sets=a,b", "Of prompts", "--faces", "Crops"),
    ]


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--config.epochs=7", "epochs", 7),
        ("-config.epochs=7", "epochs", 7),
        ("--config.train.learning_rate=1e-4", "train.learning_rate", 1e-4),
        ("--config.train.learning_rate=1", "train.learning_rate", 1.0),
        ("--config.train.guidance=False", "train.guidance", False),
        ("--noconfig.train.guidance", "train.guidance", False),
        ("--config.train.objective=truly_ppo", "train.objective", "truly_ppo"),
        (f"--config.{TARGET}=(0.25, 0.75)", TARGET, (0.25, 0.75)),
        ("--config.reward.target=0.25,0.75", TARGET, (0.25, 0.75)),
        (f"--config.{TARGET}=(0, 1)", TARGET, (0.0, 1.0)),
        ("--config.classifier=mine", "attributes.gender.classifier", "mine"),
        ("--config.prompts=a cat, a dog", "prompts", ("a cat, a dog",)),
        ("--config.prompts=('a cat', 'a dog')", "prompts", ("a cat", "a dog")),
        ('--config.prompts=["a = b"]', "prompts", ("a = b",)),
        ("--config.prompts='a cat', 'a dog'", "prompts", ("a cat", "a dog")),
        ('--config.prompts="a cat","a dog"', "prompts", ("a cat", "a dog")),
        ("--config.prompts='a cat'", "prompts", ("a cat",)),
        (f"--config.{PRESERVED}=('a', \"b c\")", PRESERVED, ("a", "b c")),
        ('--config.prompts=a "cat"', "prompts", ('a "cat"',)),
        ("--config.prompts=../../医生👩‍⚕️$(ls)", "prompts", ("../../医生👩‍⚕️$(ls)",)),
    ],
)
def test_overrides_have_the_type_of_the_default(argument, name, value):
    command, problems = parse(argument)
    assert problems == []
    found = configuration.flatten(command.config)[name]
    assert found == value and type(found) is type(value)
    assert command.overrides == (name,)


def test_old_names_are_still_taken_and_the_last_value_counts(tmp_path, capsys):
    command, problems = parse(
        "--config.train.on_collapse=roll_back", "--config.confidence=0.6"
    )
    assert problems == []
    assert command.config.train.on_divergence == "restore"
    assert command.config.attributes.gender.confidence_threshold == 0.6
    threshold = "attributes.gender.confidence_threshold"
    assert command.overrides == ("train.on_divergence", threshold)
    said = f"config.confidence is called config.{threshold} now"
    assert said in capsys.readouterr().err
    (tmp_path / "old.py").write_text(
        "from ddpo_fair import config\ndef get_config(_):\n    c = config.defaults()\n"
        "    c.train.lora.sites = ('to_q',)\n    return c"
    )
    command, problems = parse(path=tmp_path / "old.py")
    assert problems == [] and "is called" in capsys.readouterr().err
    assert command.config.train.lora.target_modules == ("to_q",)
    assert "sites" not in command.config.train.lora
    # So that a script's "$@" may change what the script gives.
    command, problems = parse("--config.epochs=7", "--config.epochs", "8")
    assert problems == [] and command.config.epochs == 8


def test_rules_hold_between_settings_and_devices():
    config = configuration.defaults()
    config.sample.batch_per_device, config.sample.batches = 6, 2
    config.train.updates_per_epoch = 4
    config.sample.num_steps, config.train.skip_last_steps = 12, 2
    config.train.timestep_fraction = 0.5
    config.train.microbatch = 4
    # 12 images / 4 updates x 5 of 10 steps = 15 pairs, of which 4 is no divisor.
    (problem,) = config_rules.violations(config)
    assert "3 images x 5 steps = 15" in problem and "train.microbatch=3" in problem
    config = configuration.defaults()
    config.sample.batch_per_device, config.train.updates_per_epoch = 1, 1
    config.train.microbatch = 1
    config.prompts = tuple(f"photo of the face of a {x}" for x in ("nurse", "pilot"))
    config_rules.validate(config, [], num_devices=4)
    with pytest.raises(UserError, match=r"= 2 images per epoch.*try sample.batches=2"):
        config_rules.validate(config, [], num_devices=2)


def test_explicit_prompts_need_a_form_and_leave_images_to_compare():
    config = configuration.defaults()
    config.prompts = ("photo of the face of a nurse", "Marie Curie")
    config.sample.explicit_share = 0.5
    (problem,) = config_rules.violations(config)
    assert "explicit_share=0.5" in problem
    assert "none of 'Marie Curie': it has no 'a'" in problem
    config.prompts = ("photo of the face of a nurse", "photo of the face of a pilot")
    config.sample.batch_per_device, config.train.updates_per_epoch = 4, 1
    config.train.microbatch = 1
    config_rules.validate(config, [], num_devices=2)  # 4 of 8 images
    with pytest.raises(UserError, match=r"need 4 beside 2 of explicit ones"):
        config_rules.validate(config, [], num_devices=1)
    config.sample.explicit_share = 0.9  # which leaves none of 4 images
    with pytest.raises(UserError, match=r"beside 4 of.*try sample\.batches=9"):
        config_rules.validate(config, [], num_devices=1)
    config.sample.batches = 9  # 36 images, 32 (32.4) of explicit prompts
    config_rules.validate(config, [], num_devices=1)
    config.sample.explicit_share = 1e-9
    with pytest.raises(UserError, match=r"of 36 images per epoch is none; give at lea"):
        config_rules.validate(config, [], num_devices=1)


def test_preservation_prompts_need_the_penalty_and_that_needs_lora():
    config = configuration.defaults()
    config.sample.preserve_prompts = (*config.prompts, "photo of the face of a pilot")
    config.sample.preserve_share, config.sample.explicit_share = 0.5, 0.5
    penalty, both, share = config_rules.violations(config)
    assert "give train.base_kl_weight" in penalty
    assert "is one of the prompts" in both and "at most 0.9 together" in share
    config.train.base_kl_weight, config.sample.explicit_share = 0.5, 0.0
    config.sample.preserve_prompts = ("photo of the face of a wizard",)
    with pytest.raises(UserError, match=r"know sample.preserve_prompts='photo of"):
        train.check(config, [])
    config.sample.batch_per_device, config.train.updates_per_epoch = 3, 1
    config.train.microbatch = 1
    with pytest.raises(UserError, match=r"need 2 beside 2 of preserve_p.*batches=2"):
        config_rules.validate(config, [], num_devices=1)
    config.sample.preserve_share = 0.1
    with pytest.raises(UserError, match=r"of 3 images per epoch is none; give at lea"):
        config_rules.validate(config, [], num_devices=1)
    assert config_rules.images_beside(configuration.defaults(), 64) == (0, 0)
    (text,) = config.prompts  # that CLIP reads the same
    config.sample.preserve_prompts = (text.replace(" ", "  ").upper(), "Explicit")
    both, word = config_rules.violations(config)
    assert "is one of the prompts" in both and "must be 'explicit', which" in word
    config = configuration.defaults()
    config.train.base_kl_weight = 0.5
    assert config_rules.violations(config) == []
    config.train.lora.rank = 0
    (problem,) = config_rules.violations(config)
    assert "base_kl_weight=0.5" in problem and "give train.lora.rank" in problem


@pytest.mark.parametrize("port", [1, 65535])
def test_every_port_is_taken(port):
    command, problems = parse(f"--config.distributed.coordinator_address=host:{port}")
    train.check(command.config, problems)


def test_explicit_forms_name_whom_they_want_and_explicit_stands_for_them():
    config = configuration.defaults()
    config.prompts = ("photo of the face of a nurse", "photo of the face of an artist")
    assert config_rules.explicit_prompts(config) == ()
    config.sample.explicit_share = 0.25
    found = [(form.text, form.wanted) for form in config_rules.explicit_prompts(config)]
    assert found == [
        ("photo of the face of a female nurse", 0),
        ("photo of the face of a male nurse", 1),
        ("photo of the face of a female artist", 0),
        ("photo of the face of a male artist", 1),
    ]
    config = configuration.defaults()
    config.sample.preserve_prompts = ("explicit", "photo of the face of a pilot")
    config.train.base_kl_weight = 0.1
    train.check(config, [])
    assert config_rules.preserved_prompts(config) == [
        "photo of the face of a pilot",
        "photo of the face of a female mechanical engineer",
        "photo of the face of a male mechanical engineer",
    ]
    config.prompts = (*config.prompts, "photo of the face of a male nurse")
    (problem,) = config_rules.violations(config)
    assert "male nurse" in problem and "or give ()." in problem
    config.prompts = ("explicit",)  # a text like any other
    with pytest.raises(UserError, match="does not know prompts='explicit'"):
        train.check(config, [])


@pytest.mark.long
def test_choosing_the_model_starts_no_backend():
    code = (
        "from ddpo_fair import config; config.choose_model(config.defaults(), None);"
        "from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized()"
    )
    tiny_run.finish(tiny_run.python("-c", code))


@pytest.mark.parametrize(
    ("platforms", "model"),
    [("cpu", "embedded"), ("cuda,cpu", "stable-diffusion-v1-5/stable-diffusion-v1-5")],
)
def test_the_host_chooses_the_model(platforms, model, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    command, problems = parse(variant="")
    train.check(command.config, problems)
    assert command.config.model == model
    opening = train.model_choice(command)
    assert model in opening and "mech_eng.py:embedded, :embedded_flow, :sd15" in opening


@pytest.mark.parametrize(
    ("plugin", "visible", "variant"),
    [
        ("xla_cuda13", None, "sd15"),
        ("xla_cuda13", "0,1", "sd15"),
        ("xla_cuda13", "", "embedded"),
        ("xla_cuda13", "-1", "embedded"),
        ("xla_rocm7", None, "embedded"),
        (None, None, "embedded"),
    ],
)
def test_a_gpu_counts_with_its_plugin(plugin, visible, variant, monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    devices = (str(tmp_path / "nvidia[0-9]*"),)
    gpus = {"cuda": (devices, "CUDA_VISIBLE_DEVICES")}
    plugins = [importlib.metadata.EntryPoint(plugin, "x", "jax_plugins")]
    monkeypatch.setattr(accelerator, "KINDS", gpus)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: plugins if plugin else []
    )
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command, _ = parse(variant="")
    assert (command.config.model == "embedded") == (variant == "embedded")
    unused = visible is None and plugin != "xla_cuda13"
    opening = train.model_choice(command)
    assert ('pip install "ddpo_fair[cuda]"' in opening) == unused


@pytest.mark.parametrize(
    ("variant", "model", "kind"),
    [
        ("sd15", "embedded_flow", "embedded_flow"),
        ("embedded_flow", "embedded", "embedded"),
        ("sd35", "XL", "sdxl"),
        ("sdxl", "CONFIGS_3", "sd35"),
        ("sdxl", "XL", None),
        ("sd15", "CONFIGS", None),
        ("embedded", "embedded", None),
        ("embedded", "no/such", None),  # which is told later
    ],
)
def test_settings_of_another_kind_of_model_are_told(variant, model, kind, tmp_path):
    for part, content in vars(tiny_model).get(model, {}).items():
        name = "scheduler_config" if part == "scheduler" else "config"
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{name}.json").write_text(json.dumps(content))
        model = tmp_path
    command, _ = parse(f"--config.model={model}", variant=f":{variant}")
    opening = train.model_choice(command)
    assert f"are :{variant}'s, but this model is of the kind" in opening or not kind
    assert opening.count(" behind the config file") == bool(kind)
    assert f"put :{kind} behind" in opening or not kind


def test_a_large_model_on_a_cpu_must_be_named(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    chosen = f"--config={ROOT / 'configs' / 'mech_eng.py'}"
    assert "or :sd15 to have it all the same" in refused(train.main, [chosen], capsys)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "JAX_PLATFORMS='cuda' names (there are none)"),  # no plugin
        (RuntimeError("Unable to initialize"), "names (Unable to initialize)"),
    ],
)
def test_devices_that_jax_does_not_have_are_refused(error, reason, monkeypatch, capsys):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    command = f"--config={ROOT / 'configs' / 'mech_eng.py'}:embedded"
    assert reason in refused(train.main, [command], capsys)
