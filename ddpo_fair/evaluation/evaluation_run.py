"""An evaluation run: batch after batch, each one's figures kept on disk."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import files, parallel, prompts
from ddpo_fair.classifiers import audit_classifier, classes, classifier
from ddpo_fair.errors import UserError
from ddpo_fair.evaluation import (
    classifier_evaluation,
    evaluation_models,
    evaluation_parts,
    evaluation_plan,
    evaluation_summary,
)
from ddpo_fair.evaluation.evaluation_models import EvaluationModels
from ddpo_fair.evaluation.evaluation_plan import AFTER, Job, Plan
from ddpo_fair.evaluation.evaluation_summary import OTHER
from ddpo_fair.loggers import progress
from ddpo_fair.statistics import accuracy, appearance
from ddpo_fair.statistics.prompt_metrics import Reference
from ddpo_fair.training import saved_run

NUM_TESTS, NUM_BALANCED = 240, 128  # renders
RENDERS = "parts/renders.npz"
GENDER = classes.GENDER.name


def draw(plan: Plan, folder: Path, models: EvaluationModels) -> None:
    """Draws all batches that are not there yet.

    While the host writes one batch the devices draw the next. A UserError if nothing
    can be written.
    """
    jobs = list(evaluation_plan.jobs(plan))
    missing = [job for job in jobs if not _is_done(plan, folder, job)]

    # One for each sampler: a program is compiled for the object.
    policy_of = functools.cache(
        functools.partial(evaluation_models.make_policy, models)
    )

    def start(job: Job) -> tuple[jax.Array, dict[str, jax.Array]]:
        policy = policy_of(job.sampler, job.sampler == plan.samplers[0])
        trajectory = evaluation_models.sample(models, policy, job)
        images = evaluation_models.decode(models, trajectory)
        found = evaluation_models.classify(models, images)
        if _measures_kl(plan, job):
            kl = evaluation_models.trajectory_kl(models, policy, trajectory)
            found["nats"] = kl
        return images, found

    finish = functools.partial(_finish, plan, folder, models)
    opening = _opening(plan, folder, jobs, len(missing))
    in_turn(opening, folder, len(jobs), missing, start, finish)


def in_turn(
    opening: str,
    folder: Path,
    total: int,
    missing: Sequence[Job],
    start: Callable[[Job], Any],
    finish: Callable[[Job, Any, progress.Progress], None],
) -> None:
    """Starts each of the missing jobs, of `total`, before the last one is finished.

    A UserError if nothing can be written.
    """
    bar = progress.Progress()
    bar.say(opening)
    bar.start(total, total - len(missing))
    pending, way_out = None, "free some space, then the same command continues"
    with contextlib.closing(bar), files.writing(str(folder), way_out):
        for job in missing:
            batch = start(job)
            if pending is not None:
                finish(*pending, bar)
            pending = job, batch
        if pending is not None:
            finish(*pending, bar)


def summary(
    saved: saved_run.SavedRun,
    plan: Plan,
    folder: Path,
    models: EvaluationModels,
    notes: list[str],
    confusions: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """The content of evaluation.json; writes grids and the confusion matrix.

    The matrices of the attributes that are calibrated correct their shares; where
    gender is not, that of renders does, if they can be drawn. What could not be
    measured is added to `notes`, a sentence each.
    """
    config, audit = saved.config, plan.source["audit"]
    arrays = evaluation_summary.gather(folder, plan)
    evaluation_parts.write_grids(folder, plan)
    renders, own, audit_matrix = None, dict(confusions), None
    if config.model in configuration.SHIPPED:
        renders = _renders(config, folder, models, notes)
    test, threshold = None, config.attributes.gender.confidence_threshold
    if renders is not None:
        test = accuracy.measure(renders["truth"], renders["probabilities"], threshold)
        own = {GENDER: test["confusion"][:2, :2]} | own
        image = classifier_evaluation.accuracy_png(test)
        files.replace(folder / "confusion_matrix.png", image)
        if audit == audit_classifier.DLIB:
            audit_matrix = audit_classifier.confusion_on_renders()
    if audit == audit_classifier.NO_AUDIT:
        notes.append(
            "No audit classifier was asked: --audit=dlib asks one (extra audit), the"
            " name of a second classifier another."
        )
    attributes = {x: (one.classes, one.target) for x, one in config.attributes.items()}
    reference = Reference(attributes, saved.targets, own, audit_matrix)
    content = evaluation_summary.summarise(
        arrays, plan, reference, config, renders, notes
    )
    if test is not None:
        content["classifier_test"] = test
    return content


def _is_done(plan: Plan, folder: Path, job: Job) -> bool:
    part = evaluation_parts.load_part(folder, job)
    if part is None or (_measures_kl(plan, job) and "nats" not in part):
        return False
    places = (
        evaluation_parts.image_path(folder, job, plan, x) for x in range(job.count)
    )
    return all(map(evaluation_parts.is_image, places))


def _measures_kl(plan: Plan, job: Job) -> bool:
    """Whether a job's batch is that along which the KL to the base policy is measured.

    It is AFTER's first batch, if its sampler is stochastic and its prompts are trained.
    """
    first = (job.sampler, job.model, job.number) == (plan.samplers[0], AFTER, 0)
    trained = plan.prompts[job.prompts[0]].set == prompts.TRAINED
    return first and trained and job.sampler.eta > 0


def _opening(plan: Plan, folder: Path, jobs: Sequence[Job], missing: int) -> str:
    there = len(jobs) - missing
    left = f" {there} batches are there." if there else ""
    return (
        f"Evaluation: {folder}; prompts: {len(plan.prompts)}, samplers of the trained"
        f" ones: {len(plan.samplers)}, images of each before and after: {plan.images},"
        f" in all: {sum(job.count for job in jobs):,}, batches: {len(jobs)}, on"
        f" {', '.join(parallel.describe())}; audit classifier: {plan.source['audit']}."
        f"{left}"
    )


def pixels(images: jax.Array) -> np.ndarray:
    """Drawn images [D, n, H, W, 3] in [0, 1] as uint8 [N, H, W, 3]; or a UserError."""
    found = parallel.gather(images)
    if np.isnan(found).any():
        raise UserError(
            "Drawn images are not finite: take other weights or LoRA, or float32."
        )
    return np.uint8(np.round(found * 255))


def _finish(
    plan: Plan,
    folder: Path,
    models: EvaluationModels,
    job: Job,
    batch: tuple[jax.Array, dict[str, jax.Array]],
    bar: progress.Progress,
) -> None:
    """Waits for a batch, audits it, and writes its images and figures."""
    bar.wait([batch[1]["probabilities"]], f"{job.sampler.name}, {job.model}")
    rows, images = slice(job.count), pixels(batch[0])[: job.count]
    arrays = {name: parallel.gather(found)[rows] for name, found in batch[1].items()}
    if plan.source["audit"] == audit_classifier.DLIB:
        faces = audit_classifier.find_faces(images)
    else:
        unknown = np.full(len(images), np.nan)
        boxes = appearance.central_boxes(len(images))
        faces = audit_classifier.Faces(unknown, unknown, boxes)
    for row, image in enumerate(images):
        path = evaluation_parts.image_path(folder, job, plan, row)
        evaluation_parts.save_image(path, image)
    arrays.setdefault("audit", faces.p_female)
    arrays |= {"ages": faces.ages}
    arrays |= {"angles": appearance.typology_angles(images, faces.boxes)}
    if models.others:
        each = classifier.by_attribute(models.others, arrays.pop("others"))
        arrays |= {OTHER + name: found for name, found in each.items()}
    arrays |= {"prompts": job.prompts[rows], "images": job.images[rows]}
    evaluation_parts.save_part(folder, job, arrays)


def _renders(
    config: ConfigDict, folder: Path, models: EvaluationModels, notes: list[str]
) -> dict[str, np.ndarray] | None:
    """Renders of known classes, as the run's classifier classifies them.

    "truth" int [R] and "probabilities" float32 [R, 2] of held-out ones, "features"
    float32 [B, F] of balanced ones; None where the extra that draws them is missing.
    """
    found = files.load_arrays(folder / RENDERS)
    if found is not None and "probabilities" in found:
        return found
    try:
        from ddpo_fair.embedded import renders  # the extra `data` may be missing
    except UserError as error:
        notes.append(f"Not compared with renders: {error}")
        return None
    print("Drawing renders, whose classes are known ...", flush=True)
    held_out = renders.held_out(NUM_TESTS)
    balanced = renders.balanced(config.prompts, NUM_BALANCED)
    probabilities, _ = evaluation_models.classify_pixels(models, held_out.images)
    _, features = evaluation_models.classify_pixels(models, balanced.images)
    found = dict(features=features, truth=held_out.truth, probabilities=probabilities)
    files.save_arrays(folder / RENDERS, found)
    return found
