"""evaluation.json: the figures of all batches of an evaluation together."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import prompts
from ddpo_fair.classifiers import audit_classifier, classes
from ddpo_fair.diffusion import gaussian_step
from ddpo_fair.evaluation import evaluation_parts, evaluation_plan
from ddpo_fair.evaluation.evaluation_plan import AFTER, BEFORE, Plan, Sampler
from ddpo_fair.learning import scoring
from ddpo_fair.report import formatting
from ddpo_fair.statistics import accuracy, image_quality, intervals, prompt_metrics
from ddpo_fair.statistics.prompt_metrics import Answers, Reference
from ddpo_fair.training import run_folder

FEATURES = (
    "of the run's classifier, which also knows gender: part of what changes is what was"
    " meant to change"
)
WINDOW = (
    "Training's sampler has noise from step {} to {} alone, counted from 0. The KL to"
    " the base policy is that of these steps: the others have no density, and between"
    " two of their outcomes it would be infinite."
)
SILENT = (
    "Sampler {}: of {} of the set {} the audit classifier recognised no image before or"
    " none after training; its figures of the set are of the others."
)
OTHER = "attribute_"  # and its name: an array of a further attribute's probabilities


def gather(folder: Path, plan: Plan) -> dict[tuple[Sampler, str], dict]:
    """The arrays of all finished jobs, joined, by sampler and model.

    "nats" [n, T] is of the first job's images only, and missing where not measured.
    """
    found: dict[tuple[Sampler, str], list[dict[str, np.ndarray]]] = {}
    for job in evaluation_plan.jobs(plan):
        arrays = evaluation_parts.load_part(folder, job)
        if arrays is not None:
            found.setdefault((job.sampler, job.model), []).append(arrays)
    return {
        key: {
            name: np.concatenate([part[name] for part in parts if name in part])
            for name in parts[0]
        }
        for key, parts in found.items()
    }


def summarise(
    arrays: dict[tuple[Sampler, str], dict[str, np.ndarray]],
    plan: Plan,
    reference: Reference,
    config: ConfigDict,
    renders: dict[str, np.ndarray] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The content of evaluation.json, of arrays of `gather`.

    `renders` has "features" [R, F] of balanced renders; None without renders.
    """
    samplers, (first, end) = [], config.sample.sde_window
    if (first, end) != gaussian_step.ALL_STEPS:
        notes = [*notes, WINDOW.format(first, end - 1)]
    for index, how in enumerate(plan.samplers):
        entry: dict[str, Any] = {**how._asdict(), "of_training": index == 0}
        measured = [
            _of_prompts(arrays[how, model], plan, reference, config)
            for model in (BEFORE, AFTER)
        ]
        answered = [{x for x, y in of.items() if "audit" in y} for of in measured]
        for model, of in zip((BEFORE, AFTER), measured, strict=True):
            sets = _of_sets(of, answered[0] & answered[1], reference)
            entry[model] = {"sets": sets, "prompts": of}
        for name, one in entry[AFTER]["sets"].items():
            left = one["prompts"] - one.get("audit", {"prompts": 0})["prompts"]
            if left and plan.source.get("audit") != audit_classifier.NO_AUDIT:
                count = formatting.count(left, "prompt")
                notes = [*notes, SILENT.format(index + 1, count, name)]
        entry["change"] = _changes(entry)
        samplers.append(entry)
    ends = [arrays[plan.samplers[0], model] for model in (BEFORE, AFTER)]
    return {
        "written_by": {
            "version": ddpo_fair.__version__,
            "commit": run_folder.commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
        "source": plan.source,
        "images_per_prompt": plan.images,
        "seed": plan.seed,
        "target": config.attributes.gender.target[0],
        "samplers": samplers,
        "quality": _quality(*ends, plan, renders),
        "kl_to_base": trajectory_kl(ends[1], plan),
        "notes": notes,
    }


def answers_of(
    arrays: dict[str, np.ndarray], rows: np.ndarray, config: ConfigDict
) -> Answers:
    """The answers, above the thresholds of a run's settings, in rows of joined arrays.

    They are "probabilities" [N, 2], "angles" [N], "ages" [N], and "audit" [N] or, of a
    second ViT, [N, 2].
    """
    threshold = config.attributes.gender.confidence_threshold
    others = {
        name: arrays[OTHER + name][rows]
        for name in config.attributes
        if OTHER + name in arrays
    }
    probabilities, audit = arrays["probabilities"][rows], arrays["audit"][rows]
    if audit.ndim == 2:
        known = classes.labels(audit, threshold) != classes.NONE
        audit = np.where(known, audit[:, classes.FEMALE], np.nan)
    return Answers(
        labels=classes.labels(probabilities, threshold),
        p_female=probabilities[:, classes.FEMALE],
        margins=accuracy.confidence_margins(probabilities),
        audit=audit,
        angles=arrays["angles"][rows],
        ages=arrays["ages"][rows],
        others=scoring.labels_of(config, others),
    )


def _of_prompts(
    arrays: dict[str, np.ndarray], plan: Plan, reference: Reference, config: ConfigDict
) -> dict[str, Any]:
    """The figures of a model's images, of each prompt."""
    found = {}
    for index in np.unique(arrays["prompts"]):
        prompt = plan.prompts[index]
        answers = answers_of(arrays, arrays["prompts"] == index, config)
        found[prompt.text] = prompt_metrics.of_prompt(answers, prompt, reference)
    return found


def _of_sets(
    of_prompts: dict[str, Any], answered: Collection[str], reference: Reference
) -> dict[str, Any]:
    """The figures of each set; of the audit classifier those of prompts `answered`.

    They are the same before training and after, or the two could not be compared.
    """
    by_set: dict[str, list] = {}
    for text, figures in of_prompts.items():
        own = {x: y for x, y in figures.items() if x != "audit" or text in answered}
        by_set.setdefault(figures["set"], []).append(own)
    return {
        name: prompt_metrics.of_set(found, reference) for name, found in by_set.items()
    }


def _changes(entry: dict[str, Any]) -> dict[str, Any]:
    """After - before of each set's figure that training is meant to change."""
    changes = {}
    for name in entry[BEFORE]["sets"]:
        figure = "adherence" if name == prompts.EXPLICIT else "bias"
        each = (entry[model]["prompts"].values() for model in (BEFORE, AFTER))
        ends = ([one for one in found if one["set"] == name] for found in each)
        if found := prompt_metrics.change(*ends, figure):
            changes[name] = {figure: found}
    return changes


def _quality(
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    plan: Plan,
    renders: dict[str, np.ndarray] | None,
) -> dict[str, Any]:
    """What changed in the images themselves, by set."""
    sets = np.array([plan.prompts[i].set for i in before["prompts"]])
    quality: dict[str, Any] = {"features": FEATURES}
    for name in dict.fromkeys(sets.tolist()):
        rows = sets == name
        quality[name] = image_quality.of_pairs(
            before["features"][rows], after["features"][rows], before["prompts"][rows]
        )
        if name == prompts.TRAINED and renders is not None:
            quality["to_balanced_renders"] = image_quality.to_reference(
                renders["features"], before["features"][rows], after["features"][rows]
            )
    return quality


def trajectory_kl(arrays: dict[str, np.ndarray], plan: Plan) -> dict[str, Any] | None:
    """The trajectory KL to the base policy and that of each step; None if not measured.

    It is the mean over the plan's trained prompts. Of arrays "nats" [n, T] and
    "prompts" int [N], n first ones of which are those of "nats".
    """
    if "nats" not in arrays:
        return None
    of_image = arrays["prompts"][: len(arrays["nats"])]
    trained = np.array([plan.prompts[i].set == prompts.TRAINED for i in of_image])
    nats, of_image = arrays["nats"][trained].astype(np.float64), of_image[trained]
    distinct = np.unique(of_image)
    return {
        "prompts": len(distinct),
        "images": len(nats),
        "nats_per_image": _mean_over(distinct, of_image, nats.sum(axis=1)),
        "nats_per_step": [_mean_over(distinct, of_image, step) for step in nats.T],
    }


def _mean_over(
    prompts: np.ndarray, of_image: np.ndarray, values: np.ndarray
) -> dict[str, float]:
    """The mean over prompts of float [N]; `of_image` int [N] has each one's prompt."""
    found = [intervals.mean(values[of_image == prompt]) for prompt in prompts]
    return intervals.over_prompts(found, share=False)._asdict()
