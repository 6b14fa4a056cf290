"""Audits of folders: counts, intervals, corrections, and what is refused.

The typology angle tells plain colours apart, so each image's class is known.
"""

import errno
import fcntl
import io
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import refusals
import tiny_run
from PIL import Image
from scipy import stats

from ddpo_fair import attribute_rules, audit
from ddpo_fair.auditing import (
    calibration,
    classified,
    figures,
    image_plan,
)
from ddpo_fair.classifiers import audit_classifier, classes
from ddpo_fair.errors import UserError
from ddpo_fair.statistics import bias, correction, intervals

LIGHT, MEDIUM, DARK = (245, 225, 210), (200, 150, 115), (90, 60, 40)
FORMATS = ("png", "jpg", "webp", "gif", "tiff")
SCHEMA = Path(__file__).parents[1] / "docs" / "audit.schema.json"
TONE = ("--attributes=skin_tone", "--classifier=typology")


def paint(folder: Path, *counts: int) -> Path:
    """So many light, medium and dark images, of several formats and sizes."""
    folder.mkdir(parents=True)
    for colour, count in zip((LIGHT, MEDIUM, DARK), counts, strict=False):
        for index in range(count):
            name = f"{colour[0]}_{index}.{FORMATS[index % 5]}"
            Image.new("RGB", (20 + 9 * index, 40), colour).save(folder / name)
    return folder


def run(images: Path, output: Path, *flags: str) -> tuple[int, dict]:
    """The exit status and audit.json, which fits the schema."""
    jsonschema = pytest.importorskip("jsonschema")
    status = audit.main([f"--images={images}", f"--output={output}", *TONE, *flags])
    content = json.loads((output / "audit.json").read_text())
    jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    return status, content


def test_counts_shares_and_unreadable_files(tmp_path, capsys):
    images = tmp_path / "images"
    paint(images / "a nurse", 6, 3, 1)
    paint(images / "a <script>alert(1)</script>", 0, 0, 4)
    own = images / "a nurse"
    whole = (own / "245_0.png").read_bytes()
    huge = b"GIF89a" + 2 * (30_000).to_bytes(2, "little") + bytes(3)  # 900 megapixels
    broken = {"broken.png": b"x", "huge.gif": huge, "truncated.png": whole[:-30]}
    for name, content in {**broken, "notes.txt": b""}.items():
        (own / name).write_bytes(content)
    (own / "nowhere.png").symlink_to(tmp_path / "nowhere")
    (own / "again").symlink_to(images)  # in a circle
    (own / "~\x1b[31m.png").write_bytes(b"x")  # what no terminal shall obey
    status, found = run(images, tmp_path / "audit")
    assert status == 0 and found["images"] == 14
    unread = [name for name, _ in found["unreadable"]]
    assert unread == [f"a nurse/{name}" for name in (*broken, "~\x1b[31m.png")]
    assert found["skipped"][".txt files"] == 1 and sum(found["skipped"].values()) == 3
    other, nurse = found["attributes"]["skin_tone"]["prompts"]
    assert nurse["counts"] == [6, 3, 1] and nurse["none"] == 0
    # Goodman: Wilson's at the normal quantile of 1 - 0.025 / 3.
    z = stats.norm.ppf(1 - 0.025 / 3)
    low = (0.6 + z**2 / 20 - z * math.sqrt(0.024 + z**2 / 400)) / (1 + z**2 / 10)
    assert math.isclose(nurse["observed"]["shares"][0]["low"], low, rel_tol=1e-9)
    assert math.isclose(nurse["observed"]["bias"]["estimate"], 0.6 - 1 / 3)
    assert other["counts"] == [0, 0, 4]
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "Errors of the classifier are not corrected" in page
    printed = capsys.readouterr().out
    assert "a nurse/broken.png" in printed and "\x1b" not in printed


def test_the_embedded_classifier_is_said_to_know_renders_alone(tmp_path):
    paint(tmp_path / "images" / "a nurse", 1, 1, 1)
    _, found = run(tmp_path / "images", tmp_path / "audit")
    source, tone = found["source"], found["attributes"]["skin_tone"]
    said = "For photographs give another: --classifier=skin_tone=owner/name."
    for classifier, model, times in (
        *(("typology", None, 0), ("embedded", None, 1), ("embedded", "mine", 1)),
        *(("embedded", "embedded", 0), ("embedded", "embedded_flow", 0)),
    ):
        tone["classifier"], source["model"] = classifier, model
        assert sum(said in note for note in figures.notes(found)) == times


def test_any_mode_and_a_table_of_prompts(tmp_path):
    names = []
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        names.append(f"{mode.replace(';', '_')}.tiff")
        Image.new(mode, (30, 20)).save(tmp_path / names[-1])
    rows = [{"file": name, "prompt": "two\nlines <b>"} for name in (*names, "/no.png")]
    table = tmp_path / "prompts.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    _, found = run(tmp_path, tmp_path / "audit", f"--prompts={table}")
    assert found["images"] == 7 and len(found["missing"]) == 1
    assert found["attributes"]["skin_tone"]["prompts"][0]["prompt"] == "two\nlines <b>"
    assert "two\nlines &lt;b&gt;" in (tmp_path / "audit" / "audit.html").read_text()


def test_several_attributes_a_limit_and_a_baseline(tiny, tmp_path, capsys):
    first, second = paint(tmp_path / "first", 9, 3), paint(tmp_path / "second", 4, 4, 4)
    flags = ("--prompt=a nurse", "--target=skin_tone=0.25,0.5,0.25")
    own = (*flags, "--attributes=gender,skin_tone", f"--classifier=gender={tiny[1]}")
    assert attribute_rules.by_attribute("x", ["x", "b=y"], ("a", "b")) == {
        "a": "x",
        "b": "y",
    }
    for values, names, said in (
        (["x", "b=y", "z"], "ab", "'x' and 'z'; leave out one, or say of which"),
        (["b=x", "b=z"], "ab", r"'x' and 'z'; leave out one\.$"),
        (["x", "z"], "a", r"'x' and 'z'; leave out one\.$"),
    ):
        with pytest.raises(UserError, match=f"given twice, as {said}"):
            attribute_rules.by_attribute("x", values, names)
    _, old = run(first, tmp_path / "old", *own)
    assert old["attributes"]["gender"]["classifier"] == str(tiny[1])
    limit, before = "--fail-above=0.25", f"--baseline={tmp_path / 'old'}"
    status, new = run(second, tmp_path / "new", *flags, limit, before)
    assert status == 0
    # Light is 0.5 above its target in the first, dark and light 1/12 in the second.
    change = new["attributes"]["skin_tone"]["baseline"]["mean_change"]
    one, two = (bias.of_shares(x, (0.25, 0.5, 0.25)) for x in ((9, 3, 0), (4, 4, 4)))
    assert math.isclose(change["estimate"], 2 / 12 - 0.5)
    low = math.hypot(two.estimate - two.low, one.high - one.estimate)
    assert math.isclose(change["low"], change["estimate"] - low)
    status, _ = run(first, tmp_path / "failed", *flags, "--fail-above=0.2")
    assert one.low > 0.2 and status == 1
    said = "FAILED: the mean bias of skin tone is above 0.2"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "failed" / "audit.html").read_text()
    again = [f"--images={second}", "--prompt=x", *TONE, before]
    problem = refusals.refused(audit.main, [*again, f"--output={tmp_path}/old"], capsys)
    assert "would replace; give another --output" in problem
    problem = refusals.refused(audit.main, [*again, f"--output={tmp_path}/x"], capsys)
    assert "skin_tone.target was [0.25, 0.5, 0.25]" in problem
    again += [*flags, f"--output={tmp_path}/x"]
    one = old["attributes"]["skin_tone"]
    one |= {"fingerprint": "0123"}  # trained anew since, in the same folder
    (tmp_path / "old" / "audit.json").write_text(json.dumps(old))
    problem = refusals.refused(audit.main, again, capsys)
    assert "skin_tone.fingerprint was '0123' and is now 'typology'" in problem
    del one["fingerprint"]  # as an older version
    one["prompts"][0]["observed"]["bias"]["high"] = 1e300
    (tmp_path / "old" / "audit.json").write_text(json.dumps(old))
    problem = refusals.refused(audit.main, again, capsys)
    assert "lacks what an audit writes (LookupError('a bias from 0 to 2')" in problem


def test_calibration_corrects_by_its_matrix(tmp_path, capsys):
    labelled = tmp_path / "labelled"
    rows = ((16, 4, 0), (2, 18, 0), (0, 5, 15))
    for name, row in zip(classes.SKIN_TONE.classes, rows, strict=True):
        paint(labelled / name, *row)
    true = np.array([0.5, 0.25, 0.25])
    shown = true @ np.array(rows) / 20 * 80  # 34, 35.., 15
    images = paint(tmp_path / "images", *np.int64(np.round(shown)).tolist())
    _, found = run(images, tmp_path / "a", "--prompt=x", f"--calibration={labelled}")
    one = found["attributes"]["skin_tone"]
    assert one["confusion"] == [list(row) for row in rows]
    corrected = [x["estimate"] for x in one["prompts"][0]["corrected"]["shares"]]
    np.testing.assert_allclose(corrected, true, atol=1e-2)  # 80 images, rounded
    assert "are corrected for" in (tmp_path / "a" / "audit.html").read_text()
    kept = tmp_path / "a" / calibration.NAME
    again = f"--calibration=skin_tone={kept}"
    _, found = run(images, tmp_path / "b", "--prompt=x", again)
    assert found["attributes"] == {"skin_tone": one}
    content = json.loads(kept.read_text())
    other = {"version": 1, "attributes": {"age": {"source": "of another audit"}}}
    kept.write_text(json.dumps(other))
    calibration.write(kept.parent, content["attributes"])
    assert json.loads(kept.read_text())["attributes"] == (
        other["attributes"] | content["attributes"]
    )
    kept = kept.rename(kept.with_suffix(".JSON"))
    again = f"--calibration=skin_tone={kept}"
    for change, said in (
        ({"fingerprint": "0123"}, "fingerprint was '0123' and is now 'typology'"),
        ({"confidence": 0.5}, "confidence was 0.5 and is now 0.7"),
        ({"faces": True}, "faces was True and is now False"),
        ({"confusion": [[1, 0], [0, 1]]}, "characters): it is no calibration.json"),
        ({"unrecognised": [-9, 0, 0]}, "are not 3 x 3 and 3"),
        ({"unrecognised": [0.5, 0, 0]}, "are not 3 x 3 and 3"),
        ({"confusion": [[2**62] * 3] * 3}, "are not 3 x 3 and 3"),
        ({"confusion": [[0, 0, 0]] * 3}, "no image of light"),
        ({"confusion": None}, "must be an iterable, not NoneType"),
    ):
        attributes = {"skin_tone": content["attributes"]["skin_tone"] | change}
        kept.write_text(json.dumps(content | {"attributes": attributes}))
        flags = [f"--images={images}", "--prompt=x", *TONE, again]
        flags.append(f"--output={tmp_path / 'c'}")
        assert said in refusals.refused(audit.main, flags, capsys)


def test_classes_that_are_not_recognised_alike_are_said():
    one = {"classes": ["female", "male"], "confusion": [[45, 5], [2, 98]]}
    (said,) = calibration.notes({"gender": one | {"unrecognised": [50, 0]}})
    assert "recognised in 50% of female and 0% of male" in said
    assert not [*calibration.notes({"gender": one | {"unrecognised": [5, 10]}})]


def test_faces_are_cropped_before_they_are_classified(tmp_path, monkeypatch, capsys):
    # Light images have no face; a dark one's second, larger face is medium.
    class Box(NamedTuple):
        ends: tuple[int, int, int, int]
        left = property(lambda self: lambda: self.ends[0])
        top = property(lambda self: lambda: self.ends[1])
        right = property(lambda self: lambda: self.ends[2])
        bottom = property(lambda self: lambda: self.ends[3])

        def width(self):
            return self.ends[2] - self.ends[0] + 1

        def area(self):
            return self.width() * (self.ends[3] - self.ends[1] + 1)

    def detect(pixels, _):
        assert 512 <= max(pixels.shape) <= 1024
        if pixels[0, 0, 0] > 200:
            return []
        return [Box((0, 0, 9, 9)), Box((300, 100, 399, 199))]

    threads = SimpleNamespace(detect=detect)
    monkeypatch.setattr(audit_classifier, "_OF_THREAD", threads)
    monkeypatch.setattr(audit_classifier, "choose", str)
    images = paint(tmp_path / "images", 2, 0, 0)
    image = Image.new("RGB", (2048, 1024), DARK)
    image.paste(MEDIUM, (500, 100, 900, 500))
    image.save(images / "two.png")
    crop, number = audit_classifier.crop_face(image)
    # Scaled by a half; a quarter of its 100 pixels is the margin.
    assert number == 2 and crop.size == (2 * 150, 2 * 150)
    _, found = run(images, tmp_path / "audit", "--prompt=x", "--faces")
    assert found["faces"] == {"none": 2, "several": 1}
    (nurse,) = found["attributes"]["skin_tone"]["prompts"]
    assert nurse["counts"] == [0, 1, 0] and nurse["none"] == 2
    flags = [f"--images={images}", "--prompt=x", *TONE, f"--output={tmp_path / 'x'}"]
    flags.append(f"--baseline={tmp_path / 'audit'}")
    problem = refusals.refused(audit.main, flags, capsys)
    assert "cropped was True and is now False" in problem
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "2 images had no face" in page and "Without a face" in page


def test_a_matrix_that_corrects_nothing_is_refused():
    for confusion, said in (
        (((5, 5, 0), (5, 6, 0), (0, 0, 9)), r"smallest singular value is 0\.0"),
        (((0, 9), (9, 0)), "are classified as female more often"),
        (((9, 0), (0, 0)), "no image of male"),
    ):
        names = classes.CLASSES if len(confusion) == 2 else classes.SKIN_TONE.classes
        with pytest.raises(UserError, match=said):
            correction.check(np.array(confusion), names)


@pytest.mark.parametrize(
    "true, rates",
    [
        ((0.3, 0.7), ((0.6, 0.4), (0.05, 0.95))),
        ((0.2, 0.3, 0.5), ((0.8, 0.1, 0.1), (0.2, 0.7, 0.1), (0.05, 0.15, 0.8))),
        ((0.05, 0.25, 0.7), ((0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6))),
    ],
)
def test_corrected_intervals_cover_the_truth(true, rates):
    random, num_runs = np.random.default_rng(0), 300
    target = np.full(len(true), 1 / len(true))
    distance = np.abs(true - target).sum() / (1 if len(true) == 2 else 2)
    of_shares = of_bias = uncorrected = 0
    for _ in range(num_runs):
        confusion = np.array([random.multinomial(100, row) for row in rates])
        counts = random.multinomial(200, np.array(true) @ np.array(rates))
        shares, found = correction.of_shares(counts, confusion, target)
        each = zip(shares, true, strict=True)
        of_shares += all(one.low <= share <= one.high for one, share in each)
        of_bias += found.low <= distance <= found.high
        each = zip(intervals.goodman(counts.tolist()), true, strict=True)
        uncorrected += all(one.low <= share <= one.high for one, share in each)
    assert 0.93 <= of_shares / num_runs <= 0.98
    assert of_bias / num_runs >= 0.93  # more where which are too many is noise
    assert uncorrected / num_runs < 0.7  # the correction is the point


def test_the_mean_holds_the_noise_of_the_matrix():
    # Twenty calibration images leave the mean of many prompts uncertain.
    labels = np.tile(np.repeat([0, 1], [80, 20]), 30)
    of_image, prompts = np.repeat(np.arange(30), 100), [f"p{k}" for k in range(30)]
    few, many = (
        figures.of_attribute(
            labels,
            of_image,
            prompts,
            [(0.5, 0.5)] * 30,
            np.array([[9, 1], [1, 9]]) * factor,
        )["corrected"]["mean_bias"]
        for factor in (1, 1000)
    )
    assert few["estimate"] == many["estimate"] == pytest.approx(0.75)  # .6 / .8
    assert few["high"] - few["low"] > many["high"] - many["low"] + 0.2


def test_plan_is_the_binomial_power(capsys):
    def power(images: int) -> float:
        every = [intervals.wilson(k, images) for k in range(images + 1)]
        seen = [k for k, one in enumerate(every) if not one.low <= 0.5 <= one.high]
        return stats.binom.pmf(seen, images, 0.65).sum()

    needed = image_plan.images_for(0.3, 2)
    assert power(needed - 1) < 0.8 <= min(power(needed + k) for k in range(12))
    assert image_plan.images_for(0.9, 3) is None
    assert audit.main(["--plan", "--images-per-prompt=16"]) == 0
    printed = capsys.readouterr().out
    assert "[0.28, 0.72]" in printed  # Wilson of 8 of 16
    assert "by chance" in printed and "0.196" in printed  # binom(16, 8) / 2^16


def test_an_audit_that_was_killed_does_not_classify_again(tmp_path, monkeypatch):
    images = paint(tmp_path / "images", 30, 10, 5)
    flags, output = ("--prompt=x",), tmp_path / "audit"
    monkeypatch.setattr(classified, "BATCH", 1)  # of each of eight devices
    ask, asked = classified._probabilities, []

    def killed(model, params, pixels, size):
        if len(asked) == 24 and not (output / "audit.json").exists():
            with open(output / classified.KEPT, "ab") as file:
                file.write(b'\n5\n\xff["half')
            raise KeyboardInterrupt
        asked.extend(pixels)
        return ask(model, params, pixels, size)

    monkeypatch.setattr(classified, "_probabilities", killed)
    with pytest.raises(KeyboardInterrupt):
        options = {"attributes": "skin_tone", "classifier": "typology", "prompt": "x"}
        audit.folder(images, output=output, **options)
    (output / "audit.json").write_text('{"written_by"')  # not killed again
    _, found = run(images, output, *flags)
    assert len(asked) == 45
    kept = (output / classified.KEPT).read_bytes()
    (output / classified.KEPT).write_bytes(kept.replace(b"[1, 2]", b"[1, 0]", 2))
    _, found = run(images, output, *flags)
    assert len(asked) == 45 + 2
    del asked[-2:]
    assert found["attributes"]["skin_tone"]["prompts"][0]["counts"] == [30, 10, 5]
    run(images, output, *flags, "--target=0.2,0.3,0.5")
    assert len(asked) == 45
    path = images / "245_0.png"  # another image now, of the same size and time
    old, content = path.stat(), io.BytesIO()
    Image.new("RGB", (9, 9), DARK).save(content, "PNG")
    path.write_bytes(content.getvalue().ljust(old.st_size, b"\0"))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size
    _, found = run(images, output, *flags)
    assert len(asked) == 46
    assert found["attributes"]["skin_tone"]["prompts"][0]["counts"] == [29, 10, 6]
    run(images, output, *flags, "--confidence=0.5")
    assert len(asked) == 46 + 45


def test_a_second_audit_in_the_folder_is_refused(tmp_path, capsys, monkeypatch):
    images, output = paint(tmp_path / "images", 1, 1, 1), tmp_path / "audit"
    output.mkdir()
    other = os.open(output, os.O_RDONLY)  # as another process would
    fcntl.flock(other, fcntl.LOCK_EX)
    flags = (f"--images={images}", "--prompt=x", f"--output={output}", *TONE)
    said = refusals.refused(audit.main, flags, capsys)
    assert "--output=" in said and "process or thread works there; wait for" in said
    assert not any(output.iterdir())
    os.close(other)

    def of_another(*_):  # as some file systems say it
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", of_another)
        assert refusals.refused(audit.main, flags, capsys) == said
    assert audit.main(flags) == audit.main(flags) == 0  # this one may go on


@pytest.mark.long
def test_sigkill_twice_leaves_the_audit_of_an_unbroken_one(tmp_path):
    images, broken = paint(tmp_path / "images", 5, 3, 1), tmp_path / "broken"
    for path in list(images.iterdir()):
        for index in range(100):
            os.link(path, path.with_stem(f"{path.stem}_{index}"))
    kept = broken / classified.KEPT

    def count() -> int:
        return kept.read_bytes().count(b"\n") if kept.is_file() else 0

    flags = [f"--images={images}", "--prompt=x", *TONE, f"--output={broken}"]
    for least in (150, 450):  # in batches of 32, on one device
        one = tiny_run.devices(1)
        process = tiny_run.python("-m", "ddpo_fair.audit", *flags, XLA_FLAGS=one)
        tiny_run.wait_for(lambda least=least: count() > least, process)
        process.kill()
        process.communicate()
        assert count() < 9 * 101
        assert not (broken / "audit.json").exists()
    written = []
    for output in (broken, tmp_path / "whole"):
        run(images, output, "--prompt=x")
        rows = (output / classified.KEPT).read_text().split("\n")[1:]
        assert len({json.loads(row)[0] for row in rows}) == len(rows) == 9 * 101
        lines = (output / "audit.json").read_text().splitlines()
        written.append([line for line in lines if '"date"' not in line])
    assert written[0] == written[1]


def test_a_gate_that_chance_may_fail_says_how_many_images_would_do(tmp_path, capsys):
    for prompt in "ab":
        paint(tmp_path / "images" / prompt, 0, 8, 8)
    flags = ("--fail-above=0.05", "--target=0,0.5,0.5")
    status, found = run(tmp_path / "images", tmp_path / "out", *flags)
    fair = found["attributes"]["skin_tone"]["observed"]["bias_of_a_fair_model"]
    # sqrt(q (1 - q) / (2 pi n)) of two classes with a half each
    assert fair == pytest.approx(2 * math.sqrt(0.25 / (2 * math.pi * 16)))
    needed = math.ceil(16 * (fair / 0.05) ** 2)
    assert status == 0 and f"About {needed} images of each prompt" in found["notes"][-1]


def test_a_bias_above_1_fits_the_figure_and_python_gives_lists(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "")  # else start asks for no devices
    images = paint(tmp_path / "images", 3, 1)
    options = {"classifier": tiny[1], "confidence": 0, "target": "0.1,0.9"}
    found = audit.folder(images, prompt="x", output=tmp_path / "out", **options)
    free = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process may go on
    os.close(free)
    (one,) = found.attributes["gender"]["prompts"]
    high = one["observed"]["bias"]["high"]
    assert high > 1
    page = (tmp_path / "out" / "audit.html").read_text()
    assert (
        "the bias from 0 to 1.8" in page and f'x2="{6 + 164 * high / 1.8:.1f}"' in page
    )
    found = audit.folder(
        images,
        prompt="a nurse",
        attributes=["gender", "skin_tone"],
        classifier=[f"gender={tiny[1]}", "skin_tone=typology"],
        output=tmp_path / "lists",
    )
    assert list(found.attributes) == ["gender", "skin_tone"]
    given = ["--plan", "--images-per-prompt=8", "--target=0.3,0.7", "--fail-above=1"]
    said = refusals.refused(audit.main, given, capsys)
    assert "leave --target and --fail-above out" in said


def garbage(root: Path) -> str:
    for path in root.rglob("*.*"):
        path.write_bytes(b"GIF89a")
    return "--prompt=x"


@pytest.mark.parametrize(
    "given, said",
    [
        ("--images=no/such", "is no folder"),
        ("--images={empty}", "holds no images"),
        ("--prompt= ", "is empty"),
        ("", "Name one for all with --prompt"),
        (garbage, "None of 3 files can be read"),
        ("name,text\na.png,b\n", "its columns are 'name, text'"),
        ("file,prompt\n,x", "line 2 has no file"),
        ("file,prompt\na.png,b, c\n", "line 2 has a comma that no quotes"),
        ("file,prompt,prompt\na.png,b,c\n", "its columns are 'file, prompt, p"),
        ("file,prompt\n", "has no line"),
        ("file,prompt\n\xff\xfe,x", "utf-8"),
        ('file,prompt\n"a,b', "unexpected end of data"),
        ("file,prompt\na.png,b\n./x/../a.png,c", "has another prompt"),
        ("file,prompt\n../a.png,b", "none of its files is there, the first is '"),
        ("[1]", "line 1 is no object"),
        ('{"file": 1, "prompt": "x"}', "line 1 has no file"),
        ('{"file": "a.png", "file": "b.png"}', "stands there twice"),
        ("[1\n{", "line 1 is no JSON"),
        ('{"file": "a\\u0000.png", "prompt": "x"}', "none of its files"),
        (lambda x: os.mkfifo(x / "t.csv") or f"--prompts={x}/t.csv", "not a file"),
        ("--attributes=height", "has no classes"),
        ("--target=0.9,0.9,0", "with sum 1"),
        ("--target=gender=0.9,0.1", "is about gender"),
        ("--fail-above=nan", "in the range"),
        ("--classifier=no/such/folder", "no/such/folder"),
        ("--baseline={empty}", "no audit.json"),
        ("--calibration={empty}", "--calibration"),
        ("--plan", "--images-per-prompt"),
        ("--engine=diffusers", "--engine is for images that are drawn"),
        ("--seed=3", "--seed is for images that are drawn"),
        ("--lora=x", "--model"),
        ("--output=.", "is not empty"),
        ("--output=/proc/x", "--output='/proc/x' cannot be written (No such"),
        (
            lambda x: (x / "audit.json").write_text("npm") and f"--output={x}",
            "--output/audit.json=",
        ),
    ],
    ids=refusals.named,
)
def test_what_is_malformed_is_refused(given, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    images = paint(tmp_path / "images", 1, 1, 1)
    if callable(given):
        given = given(images)
    elif given and not given.startswith("--"):  # a table
        table = tmp_path / ("t.jsonl" if given[0] in "[{" else "t.csv")
        table.write_text(given, encoding="latin-1")
        given = f"--prompts={table}"
    flags = [f"--images={images}", *TONE, f"--output={tmp_path / 'out'}"]
    if given and not given.startswith(("--prompt", "--images={")):
        flags.append("--prompt=x")
    flags += [given.format(empty=tmp_path / "empty")] if given else []
    assert said in refusals.refused(audit.main, flags, capsys)
    assert not (tmp_path / "out").exists()
