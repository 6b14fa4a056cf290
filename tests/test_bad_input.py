"""Mistakes of the reader: one paragraph with name, value, rule, way out; status 2."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import tiny_model

from ddpo_fair import assembly, run_folder, stopping, train

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'mech_eng.py'}:embedded"


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


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Runs the command, checks its manners, returns what it says."""
    monkeypatch.setattr(stopping.Stop, "listen", lambda self: None)

    def run(*arguments):
        assert train.main([str(argument) for argument in arguments]) == 2
        text = capsys.readouterr().err
        assert text.startswith("ddpo_fair.train: ")
        assert text.count("\n") == 1 and "Traceback" not in text
        return text

    return run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["Which experiment?", "--config=configs/mech_eng.py"]),
        (["--config="], ["Which experiment?"]),
        (["--config=nowhere.py"], ["'nowhere.py' is not a file", "choose one of"]),
        ([CONFIG.replace(":embedded", ":sd9")], ["'sd9'", "embedded or sd15"]),
        ([CONFIG, "--config.epoch=3"], ["config.epoch is no setting", "epochs"]),
        ([CONFIG, "--config.learning_rate=3"], ["did you mean train.learning_rate"]),
        ([CONFIG, "--config.zzz=3"], ["--help lists all settings"]),
        ([CONFIG, "--epochs=3"], ["'--epochs=3' is no flag", "--config.NAME=VALUE"]),
        ([CONFIG, "--config.epochs"], ["--config.epochs needs a value"]),
        ([CONFIG, "--config.epochs=1", "--config.epochs=2"], ["given twice"]),
        ([CONFIG, "--config.epochs=1.5"], ["'1.5' must be a whole number"]),
        ([CONFIG, "--config.epochs=0"], ["epochs=0 must be at least 1"]),
        ([CONFIG, "--config.sample.eta=high"], ["'high' must be a number"]),
        ([CONFIG, "--config.sample.eta=0"], ["sample.eta=0.0 must be above 0"]),
        ([CONFIG, "--config.sample.eta=nan"], ["sample.eta=nan must be above 0"]),
        ([CONFIG, "--config.seed=-1"], ["seed=-1 must be at least 0"]),
        ([CONFIG, "--config.train.guidance=perhaps"], ["must be true or false"]),
        ([CONFIG, "--config.train.objective=trpo"], ["'trpo' must be one of ppo,"]),
        ([CONFIG, "--config.reward.target=(1,1)"], ["reward.target", "with sum 1"]),
        ([CONFIG, "--config.reward.target=((("], ["must be numbers"]),
        (
            [
                CONFIG,
                "--config.sample.batch_per_device=6",
                "--config.train.updates_per_epoch=4",
            ],
            ["6 images per device", "try train.updates_per_epoch=3"],
        ),
        ([CONFIG, "--config.train.microbatch=7"], ["try train.microbatch="]),
        ([CONFIG, "--config.train.skip_last_steps=20"], ["leaves none"]),
        (
            [CONFIG, "--config.run.name=../../up"],
            ["'../../up' must be a folder's name"],
        ),
        ([CONFIG, "--config.run.name="], ["run.name='' must be"]),
        ([CONFIG, "--config.prompts="], ["is empty"]),
        (
            [CONFIG, "--config.prompts=photo of the face of a wizard"],
            ["does not know", "of a wizard'", "its nouns are accountant,"],
        ),
        ([CONFIG, "--config.model=no/such/folder"], ["no such folder"]),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_command_lines(refuse, arguments, parts, tmp_path):
    text = refuse(*arguments, *([f"--config.run.dir={tmp_path}"] if arguments else []))
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("def get_config(variant", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("def get_config(variant):\n    return 3", "must return the fields"),
        (
            "from ddpo_fair import config\n"
            "def get_config(variant):\n"
            "    c = config.defaults()\n"
            "    c.epochs = 'many'\n"
            "    return c",
            "line 4: TypeError",
        ),
        (
            "from ddpo_fair import config\n"
            "def get_config(variant):\n"
            "    c = config.defaults()\n"
            "    c.epcohs = 3\n"
            "    return c",
            "no more and no fewer",
        ),
    ],
)
def test_config_files(refuse, source, part, tmp_path):
    (tmp_path / "mine.py").write_text(source)
    assert part in refuse(f"--config={tmp_path / 'mine.py'}")


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


def edit(path, change):
    """Rewrites the tensors of a file."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


UNET = pathlib.Path("model/unet/diffusion_pytorch_model.safetensors")


def lose(folders):
    edit(folders / UNET, lambda tensors: tensors.pop("conv_in.bias"))


def misshape(folders):
    edit(
        folders / UNET,
        lambda tensors: tensors.update({"conv_in.bias": np.zeros(3, np.float32)}),
    )


def cut(folders):
    path = folders / UNET
    path.write_bytes(path.read_bytes()[:1000])


def remove(folders):
    shutil.rmtree(folders / "model" / "vae")


def rename_labels(folders):
    path = folders / "classifier" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "id2label": {"0": "cat", "1": "dog"}}))


def end_without_noise(folders):
    path = folders / "model" / "scheduler" / "scheduler_config.json"
    content = {**tiny_model.SCHEDULER, "set_alpha_to_one": True, "steps_offset": 0}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (lose, ["conv_in.bias [16] is missing"]),
        (misshape, ["conv_in.bias", "has shape [3], expected [16]"]),
        (cut, ["is no sound safetensors file"]),
        (remove, ["is not a model folder: it has no vae"]),
        (rename_labels, ["none means female", "cat, dog"]),
        (end_without_noise, ["standard deviation 0"]),
    ],
)
def test_folders_of_weights(refuse, folders, harm, parts):
    harm(folders)
    text = refuse(*arguments_of(folders))
    for part in parts:
        assert part in text


def test_a_run_of_another_config(refuse, folders, monkeypatch):
    def stop_here(config):
        raise AssertionError("the folder was not checked before the weights")

    monkeypatch.setattr(assembly, "build", stop_here)
    with pytest.raises(AssertionError):
        train.main(arguments_of(folders))
    text = refuse(*arguments_of(folders), "--config.seed=9")
    assert "seed was 0 and is now 9" in text
    run_folder.unlock(run_folder.lock(folders / "runs" / "mech_eng"))


def test_too_few_images_for_the_prompts(refuse, folders):
    prompts = [f"photo of number {number}" for number in range(20)]
    text = refuse(*arguments_of(folders, prompts=prompts))
    assert "x 8 devices = 32 images per epoch, but 20 prompts need 40" in text
    assert "try sample.batches=2" in text


def test_a_real_process_answers_at_once():
    command = [sys.executable, "-m", "ddpo_fair.train", CONFIG]
    start = time.monotonic()
    process = subprocess.run(
        [*command, "--config.sample.eta=0", "--config.train.objctive=ppo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    seconds = time.monotonic() - start
    assert process.returncode == 2 and process.stdout == ""
    assert "Traceback" not in process.stderr and process.stderr.count("\n") == 1
    assert "2 settings cannot be used" in process.stderr
    assert seconds < 10  # 0.7 s on an idle core
