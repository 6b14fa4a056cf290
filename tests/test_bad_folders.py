"""Damaged weights, networks, runs and checkpoints, and flags that name none."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from test_bad_input import CONFIG, SCALARS, STEADY, settings

from ddpo_fair import assembly, evaluate, export, report, run_folder, saved_run, train
from ddpo_fair.diffusion import ddim, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.models import vit


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Folders of a sound model and classifier."""
    root = tmp_path_factory.mktemp("sound")
    tiny_model.save_model(root / "model")
    tiny_model.save_classifier(root / "classifier")
    return root


@pytest.fixture
def folders(sound, tmp_path):
    """A copy of them, to be damaged."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    return tmp_path


def arguments_of(folders, **changes):
    """A command line for the tiny model in these folders."""
    flat = {
        "model": folders / "model",
        "classifier": folders / "classifier",
        "run.dir": folders / "runs",
        "sample.batch_per_device": 4,
        "train.microbatch": 4,
        "prompts": tiny_model.PROMPTS[0],
        **changes,
    }
    return [CONFIG, *(f"--config.{name}={value}" for name, value in flat.items())]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model": "no/such/folder"}, "no such folder"),
        ({"model": "../.."}, "is not a model folder: it has no unet, vae"),
        ({"model": "/etc/passwd"}, "no such folder"),
        ({"model": "~nobody_here/x"}, "home directory"),
        ({"model": 5000 * "m"}, "File name too long"),
        ({"model": "owner/name"}, "HF_HUB_OFFLINE"),
        ({"model": "-owner/name"}, "or owner/name on the Hugging Face hub"),
        ({"model": "owner/name@"}, "or owner/name on the Hugging Face hub"),
        ({"model": "owner/name@../../x"}, "or owner/name on the Hugging Face hub"),
        ({"model": "https://hub/owner/name"}, "or owner/name on the Hugging Face hub"),
        ({"classifier": "nowhere"}, "classifier='nowhere': there is no such folder"),
        ({"variant": "fp16"}, "holds no diffusion_pytorch_model.fp16.safetensors"),
        ({"run.dir": "~nobody_here/x"}, "run.dir/run.name='~nobody_here/x/mech_eng'"),
        ({"run.dir": 5000 * "d"}, "File name too long"),
        ({"run.dir": "/proc/here"}, "cannot be written (No such file or directory)"),
        ({"run.dir": "/etc/passwd/x"}, "cannot be written (Not a directory)"),
        (
            {"prompts": [f"photo of number {number}" for number in range(20)]},
            "x 8 devices = 32 images per epoch, but 20 prompts need 40",
        ),
    ],
    ids=range(17),
)
def test_places_that_are_none(capsys, sound, tmp_path, changes, part):
    changes = {"run.dir": tmp_path, **changes}
    assert part in refused(train.main, arguments_of(sound, **changes), capsys)


UNET = pathlib.Path("model/unet/diffusion_pytorch_model.safetensors")
SCHEDULER = pathlib.Path("model/scheduler/scheduler_config.json")
EYES = pathlib.Path("classifier/preprocessor_config.json")


def edit_tensors(change):
    """What changes the tensors of the UNet's file."""

    def harm(folders):
        tensors = safetensors.numpy.load_file(folders / UNET)
        change(tensors)
        safetensors.numpy.save_file(tensors, folders / UNET, metadata={"format": "pt"})

    return harm


def say(path, **values):
    """What changes values of a JSON file."""

    def harm(folders):
        content = json.loads((folders / path).read_text())
        (folders / path).write_text(json.dumps({**content, **values}))

    return harm


def write(path, content):
    return lambda folders: (folders / path).write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (edit_tensors(lambda x: x.pop("conv_in.bias")), "conv_in.bias [16] is missing"),
        (
            edit_tensors(lambda x: x.update({"conv_in.bias": np.zeros(3, "f4")})),
            "has shape [3], expected [16]",
        ),
        (
            edit_tensors(lambda x: x.update({"conv_in.bias": np.zeros(16, "i4")})),
            "is of type I32, expected one of F16",
        ),
        (
            edit_tensors(lambda x: x.update({"\x1b[2J\n": np.zeros(1, "f4")})),
            "\\x1b[2J [1] of",
        ),
        (write(UNET, b"\0" * 1000), "is no sound safetensors file"),
        (lambda folders: shutil.rmtree(folders / "model/vae"), "it has no vae"),
        (lambda folders: (folders / EYES).unlink(), "does not exist"),
        (write("model/tokenizer/vocab.json", b"{"), "no CLIP tokenizer that can be"),
        (write("model/unet/config.json", b"[]"), "holds no JSON object"),
        (write("model/vae/config.json", b"\xff"), "cannot be read as JSON"),
        (say("model/unet/config.json", layers_per_block=10**6), "from 1 to 200"),
        (say("model/unet/config.json", cross_attention_dim=17), "must be 16, as its"),
        (say("model/unet/config.json", sample_size=None), "sample_size is missing"),
        (say("model/vae/config.json", out_channels=1), "must be 3, for red, green"),
        (say("classifier/config.json", id2label={"0": "cat", "1": "dog"}), "cat, dog"),
        (say("classifier/config.json", id2label=[1]), "must number its classes"),
        (say(EYES, image_std=[0, 1, 1]), "image_std=[0, 1, 1] must be a list of three"),
        (say(EYES, resample=1), "it must be 0 (nearest), 2 (bilinear)"),
        (say(SCHEDULER, set_alpha_to_one=True, steps_offset=0), "standard deviation 0"),
        (say(SCHEDULER, beta_end=2), "beta_end=2 must be below 1"),
        (say(SCHEDULER, num_train_timesteps="1000"), "must be a whole number from 1"),
    ],
    ids=range(21),
)
def test_models(capsys, folders, harm, part):
    harm(folders)
    text = refused(train.main, arguments_of(folders), capsys)
    assert part in text
    assert str(folders) in text or "timesteps" in text or "scheduler" in text


JSON = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.just({"0": "a"}))
CONFIGS = {
    "text_encoder": {**tiny_model.TEXT, "vocab_size": 100},
    "unet": tiny_model.UNET,
    "vae": tiny_model.VAE,
}


@settings(STEADY, max_examples=300)
@given(value=JSON, place=st.sampled_from([(p, n) for p in CONFIGS for n in CONFIGS[p]]))
def test_any_network_is_made_or_refused_in_words(value, place):
    part, name = place
    configs = {**CONFIGS, part: {**CONFIGS[part], name: value}}
    try:
        stable_diffusion.networks_of(configs, "float32")
    except UserError as error:
        assert "config.json" in str(error) and len(str(error)) < 1000


@settings(STEADY, max_examples=200)
@given(value=JSON, name=st.sampled_from([*tiny_model.SCHEDULER, "trained_betas"]))
def test_any_schedule_is_made_or_refused_in_words(value, name):
    try:
        ddim.schedule({**tiny_model.SCHEDULER, name: value}, 5, 1.0)
    except UserError as error:
        assert "scheduler_config.json" in str(error) and len(str(error)) < 1000


@settings(STEADY, max_examples=100)
@given(value=JSON, name=st.sampled_from(list(tiny_model.VIT)))
def test_any_classifier_is_made_or_refused_in_words(value, name):
    try:
        vit.Config.from_dict({**tiny_model.VIT, name: value})
    except UserError as error:
        assert "config.json" in str(error) and len(str(error)) < 1000


@pytest.fixture
def run(sound, tmp_path):
    """A run's folder with settings, and a checkpoint 3 that is empty."""
    places = (sound / "model", sound / "classifier", tmp_path)
    config = tiny_model.config(*places)
    folder = run_folder.path_of(config)
    (folder / "checkpoints" / "3").mkdir(parents=True)
    run_folder.write_config(folder, config)
    return folder


@pytest.mark.parametrize(
    ("main", "flags", "part"),
    [
        (evaluate.main, ["--run={run}x"], "not the folder of a run. Runs beside it"),
        (evaluate.main, ["--run="], "--run='' cannot be used as a path (it is empty)"),
        (evaluate.main, ["--run=a\0b"], "control character"),
        (evaluate.main, ["--run=" + 5000 * "x"], "File name too long"),
        (evaluate.main, ["--run={run}", "--checkpoint=best"], "number of epochs done"),
        (evaluate.main, ["--run={run}", "--checkpoint="], "number of epochs done"),
        (evaluate.main, ["--run={run}", f"--checkpoint={5000 * '9'}"], "characters)"),
        (evaluate.main, ["--run={run}", "--checkpoint=7"], "holds the checkpoints 3"),
        (evaluate.main, ["--run={run}", "--checkpoint=x/checkpoints/3"], "Which run?"),
        (evaluate.main, ["--run={run}", "--images=1"], "--images: '1' must be a whole"),
        (evaluate.main, ["--run={run}", "--images=1e99"], "number from 2 to 100000"),
        (evaluate.main, ["--run={run}", "--seed=-1"], "number from 0 to 2147483647"),
        (evaluate.main, ["--run={run}", "--sets=all"], "must be of trained, held_out"),
        (evaluate.main, ["--run={run}", "--sets="], "must be of trained, held_out"),
        (evaluate.main, ["--run={run}", "--samplers="], "must be all, training, or"),
        (evaluate.main, ["--run={run}", "--samplers=2:1:5"], "eta 0 to 1"),
        (evaluate.main, ["--run={run}", "--samplers=0:1:0"], "steps 1 to 1000"),
        (evaluate.main, ["--run={run}", "--samplers=0:999:5"], "guidance 0 to 100"),
        (evaluate.main, ["--run={run}", "--prompt="], "is empty; say what to draw"),
        (evaluate.main, ["--run={run}", "--prompt=\x1b[2J"], "control character"),
        (evaluate.main, ["--run={run}", "--prompt=" + 5000 * "x"], "at most 1000 char"),
        (evaluate.main, ["--run={run}", "--audit=nobody"], "--audit='nobody': class"),
        (evaluate.main, ["--run={run}", "--output=a\0b"], "--output='a\\x00b' cannot"),
        (evaluate.main, ["--run={run}", "--imags=3"], "'--imags=3' is no flag"),
        (evaluate.main, ["--config=nowhere.py"], "is not a file of Python"),
        (evaluate.main, ["--run={run}", CONFIG], "Which run? The flags name"),
        (report.main, ["{run}x"], "is no run: it has neither config.json"),
        (report.main, [""], "The run='' cannot be used as a path"),
        (report.main, ["~nobody_here"], "home directory"),
        (report.main, ["{run}/config.json"], "is no run"),
        (report.main, ["{run}", "--output={run}"], "is a folder; name the page"),
        (report.main, ["{run}", "--output=/"], "is a folder; name the page"),
        (report.main, ["{run}", "--output={run}/config.json/x"], "cannot be written"),
        (report.main, ["{run}", "--outptu=x"], "Unrecognized arguments: --outptu=x"),
        (export.main, ["--run={run}x", "--output={run}y"], "not the folder of a run"),
        (export.main, ["--run={run}", "--output="], "(it is empty)"),
        (export.main, ["--run={run}", "--output=/"], "exists and is not empty"),
        (export.main, ["--run={run}", "--output={run}"], "nothing there was changed"),
        (export.main, ["--run={run}", "--output={run}/config.json/x"], "Not a direct"),
        (export.main, ["--run={run}", "--output=x", "--format=onnx"], "choose from"),
        (export.main, ["--run={run}", "--output=x", "--checkpoint=0"], "number from 1"),
        (export.main, ["--run={run}", "--output=x", "--checkpoint=7"], "checkpoints 3"),
        (
            export.main,
            ["--run={run}", "--output={run}y", "--format=lora"],
            "checkpoints/3 is damaged",
        ),
    ],
    ids=range(43),
)
def test_flags_of_the_other_commands(capsys, run, tmp_path, main, flags, part):
    before = sorted(path.name for path in tmp_path.iterdir())
    given_flags = [flag.replace("{run}", str(run)) for flag in flags]
    assert part in refused(main, given_flags, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not list(run.glob("evaluation*"))  # where a wrong flag would stay


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"config": 5, "images_per_epoch": 16}', "cannot be read"),
        ('{"config": {"epochs": "many"}, "images_per_epoch": 16}', "epochs"),
    ],
    ids=range(5),
)
def test_records_of_runs(capsys, run, sound, content, part):
    (run / "config.json").write_text(content)
    for flags in ([f"--run={run}"], [f"--run={run}", f"--output={run}y"]):
        main = evaluate.main if len(flags) == 1 else export.main
        assert part in refused(main, flags, capsys)
    changes = {"run.dir": run.parent, "run.name": run.name}
    assert part in refused(train.main, arguments_of(sound, **changes), capsys)


def test_settings_that_no_run_can_have_had(capsys, run):
    record = json.loads((run / "config.json").read_text())
    record["config"]["train.lora.rank"] = -1
    (run / "config.json").write_text(json.dumps(record))
    text = refused(evaluate.main, [f"--run={run}"], capsys)
    assert "train.lora.rank=-1 must be at least 0" in text and "Restore it" in text


def test_lines_that_no_run_has_written(run):
    lines = ['{"epoch": 0, "eval_q": 0.5}', '{"epoch": 1}', "5", '{"epoch": 2}']
    (run / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\n[")
    saved = saved_run.read(run)
    assert [line["epoch"] for line in saved.lines] == [0, 1]
    assert saved_run.result(saved, 2) == saved_run.Result(None, None)


def test_a_run_of_another_config(capsys, sound, tmp_path, monkeypatch):
    def stop_here(config):
        raise AssertionError("the folder was not checked before the weights")

    monkeypatch.setattr(assembly, "build", stop_here)
    monkeypatch.setattr("ddpo_fair.stopping.Stop.listen", lambda self: None)
    arguments = arguments_of(sound, **{"run.dir": tmp_path})
    with pytest.raises(AssertionError):
        train.main(arguments)
    text = refused(train.main, [*arguments, "--config.seed=9"], capsys)
    assert "seed was 0 and is now 9" in text
    run_folder.unlock(run_folder.lock(tmp_path / "mech_eng"))
