"""Audits that draw: as an evaluation draws, resumed, of adapters, refused."""

import json

import numpy as np
import pytest
import refusals
import tiny_model
import tiny_run
from PIL import Image

from ddpo_fair import audit, evaluate, export
from ddpo_fair.auditing import drawn_images
from ddpo_fair.classifiers import audit_classifier
from ddpo_fair.evaluation import evaluation_parts
from ddpo_fair.models import lora_files

NURSE, PILOT = tiny_model.PROMPTS
IMAGES = 5
SAMPLER = ("--steps=2", "--guidance-scale=3", "--eta=1", "--batch=1")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The folder of a run with adapters, evaluated on its prompt, and its export."""
    folder = tmp_path_factory.mktemp("audit_model")
    config = tiny_model.config(*tiny, folder)
    config.train.lora.target_modules = ("conv1", "conv_out")
    config.sample.num_steps = config.train.microbatch = 2
    saved = tiny_run.save(config, 0.2)
    flags = (f"--images={IMAGES}", "--sets=trained", "--samplers=training")
    assert evaluate.main([f"--run={saved}", *flags, "--audit=none"]) == 0
    for format in ("lora", "diffusers"):
        export.export(saved, folder / format, format)
    return saved


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
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def content(folder):
    """The bytes of each file of a drawing, by its name."""
    whole = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in whole}
    return {x: y for x, y in named.items() if not x.startswith("audit.")}


def test_the_audit_of_a_run_is_its_evaluation(tiny, run, tmp_path):
    evaluated = run / "evaluation_0003"
    before, after = (
        pixels(evaluated / "images" / "eta1_guidance3_steps2" / x)
        for x in ("before", "after")
    )
    found = draw(tiny, tmp_path / "base")
    np.testing.assert_array_equal(pixels(tmp_path / "base" / "images"), before)
    assert np.abs(before.astype(int) - after).max() > 1  # the adapters change them
    # PNGs' rounding lies between the two classifications: probabilities differ by it.
    part = np.load(next((evaluated / "parts").glob("*before*.npz")))
    sure = np.abs(part["probabilities"][:, 0] - 0.5) > 0.05
    assert sure.all()
    (nurse,) = found.attributes["gender"]["prompts"]
    labels = (part["probabilities"][:, 0] < 0.5).tolist()
    assert nurse["counts"] == [labels.count(False), labels.count(True)]
    # The run's checkpoint, its adapters in three formats, and its whole export.
    for number, flags in enumerate(
        (
            (f"--lora={run.parent / 'lora'}",),
            (f"--lora={run.parent / 'lora' / lora_files.PEFT}",),
            (f"--model={run.parent / 'diffusers'}",),
        )
    ):
        draw(tiny, tmp_path / str(number), *flags)
        found = pixels(tmp_path / str(number) / "images")
        assert np.abs(found.astype(int) - after).max() <= 1


def test_a_drawing_that_was_killed_goes_on(tiny, tmp_path, monkeypatch):
    table = tmp_path / "prompts.txt"
    table.write_text(f"{NURSE}\n\n{PILOT}\n")
    flags = (f"--prompts={table}", "--seed=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    draw(tiny, whole, *flags)
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
    times = {path: path.stat().st_mtime_ns for path in written}
    found = draw(tiny, broken, *flags)
    assert content(broken) == content(whole)
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    # More images go on with those that are there, in other batches.
    draw(tiny, broken, *flags, "--batch=2", images=7)
    more, fewer = content(broken), content(whole)
    assert {x: more[x] for x in fewer if x.endswith(".png")} == {
        x: y for x, y in fewer.items() if x.endswith(".png")
    }
    draw(tiny, tmp_path / "more", *flags, images=7)
    np.testing.assert_allclose(
        pixels(broken / "images").astype(int), pixels(tmp_path / "more"), atol=1
    )
    assert [x["prompt"] for x in found.attributes["gender"]["prompts"]] == [
        NURSE,
        PILOT,
    ]


def test_what_is_there_is_not_drawn(tiny, tmp_path, monkeypatch):
    draw(tiny, tmp_path / "a")
    monkeypatch.setattr(drawn_images, "_load", None)  # no weights are read
    again = draw(tiny, tmp_path / "a", "--target=0.9,0.1")
    written = json.loads((tmp_path / "a" / audit.RESULT).read_text())
    assert written == json.loads(json.dumps(vars(again)))
    assert written["source"]["model"] == str(tiny[0])


def test_targets_of_prompts_and_the_audit_classifier(tiny, tmp_path, monkeypatch):
    jsonschema = pytest.importorskip("jsonschema")
    table, targets = tmp_path / "prompts.csv", tmp_path / "targets.json"
    table.write_text(f"prompt\n{NURSE}\n{PILOT}\n")
    shares = {"female": 0.9, "male": 0.1}
    targets.write_text(json.dumps({PILOT: {"gender": shares}}))
    second = tiny_model.save_classifier(tmp_path / "second", ("Woman", "Man"))
    flags = (f"--prompts={table}", f"--targets={targets}")
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
    schema = drawn_images.Path(__file__).parents[1] / "docs" / "audit.schema.json"
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
        ("--lora={run}", "is no file, nor a folder with"),
        ("--seed=1", "seed was 0 and is now 1. Give the same to go on with it"),
        ("--steps=3", "steps was 2 and is now 3"),
        ("--steps=0", "--steps='0' must be"),
        ("--targets={run}/config.json", "is none of the prompts"),
        ("--audit-classifier=skin_tone=dlib", "is about skin_tone"),
        ("--output={run}", "is not empty"),
    ],
    ids=refusals.named,
)
def test_what_cannot_be_drawn_is_refused(tiny, run, tmp_path, capsys, given, said):
    flags = [
        f"--model={tiny[0]}",
        *SAMPLER,
        f"--prompt={NURSE}",
        "--images-per-prompt=1",
    ]
    flags += [f"--classifier={tiny[1]}", f"--output={tmp_path / 'out'}"]
    if " was " in said:
        assert audit.main(flags) == 0
    flags.append(given.format(run=run))
    assert said in refusals.refused(audit.main, flags, capsys)


def test_a_lora_needs_a_model(tmp_path, capsys):
    flags = [f"--images={tmp_path}", "--lora=x"]
    assert "--model" in refusals.refused(audit.main, flags, capsys)
