"""Audits that draw: as an evaluation draws, resumed, of adapters, refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import refusals
import tiny_model
import tiny_run
from PIL import Image

from ddpo_fair import audit
from ddpo_fair.auditing import audit_result, classified
from ddpo_fair.classifiers import audit_classifier
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.evaluation import evaluation_parts

NURSE, PILOT = tiny_model.PROMPTS
IMAGES = 5
SAMPLER = ("--steps=2", "--guidance-scale=3", "--eta=1", "--batch=1")


def draw(tiny, output, *flags, images=IMAGES):
    """The audit of images of the tiny model."""
    own = {"prompt": NURSE} if not any("prompts=" in x for x in flags) else {}
    given = dict(x.removeprefix("--").split("=", 1) for x in (*SAMPLER, *flags))
    own |= {name.replace("-", "_"): value for name, value in given.items()}
    return audit.model(
        own.pop("model", tiny[0]),
        images,
        output=output,
        classifier=tiny[1],
        confidence=0.5,
        **own,
    )


def pixels(folder):
    """Of all images below a folder, in order, uint8 [N, H, W, 3]."""
    paths = sorted(folder.rglob("*.png"))
    return np.stack([np.asarray(Image.open(path), np.int32) for path in paths])


def content(folder):
    """The bytes of each file of a drawing, by its name; places and times differ."""
    whole = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in whole}
    return {
        x: y for x, y in named.items() if not x.startswith(("audit.", classified.KEPT))
    }


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Flags, and the folder of an audit that was drawn with them."""
    root = tmp_path_factory.mktemp("whole")
    (root / "prompts.txt").write_text(f"{NURSE}\n\n{PILOT}\n")
    flags = (f"--prompts={root / 'prompts.txt'}", "--seed=3")
    draw(tiny, root / "audit", *flags)
    return flags, root / "audit"


def test_a_drawing_that_was_killed_goes_on(tiny, whole, tmp_path, monkeypatch):
    (flags, whole), broken = whole, tmp_path / "broken"
    save, written = evaluation_parts.save_image, []

    def killed(path, image):
        if len(written) == 9:  # in the second batch
            path.with_name(f".{path.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        save(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_parts, "save_image", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(tiny, broken, *flags)
    written.pop().write_bytes(b"half")  # by a machine that went down
    before = {path: path.read_bytes() for path in written}
    found = draw(tiny, broken, *flags, "--batch=2")  # which rounds otherwise
    assert content(broken).keys() == content(whole).keys()
    for path, old in before.items():
        same = whole / path.relative_to(broken)
        assert path.read_bytes() == old == same.read_bytes()
    np.testing.assert_allclose(pixels(broken), pixels(whole), atol=1)
    (gender,) = found.attributes.values()
    assert [x["prompt"] for x in gender["prompts"]] == [NURSE, PILOT]
    # The prompts in another order, and fewer images of each.
    table = tmp_path / "prompts.txt"
    table.write_text(f"{PILOT}\n{NURSE}\n")
    found = draw(tiny, broken, f"--prompts={table}", "--seed=3", images=2)
    assert found.images == 4 and "more than --images-per-prompt" in found.notes[0]


@pytest.mark.long
def test_sigkill_in_a_process_of_its_own(tiny, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = [f"--model={tiny[0]}", *SAMPLER, f"--prompt={NURSE}", f"--output={broken}"]
    flags += ["--images-per-prompt=64", f"--classifier={tiny[1]}", "--confidence=0.5"]
    process = tiny_run.python("-m", "ddpo_fair.audit", *flags)
    tiny_run.wait_for(lambda: len(list(broken.rglob("*.png"))) > 4, process)
    process.kill()
    process.communicate()
    assert len(list(broken.rglob("*.png"))) < 64
    assert not (broken / audit_result.RESULT).exists()
    for folder in (whole, broken):
        draw(tiny, folder, images=64)
    assert content(broken) == content(whole)


def test_what_is_there_is_not_drawn(tiny, whole, tmp_path, monkeypatch, capsys):
    own, output = whole[0], shutil.copytree(whole[1], tmp_path / "a")
    monkeypatch.setattr(stable_diffusion, "load", None)  # no weights are read
    again = draw(tiny, output, *own, "--target=0.9,0.1")
    written = json.loads((output / audit_result.RESULT).read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(again)))
    assert written["source"]["model"] == str(tiny[0])
    flags = [f"--model={tiny[0]}", *SAMPLER, *own, f"--output={output}"]
    flags += [f"--images-per-prompt={IMAGES}", f"--classifier={tiny[1]}"]
    for name, before in (("seed", 3), ("steps", 2)):
        problem = refusals.refused(audit.main, [*flags, f"--{name}=4"], capsys)
        assert f"{name} was {before} and is now 4. Give the same to go on" in problem


def test_targets_of_prompts_and_the_audit_classifier(
    tiny, whole, tmp_path, monkeypatch
):
    jsonschema = pytest.importorskip("jsonschema")
    shutil.copytree(whole[1], tmp_path / "a")
    table, targets = tmp_path / "prompts.csv", tmp_path / "targets.json"
    table.write_text(f"prompt\n{NURSE}\n{PILOT}\n")
    shares = {"female": 0.9, "male": 0.1}
    targets.write_text(json.dumps({PILOT: {"gender": shares}}))
    second = tiny_model.save_classifier(tmp_path / "second", ("Woman", "Man"))
    flags = (f"--prompts={table}", f"--targets={targets}", "--seed=3")
    found = draw(tiny, tmp_path / "a", *flags, f"--audit-classifier={second}")
    one = found.attributes["gender"]
    assert [x["target"] for x in one["prompts"]] == [[0.5, 0.5], [0.9, 0.1]]
    for each, target in zip(one["prompts"], (0.5, 0.9), strict=True):
        share = each["observed"]["shares"][0]["estimate"]
        bias = each["observed"]["bias"]["estimate"]
        assert bias == pytest.approx(2 * abs(share - target))
    # The second classifier is the first with its labels the other way round.
    for each, other in zip(one["prompts"], one["audit"]["prompts"], strict=True):
        assert other["counts"] == each["counts"][::-1]
    assert one["audit"]["agreement"]["estimate"] == 0
    schema = Path(__file__).parents[1] / "docs" / "audit.schema.json"
    jsonschema.validate(vars(found), json.loads(schema.read_text()))
    page = (tmp_path / "a" / "audit.html").read_text()
    assert "target 90" in page and "agrees on 0" in page

    def faces(images):
        female = np.where(np.arange(len(images)) % 2, 0.9, np.nan)
        return audit_classifier.Faces(female, female, np.zeros((len(images), 4)))

    monkeypatch.setattr(audit_classifier, "choose", lambda wanted: wanted)
    monkeypatch.setattr(audit_classifier, "find_faces", faces)
    found = draw(tiny, tmp_path / "a", *flags, "--audit-classifier=dlib")
    second = found.attributes["gender"]["audit"]["prompts"]
    assert [x["counts"] for x in second] == [[2, 0], [3, 0]]
    assert [x["none"] for x in second] == [3, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--model=no/such/folder/of/models", "there is no such folder"),
        ("--images=.", "--model needs --images-per-prompt"),
        ("--prompts=x.txt", "--model needs --images-per-prompt"),
        ("--prompt= ", "is empty"),
        ("--lora={folder}", "is no file, nor a folder with"),
        ("--steps=0", "--steps='0' must be"),
        ("--variant=../x", "--variant='../x' must be the middle of the names"),
        ("--model={folder}/unet", "is not a model folder: it has no unet, vae"),
        ("--targets={folder}/unet/config.json", "is none of the prompts"),
        ("--audit-classifier=skin_tone=dlib", "is about skin_tone"),
        ("--audit-classifier={own}", "that of gender is --classifier"),
        ("--audit-classifier=none", "--audit-classifier: classifier='none'"),
        ("--output={folder}", "is not empty"),
    ],
    ids=refusals.named,
)
def test_what_cannot_be_drawn_is_refused(tiny, tmp_path, capsys, given, said):
    flags = [
        f"--model={tiny[0]}",
        *SAMPLER,
        f"--prompt={NURSE}",
        "--images-per-prompt=1",
    ]
    flags += [f"--classifier={tiny[1]}", f"--output={tmp_path / 'out'}"]
    flags.append(given.format(folder=tiny[0], own=tiny[1]))
    assert said in refusals.refused(audit.main, flags, capsys)
