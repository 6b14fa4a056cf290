"""Models that are no models: places, weights, networks, schedulers, classifiers."""

import codecs
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import SCALARS, STEADY, arguments_of, refused

from ddpo_fair import train
from ddpo_fair.diffusion import ddim, networks
from ddpo_fair.errors import UserError
from ddpo_fair.models import vit


@pytest.fixture
def folders(sound, tmp_path):
    """A copy of them, to be damaged."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    return tmp_path


PLACES = {
    "no folder": ({"model": "no/such/folder"}, "no such folder"),
    "no model": ({"model": "../.."}, "is not a model folder: it has no unet, vae"),
    "a file": ({"model": "/etc/passwd"}, "a file, but not one of safetensors"),
    "no home": ({"model": "~nobody_here/x"}, "home directory"),
    "long": ({"model": 5000 * "m"}, "File name too long"),
    "not cached": ({"model": "owner/name"}, "HF_HUB_OFFLINE"),
    "an option": ({"model": "-owner/name"}, "or owner/name on the Hugging Face hub"),
    "no revision": ({"model": "owner/name@"}, "or owner/name on the Hugging Face hub"),
    "upwards": ({"model": "o/name@../../x"}, "or owner/name on the Hugging Face hub"),
    "an address": ({"model": "https://h/o/n"}, "or owner/name on the Hugging Face hub"),
    "no classifier": (
        {"attributes.gender.classifier": "nowhere"},
        "there is no such folder",
    ),
    "no variant": (
        {"variant": "fp16"},
        "Leave variant='fp16' out to read the usual files.",
    ),
    "run, no home": ({"run.dir": "~nobody_here/x"}, "'~nobody_here/x/mech_eng'"),
    "run, long": ({"run.dir": 5000 * "d"}, "File name too long"),
    "run in /proc": ({"run.dir": "/proc/here"}, "cannot be written (No such file"),
    "run in a file": ({"run.dir": "/etc/passwd/x"}, "cannot be written (Not a dir"),
    "many prompts": (
        {"prompts": [f"photo of a number {number}" for number in range(20)]},
        "x 8 devices = 32 images per epoch, but 20 prompts need 40",
    ),
}


@pytest.mark.parametrize(("changes", "part"), PLACES.values(), ids=PLACES)
def test_places_that_are_none(capsys, sound, tmp_path, changes, part):
    changes = {"run.dir": tmp_path, **changes}
    assert part in refused(train.main, arguments_of(sound, **changes), capsys)


UNET = pathlib.Path("model/unet/diffusion_pytorch_model.safetensors")
SCHEDULER = pathlib.Path("model/scheduler/scheduler_config.json")
EYES = pathlib.Path("classifier/preprocessor_config.json")


def strange_tensor(folders):
    """Adds one whose name would give a terminal orders."""
    tensors = safetensors.numpy.load_file(folders / UNET)
    tensors["\x1b[2J\n"] = np.zeros(1, "f4")
    safetensors.numpy.save_file(tensors, folders / UNET, metadata={"format": "pt"})


def not_a_number(path):
    """What puts a NaN among the weights of a file."""

    def harm(folders):
        tensors = safetensors.numpy.load_file(folders / path)
        next(iter(tensors.values())).flat[0] = np.nan
        safetensors.numpy.save_file(tensors, folders / path, metadata={"format": "pt"})

    return harm


def say(path, **values):
    """What changes values of a JSON file."""

    def harm(folders):
        content = json.loads((folders / path).read_text())
        (folders / path).write_text(json.dumps({**content, **values}))

    return harm


def write(path, content):
    return lambda folders: (folders / path).write_bytes(content)


def cut(path):
    """What keeps the first lines of a file."""

    def harm(folders):
        lines = (folders / path).read_text().splitlines(keepends=True)
        (folders / path).write_text("".join(lines[:-2]))

    return harm


def empty(path):
    return lambda folders: [x.unlink() for x in (folders / path).iterdir()]


def flux(folders):
    (folders / "model/unet").rename(folders / "model/transformer")
    say("model/transformer/config.json", _class_name="FluxTransformer2DModel")(folders)


TOKENS = "model/tokenizer/tokenizer_config.json"
HARMS = {
    "tensor": (strange_tensor, "\\x1b[2J [1] of"),
    "NaN, VAE": (not_a_number(f"model/vae/{UNET.name}"), "is not finite"),
    "NaN, classifier": (not_a_number("classifier/model.safetensors"), "is not finite"),
    "no part": (lambda folders: shutil.rmtree(folders / "model/vae"), "it has no vae"),
    "no pre": (lambda folders: (folders / EYES).unlink(), "does not exist"),
    "tokenizer": (write("model/tokenizer/vocab.json", b"{"), "no CLIP tokenizer that"),
    "no word": (
        write("model/tokenizer/merges.txt", b""),
        "knows 'photo' by its letters",
    ),
    "cut": (cut("model/tokenizer/merges.txt"), "is cut, no merge makes"),
    "no tokens": (empty("model/tokenizer"), "put all files of the original model's in"),
    "two": (lambda f: (f / "model/transformer").mkdir(), "a unet and a transformer;"),
    "Flux": (flux, "must be None or 'SD3Transformer2DModel'; of the models with a"),
    "no merges": (lambda f: (f / "model/tokenizer/merges.txt").unlink(), "merges.txt:"),
    "BOM, tokens": (write(TOKENS, codecs.BOM_UTF8 + b"{}"), "with a byte-order mark"),
    "layers": (say("model/unet/config.json", layers_per_block=10**6), "from 1 to 200"),
    "text": (say("model/unet/config.json", cross_attention_dim=17), "must be 16, as"),
    "size": (say("model/unet/config.json", sample_size=None), "sample_size=None must"),
    "huge": (say("model/unet/config.json", sample_size=10**6), "at most 256; use the"),
    "small": (say("model/vae/config.json", scaling_factor=1e-9), "from 0.001 to 1000;"),
    "grey": (say("model/vae/config.json", out_channels=1), "out_channels=1 must be 3"),
    "linspace": (say(SCHEDULER, timestep_spacing="linspace"), "set timestep_spacing"),
    "no noise": (
        say(SCHEDULER, set_alpha_to_one=True, steps_offset=0),
        "standard deviation 0",
    ),
    "beta": (say(SCHEDULER, beta_end=2), "beta_end=2 must be below 1"),
}


@pytest.mark.parametrize(("harm", "part"), HARMS.values(), ids=HARMS)
def test_models(capsys, folders, harm, part):
    harm(folders)
    every = {"train.skip_last_steps": 0, "train.microbatch": 2}
    arguments = arguments_of(folders, **every)
    text = refused(train.main, arguments, capsys)
    assert part in text
    assert str(folders) in text or "timesteps" in text


JSON = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.just({"0": "a"}))
CONFIGS = {
    "text_encoder": {**tiny_model.TEXT, "vocab_size": 100},
    "unet": tiny_model.UNET,
    "vae": tiny_model.VAE,
    "scheduler": {**tiny_model.SCHEDULER, "trained_betas": None},
    "classifier": tiny_model.VIT,
}


@settings(STEADY, max_examples=300)
@given(value=JSON, place=st.sampled_from([(p, n) for p in CONFIGS for n in CONFIGS[p]]))
def test_any_network_is_made_or_refused_in_words(value, place):
    part, name = place
    config = {**CONFIGS[part], name: value}
    try:
        if part == "scheduler":
            ddim.schedule(config, 5, 1.0)
        elif part == "classifier":
            vit.Config.from_dict(config)
        else:
            networks.of_configs({**CONFIGS, part: config}, "float32")
    except UserError as error:
        said = name if part == "scheduler" else "config.json"
        assert said in str(error) and len(str(error)) < 1000
