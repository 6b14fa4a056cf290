"""evaluation.json: what all batches of an evaluation say together."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ddpo_fair
from ddpo_fair import prompts
from ddpo_fair.classifiers import classes
from ddpo_fair.evaluation import evaluation_plan
from ddpo_fair.evaluation.evaluation_plan import AFTER, BEFORE, Plan, Sampler
from ddpo_fair.statistics import comparison, estimates, prompt_metrics
from ddpo_fair.statistics.prompt_metrics import Answers, Judging
from ddpo_fair.training import run_folder


def gather(folder: Path, plan: Plan) -> dict[tuple[Sampler, str], dict]:
    """The arrays of all finished jobs, joined, by sampler and model."""
    found: dict[tuple[Sampler, str], list[dict[str, np.ndarray]]] = {}
    for job in evaluation_plan.jobs(plan):
        arrays = evaluation_plan.load_part(folder, job)
        if arrays is not None:
            found.setdefault((job.sampler, job.model), []).append(arrays)
    return {
        key: {
            name: np.concatenate([part[name] for part in parts])
            for name in set.intersection(*(set(part) for part in parts))
        }
        for key, parts in found.items()
    }


def summarise(
    arrays: dict[tuple[Sampler, str], dict[str, np.ndarray]],
    plan: Plan,
    judging: Judging,
    confidence: float,
    renders: dict[str, np.ndarray] | None,
    chain_kl: dict[str, np.ndarray] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The content of evaluation.json.

    Args:
        arrays: of `gather`.
        plan: what was drawn.
        judging: how answers are read.
        confidence: above which the classifier's answer counts.
        renders: features [R, F] of balanced renders and the classifier's test on
            held-out ones; None without renders.
        chain_kl: "nats" [N, T] of each step, "prompts" [N]; None where nobody measured.
        notes: what could not be measured, a sentence each.
    """
    samplers = []
    for index, how in enumerate(plan.samplers):
        entry: dict[str, Any] = {**how._asdict(), "of_training": index == 0}
        by_set: dict[str, dict[str, list]] = {BEFORE: {}, AFTER: {}}
        for model in (BEFORE, AFTER):
            answers = read(arrays[how, model], confidence)
            entry[model] = _of_model(answers, plan, judging, by_set[model])
        entry["change"] = _changes(by_set)
        samplers.append(entry)
    training = plan.samplers[0]
    return {
        "written_by": {
            "version": ddpo_fair.__version__,
            "commit": run_folder.commit(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
        "source": plan.source,
        "images_per_prompt": plan.images,
        "seed": plan.seed,
        "target": judging.target,
        "samplers": samplers,
        "quality": _quality(arrays, plan, training, renders),
        "kl_to_base": of_chain(chain_kl),
        "notes": list(notes),
    }


def read(arrays: dict[str, np.ndarray], confidence: float) -> Answers:
    """The answers of joined arrays."""
    probabilities = arrays["probabilities"]
    audit = arrays["audit"]
    if audit.ndim == 2:  # of a second ViT: both probabilities
        audit = _recognised(audit, confidence)
    return Answers(
        prompts=arrays["prompts"],
        labels=classes.labels(probabilities, confidence),
        p_female=probabilities[:, classes.FEMALE],
        confidence=probabilities.max(axis=1),
        audit=audit,
        angles=arrays["angles"],
        ages=arrays["ages"],
    )


def plain(value: Any) -> Any:
    """`value` as JSON has it; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _recognised(probabilities: np.ndarray, confidence: float) -> np.ndarray:
    """P(female) [N], NaN where neither class is sure enough."""
    labels = classes.labels(probabilities, confidence)
    female = probabilities[:, classes.FEMALE]
    return np.where(labels == classes.NONE, np.nan, female)


def _of_model(
    answers: Answers, plan: Plan, judging: Judging, by_set: dict[str, list]
) -> dict[str, Any]:
    prompts: dict[str, Any] = {}
    for index in np.unique(answers.prompts):
        prompt = plan.prompts[index]
        figures = prompt_metrics.of_prompt(answers.of(index), prompt, judging)
        prompts[prompt.text] = figures
        by_set.setdefault(prompt.set, []).append(figures)
    sets = {name: prompt_metrics.of_set(found) for name, found in by_set.items()}
    return {"sets": sets, "prompts": prompts}


def _changes(by_set: dict[str, dict[str, list]]) -> dict[str, Any]:
    changes = {}
    for name, before in by_set[BEFORE].items():
        figure = "adherence" if name == prompts.EXPLICIT else "bias"
        found = estimates.change(before, by_set[AFTER][name], figure)
        if found is not None:
            changes[name] = {figure: found}
    return changes


def _quality(arrays, plan: Plan, how: Sampler, renders) -> dict[str, Any]:
    """By set; of the features of the run's classifier."""
    before, after = arrays[how, BEFORE], arrays[how, AFTER]
    sets = np.array([plan.prompts[i].set for i in before["prompts"]])
    found: dict[str, Any] = {
        "features": "of the run's classifier, which also knows gender: part of what"
        " changes is what was meant to change",
    }
    for name in dict.fromkeys(sets.tolist()):
        rows = sets == name
        found[name] = comparison.of_pairs(
            before["features"][rows], after["features"][rows], before["prompts"][rows]
        )
        if name == prompts.TRAINED and renders is not None:
            found["to_balanced_renders"] = comparison.to_reference(
                renders["features"], before["features"][rows], after["features"][rows]
            )
    return found


def of_chain(chain_kl: dict[str, np.ndarray] | None) -> dict[str, Any] | None:
    """KL of the whole chain and of each step, in nats, a mean over prompts.

    Args:
        chain_kl: as in `summarise`.
    """
    if chain_kl is None:
        return None
    nats, of_prompt = chain_kl["nats"].astype(np.float64), chain_kl["prompts"]
    prompts = np.unique(of_prompt)

    def mean(values: np.ndarray) -> dict[str, float]:
        found = [
            estimates.interval(estimates.mean(values[of_prompt == prompt]))
            for prompt in prompts
        ]
        return estimates.over_prompts(found, lambda one: one)

    return {
        "prompts": len(prompts),
        "images": len(nats),
        "nats_per_image": mean(nats.sum(axis=1)),
        "nats_per_step": [mean(step) for step in nats.T],
    }
