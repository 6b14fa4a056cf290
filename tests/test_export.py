"""Exported models, opened by PyTorch's diffusers, predict what ours predict."""

import fcntl
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import made_runs
import numpy as np
import parity
import pytest
import safetensors.numpy
import tiny_model
import tiny_run

import ddpo_fair
from ddpo_fair import export, exporting
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.models import lora, lora_files, sources
from ddpo_fair.report import model_card
from ddpo_fair.training import description, run_folder, saved_run

SCALE = 0.5
LINES = (
    {"epoch": 0} | made_runs.evaluation(18, 102, 8),
    {"epoch": 1} | made_runs.evaluation(36, 84, 8),
    {"epoch": 2} | made_runs.evaluation(60, 60, 8),
)


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """The model's folder, and a run's of LoRA and one of full fine-tuning."""
    root = tmp_path_factory.mktemp("export")
    model = parity.write_index(shutil.copytree(tiny[0], root / "model"))
    runs = {name: make_run(root, model, name) for name in ("lora", "full")}
    return {"model": model, **runs}


def make_run(root, model, name):
    """A run's folder with checkpoint 3, as if it had been trained."""
    config = tiny_model.config(model, root / "no_classifier", root)
    config.run.name = name
    config.train.lora.target_modules = ("all",)
    config.train.lora.scale = SCALE
    if name == "full":
        config.train.lora.rank = 0
    folder = tiny_run.save(config, 1.1)
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def copied(folders, place, **settings):
    """A copy of LoRA's run with other settings in its config.json."""
    folder = shutil.copytree(folders["lora"], place)
    record = json.loads((folder / "config.json").read_text())
    record["config"] |= settings
    (folder / "config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def exported(folders, tmp_path_factory):
    """The run of LoRA in each format."""
    place = tmp_path_factory.mktemp("exported")
    formats = ("diffusers", "lora", "kohya")
    return {x: exporting.export(folders["lora"], place / x, x) for x in formats}


@partial(jax.jit, static_argnums=0)
def predict(network, params, inputs):
    return network.apply({"params": params}, *inputs)


@pytest.fixture(scope="module")
def base(folders):
    return stable_diffusion.load(folders["model"])


@pytest.fixture(scope="module")
def trained(folders, base):
    """What each run trained: adapters, and all weights."""
    unet = base.params["unet"]
    runs = {name: saved_run.read(folders[name]) for name in ("lora", "full")}
    found = {x: saved_run.trained_params(run, 3, unet) for x, run in runs.items()}
    return jax.tree.map(np.asarray, found)  # hence nothing is compiled


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, 8, 8, 4), dtype=np.float32)
    states = random.standard_normal((2, 7, 16), dtype=np.float32)
    return latents, np.asarray([900, 20], np.int32), states


@pytest.fixture(scope="module")
def noise(base, trained, inputs):
    """The prediction of each run's UNet, merged by hand, and of the base's."""
    unets = {
        "base": base.params["unet"],
        "lora": lora.merge(base.params["unet"], trained["lora"], SCALE),
        "full": trained["full"],
    }
    return {x: predict(base.denoiser, params, inputs) for x, params in unets.items()}


def their_noise(torch, pipeline, inputs):
    latents, timesteps, states = inputs
    with torch.no_grad():
        noise = pipeline.unet(
            parity.to_torch(torch, latents),
            torch.from_numpy(timesteps),
            torch.from_numpy(states),
        ).sample
    return parity.to_numpy(noise)


@pytest.mark.parametrize("run", ["lora", "full"])
def test_diffusers_opens_the_folder_and_predicts_the_same(
    torch, folders, exported, noise, inputs, tmp_path, run
):
    diffusers = pytest.importorskip("diffusers")
    output = exported["diffusers"]
    if run == "full":
        output = exporting.export(folders[run], tmp_path / "out", "diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        output, safety_checker=None
    )
    found = their_noise(torch, pipeline, inputs)
    assert parity.relative_error(found, noise[run]) < 1e-4
    assert parity.relative_error(noise[run], noise["base"]) > 0.1  # training changed it
    options = {"num_inference_steps": 2, "output_type": "np", "eta": 1.0}
    drawn = pipeline(tiny_model.PROMPTS[0], **options, height=16, width=16).images
    assert drawn.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("reader", ["diffusers", "PEFT", "diffusers' of kohya's"])
def test_readers_of_adapters_predict_the_same(
    torch, folders, exported, noise, inputs, reader
):
    diffusers = pytest.importorskip("diffusers")
    peft = pytest.importorskip("peft")
    format = "kohya" if "kohya" in reader else "lora"
    output = exported[format]
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folders["model"])
    if reader == "PEFT":
        pipeline.unet = peft.PeftModel.from_pretrained(pipeline.unet, output)
    else:
        pipeline.load_lora_weights(output)
    found = their_noise(torch, pipeline, inputs)
    assert parity.relative_error(found, noise["lora"]) < 1e-4


@pytest.fixture(scope="module")
def adapted(base, trained):
    """The kernels that the adapters of LoRA's run make, by layer."""
    found = lora.adapted(base.params["unet"], trained["lora"], SCALE)
    return {f"unet.{layer}": kernel for layer, kernel in found.items()}


@pytest.mark.parametrize(
    "name", [lora_files.DIFFUSERS, lora_files.PEFT, lora_files.KOHYA]
)
def test_adapters_are_read_back(base, exported, adapted, name):
    folder = exported["kohya" if name == lora_files.KOHYA else "lora"]
    found = lora.adapted(base.params, lora_files.load(folder / name, base.params))
    assert found.keys() == adapted.keys()
    for layer, kernel in found.items():  # the scale is rounded into one factor
        np.testing.assert_allclose(kernel, adapted[layer], rtol=1e-5, atol=1e-6)


def test_a_scale_beside_the_adapters_is_read(base, trained, exported, tmp_path):
    unet = base.params["unet"]
    folder = shutil.copytree(exported["lora"], tmp_path / "peft")
    (folder / lora_files.DIFFUSERS).unlink()
    settings = json.loads((folder / lora_files.PEFT_CONFIG).read_text())
    changed = {**settings, "lora_alpha": 6 * settings["r"]}
    (folder / lora_files.PEFT_CONFIG).write_text(json.dumps(changed))
    tensors = safetensors.numpy.load_file(exported["kohya"] / lora_files.KOHYA)
    six = {
        x: np.asarray(6 * y, np.float32) if x.endswith(".alpha") else y
        for x, y in tensors.items()
    }
    safetensors.numpy.save_file(six, tmp_path / "six.safetensors")
    expected = lora.adapted(unet, trained["lora"], 6 * SCALE)["conv_in"]
    for place in (folder, tmp_path / "six.safetensors"):
        found = lora.adapted(base.params, lora_files.load(place, base.params))
        found = found["unet.conv_in"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    changed["use_rslora"] = True
    (folder / lora_files.PEFT_CONFIG).write_text(json.dumps(changed))
    with pytest.raises(UserError, match="use_rslora"):
        lora_files.load(folder, base.params)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_te_text_model.alpha": np.ones(1)}, "lora_te_text_model.alpha"),
        ({"lora_unet_conv_in.dora_scale": np.ones(1)}, r"\(DoRA\), the first: lora_u"),
        ({"lora_unet_conv_in.lora_up.weight": None}, "lora_unet_conv_in.lora_down"),
        ({"lora_unet_conv_in.lora_up.weight": np.ones((16, 2))}, "shape \\(16, 2\\)"),
        (
            {"lora_unet_conv_in.lora_up.weight": np.full((16, 2, 1, 1), np.inf)},
            "finite",
        ),
        ({"lora_unet_conv_in.alpha": np.full((), np.nan)}, "alpha is not finite"),
        ({"lora_unet_conv_in.alpha": np.full((), 1e300)}, "alpha is not finite"),
    ],
)
def test_strange_adapters_are_refused(base, exported, tmp_path, changes, said):
    tensors = safetensors.numpy.load_file(exported["kohya"] / lora_files.KOHYA)
    changed = {x: y for x, y in (tensors | changes).items() if y is not None}
    safetensors.numpy.save_file(changed, tmp_path / "strange.safetensors")
    with pytest.raises(UserError, match=said):
        lora_files.load(tmp_path / "strange.safetensors", base.params)


def test_other_parts_keep_their_official_config(folders, base, exported):
    output = exported["diffusers"]
    for part in ("unet", "vae", "text_encoder"):
        before = json.loads((folders["model"] / part / "config.json").read_text())
        assert json.loads((output / part / "config.json").read_text()) == before
    name = "scheduler/scheduler_config.json"
    assert (output / name).read_text() == (folders["model"] / name).read_text()
    index = json.loads((output / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    again = stable_diffusion.load(output)
    vaes = again.params["vae"], base.params["vae"]
    jax.tree.map(np.testing.assert_array_equal, *vaes)
    output = exported["lora"]
    with safetensors.safe_open(output / lora_files.DIFFUSERS, "numpy") as file:
        metadata = file.metadata()
    assert metadata["base_model"] == str(folders["model"])
    assert json.loads(metadata["prompts"]) == [tiny_model.PROMPTS[0]]
    result = json.loads(metadata["result"])
    assert (result["before"]["q"], result["after"]["q"]) == (0.15, 0.5)
    assert result["after"] == {
        "epoch": 2,
        "q": 0.5,
        "q_low": pytest.approx(0.41, abs=0.001),  # 0.5 - 1.96 sqrt(0.25 / 120)
        "q_high": pytest.approx(0.59, abs=0.001),
        "num_female": 60,
        "num_male": 60,
        "none": 8,
    }


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"_class_name": "FlaxPNDMScheduler", "state": 1}, "DDIMScheduler"),
        ({"_class_name": None}, "DDIMScheduler"),
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
    ],
)
def test_diffusers_opens_every_exported_scheduler(folders, tmp_path, changes, name):
    diffusers = pytest.importorskip("diffusers")
    model = shutil.copytree(folders["model"], tmp_path / "model")
    settings = {**tiny_model.SCHEDULER, **changes}
    path = model / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(settings), "utf-8-sig")
    (tmp_path / "out").mkdir()
    exporting._write_pipeline(
        tmp_path / "out", saved_run.read(folders["lora"]), 3, model
    )
    others = dict.fromkeys(("unet", "vae", "text_encoder", "tokenizer"))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "out", **others
    )
    assert type(pipeline.scheduler).__name__ == name
    sampler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    for option in settings.keys() - changes.keys():
        assert sampler.config[option] == settings[option]


def test_only_files_of_the_model_are_handed_on(folders, tmp_path):
    model = shutil.copytree(folders["model"], tmp_path / "model")
    (model / "tokenizer" / "notes.txt").write_text("private")
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (model / "tokenizer" / "added_tokens.json").symlink_to(secret)
    run = copied(folders, tmp_path / "run", model=str(model))
    with pytest.raises(UserError, match=r"added_tokens.json is a link to .*secret"):
        exporting.export(run, tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()
    # As the hub's cache has them; and the cache may be reached by a link.
    hub = tmp_path / "models--owner--name"
    (hub / "blobs").mkdir(parents=True)
    (model / "tokenizer" / "added_tokens.json").unlink()
    shutil.move(model, hub / "snapshots" / "main")
    secret.rename(hub / "blobs" / "abc")
    link = hub / "snapshots" / "main" / "tokenizer" / "special_tokens_map.json"
    link.unlink()
    link.symlink_to("../../../blobs/abc")
    model.symlink_to(hub / "snapshots" / "main")
    output = exporting.export(run, tmp_path / "out", "diffusers")
    found = {path.name for path in (output / "tokenizer").iterdir()}
    assert found <= set(sources.TOKENIZER) and link.name in found


def test_cards_say_use_effect_and_limits(exported):
    output = exported["lora"]
    card = (output / "README.md").read_text()
    for words in (
        "## Intended use",
        # Wilson's of 18 and 60 of 120; Newcombe's of their difference.
        "| female | 50\xa0% | 15\xa0% \\[10,\xa022\\] | 50\xa0% \\[41,\xa059\\] |"
        " 35\xa0points \\[23,\xa045\\] |",
        "128 images before training and 128 after epoch 2",
        "## Limits",
        tiny_model.PROMPTS[0],
        "load_lora_weights",
    ):
        assert words in card
    assert "ComfyUI and AUTOMATIC1111 read neither" in card
    for name in (lora_files.DIFFUSERS, lora_files.PEFT, lora_files.PEFT_CONFIG):
        assert name in card and (output / name).is_file()
    output = exported["kohya"]
    card = (output / "README.md").read_text()
    assert "`models/loras` of ComfyUI" in card and f'"{lora_files.KOHYA}")' in card
    assert {path.name for path in output.iterdir()} == {"README.md", lora_files.KOHYA}


CODE = re.compile("```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("format", ["diffusers", "lora", "kohya"])
def test_the_code_of_a_card_runs_in_its_folder(torch, exported, format, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    monkeypatch.chdir(exported[format])
    (code,), names = CODE.findall(Path("README.md").read_text()), {}
    exec(code, names)
    assert names["image"].size == (16, 16)


def test_the_card_has_rows_of_each_attribute(folders, tmp_path):
    several = made_runs.of_several("gender", "skin_tone")
    folder = copied(folders, tmp_path / "run", **several, **{"reward.combine": "joint"})
    cells = [(9, 2, 1, 75, 22, 11), (20, 20, 20, 20, 20, 20)]
    lines = [
        {"epoch": epoch}
        | made_runs.of_attributes(
            "eval_", gender=(12, 108), skin_tone=(84, 24, 12), gender_x_skin_tone=own
        )
        for epoch, own in enumerate(cells)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    run = saved_run.read(folder)
    card = model_card.write(run, 2, "lora")
    for words in (
        "# Gender and skin tone balance of",
        "- skin tone: 33% light, 33% medium and 33% dark",
        "- gender × skin tone: in each cell the product of these",
        "| Skin tone | Target | Before | After | Difference |",
        "| female light | 17\xa0% | 8\xa0% \\[",
        "`attributes.skin_tone.classifier`",
        '`reward.combine` | "joint"',
    ):
        assert words in card
    result = model_card.result(run, 2)
    assert result["after"]["attributes"]["skin_tone"]["counts"]["dark"] == 12
    assert "q" not in result["after"]
    assert "| images | 2 epochs of" in card
    card = model_card.write(run, 1, "lora")
    assert "Not measured" in card and "| images | 1 epoch of" in card
    run = saved_run.read(folders["lora"])
    assert model_card.result(run, 1)["after"] is None
    assert "Not measured" in model_card.write(run, 1, "lora")
    for strange in (float("nan"), 10**300):
        lines = [json.dumps(x | {"eval_num_female": strange}) for x in LINES]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
        assert "Not measured" in model_card.write(saved_run.read(folder), 3, "lora")
    run.config.model = "embedded_flow"
    card = model_card.write(run, 1, "lora")
    assert "the embedded flow model of `dd" in card
    names = {"Path": Path, "ddpo_fair": ddpo_fair}
    exec(re.search("base = .*", card)[0], names)
    assert (names["base"] / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run={full}", "--format=lora"), "train.lora.rank=0"),
        (("--run={full}", "--format=kohya"), "--format=kohya: "),
        (("--run={lora}", "--output={model}"), "exists and is not empty"),
    ],
)
def test_mistakes_are_refused(folders, tmp_path, capsys, arguments, message):
    given = [argument.format(**folders) for argument in arguments]
    if not any(argument.startswith("--output") for argument in given):
        given.append(f"--output={tmp_path / 'out'}")
    assert export.main(given) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_model_that_is_another_one_is_not_exported(folders, tmp_path):
    model = shutil.copytree(folders["model"], tmp_path / "model")
    folder = copied(folders, tmp_path / "run", model=str(model))
    config = saved_run.read(folder).config
    identity = description.identity(config, "model")
    run_folder.write_config(folder, config, {"model": identity})
    exporting.export(folder, tmp_path / "out", "lora")
    assert identity["fingerprint"] in (tmp_path / "out" / "README.md").read_text()

    def ask(variant):
        config.variant = variant
        run_folder.write_config(folder, config, {"model": identity})

    for harm, part in (
        (lambda: ask("fp16"), r"fp16\.safetensors(?!.*If it was moved)"),
        (
            lambda: ask("") or (model / "unet" / "config.json").write_text(" {}"),
            "unet/conf",
        ),
        (lambda: model.rename(model.parent / "moved"), "If it was moved, give"),
    ):
        harm()
        with pytest.raises(UserError, match=part):
            exporting.export(folder, tmp_path / "other", "lora")


def test_a_config_that_is_not_the_checkpoints_is_refused(folders, tmp_path):
    folder = copied(folders, tmp_path / "run")
    path = folder / "checkpoints" / "3" / run_folder.METADATA / "metadata"
    metadata = json.loads(path.read_text())
    settings = json.loads((folder / "config.json").read_text())["config"]
    metadata[run_folder.RUN] = {"config": {**settings, "seed": 4}}
    metadata["digest"] = run_folder.digest(metadata)
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="seed was 4 and is now 0"):
        exporting.export(folder, tmp_path / "out", "lora")


def test_two_exports_to_one_folder_do_not_mix(tmp_path):
    target, part = tmp_path / "both", tmp_path / ".both.part"
    (part / "unet").mkdir(parents=True)
    (part / "first").touch()
    first = os.open(part, os.O_RDONLY)  # as another process would
    fcntl.flock(first, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process or thread works there"):
        exporting._new_folder(target).__enter__()
    assert sorted(path.name for path in part.iterdir()) == ["first", "unet"]
    os.close(first)  # killed, which leaves all that
    for name in ("second", "third"):
        with exporting._new_folder(
            tmp_path / name if target.exists() else target
        ) as new:
            (new / name).touch()
    assert [path.name for path in target.iterdir()] == ["second"]
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "third"]


def test_an_output_that_cannot_be_written_is_named_as_it_was_given(tmp_path):
    for name in ("file", ".fair.part"):
        (tmp_path / name).touch()
    for output, way_out in (
        (tmp_path / "file" / "fair", "free some space"),
        (tmp_path / "fair", f"move {tmp_path / '.fair.part'} away, or choose"),
    ):
        said = f"^--output='{output}' cannot be written .*; {way_out}"
        with pytest.raises(UserError, match=said), exporting._new_folder(output):
            pass
