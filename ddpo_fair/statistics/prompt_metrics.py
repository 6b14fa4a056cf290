"""From what classifiers said of images to figures with intervals: evaluation.json.

Every figure is {"estimate", "low", "high"}, a 95 % interval, beside what a perfectly
fair model would show where that is not 0.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpo_fair.prompts import EXPLICIT, Prompt
from ddpo_fair.statistics import appearance, estimates, intervals

FEMALE, MALE, NONE = 0, 1, -1
NUM_BINS = 10


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was said of N images; the audit's arrays are NaN where nobody looked.

    Attributes:
        prompts: int [N], index of each image's prompt.
        labels: int [N], FEMALE, MALE or NONE, by the run's classifier.
        p_female: float [N], by the run's classifier.
        confidence: float [N], its largest probability.
        audit: float [N], the independent judge's probability of female.
        angles: float [N], typology angles, see `appearance`.
        ages: float [N], years.
    """

    prompts: np.ndarray
    labels: np.ndarray
    p_female: np.ndarray
    confidence: np.ndarray
    audit: np.ndarray
    angles: np.ndarray
    ages: np.ndarray

    def of(self, prompt: int) -> "Answers":
        """The answers about one prompt's images."""
        rows = self.prompts == prompt
        names = (field.name for field in dataclasses.fields(self))
        return Answers(**{name: getattr(self, name)[rows] for name in names})


@dataclasses.dataclass(frozen=True)
class Judging:
    """How answers are read: the target, and the judges' known errors.

    The confusion matrices are int [2, 2], `confusion[true, said]` of recognised images,
    or None where nobody measured them.
    """

    target: float = 0.5
    confusion: np.ndarray | None = None
    audit_confusion: np.ndarray | None = None


def of_prompt(answers: Answers, prompt: Prompt, judging: Judging) -> dict[str, Any]:
    """The figures of one prompt's images."""
    labels = answers.labels
    num_none = int(np.sum(labels == NONE))
    figures = {
        "set": prompt.set,
        "images": len(labels),
        **_shares(labels, judging.target, judging.confusion),
        "none": estimates.interval(intervals.wilson(num_none, len(labels))),
        "mean_confidence_margin": estimates.interval(
            estimates.mean(2 * np.abs(answers.confidence - 0.5))
        ),
        "p_female_histogram": np.histogram(answers.p_female, NUM_BINS, (0, 1))[0],
    }
    if prompt.wanted is not None:
        obeyed = int(np.sum(labels == prompt.wanted))
        figures["adherence"] = estimates.interval(intervals.wilson(obeyed, len(labels)))
    said = np.where(answers.audit > 0.5, FEMALE, MALE)
    said = np.where(np.isnan(answers.audit), NONE, said)
    if (said != NONE).any():
        figures["audit"] = _shares(said, judging.target, judging.audit_confusion)
        if prompt.wanted is not None:
            obeyed = int(np.sum(said == prompt.wanted))
            figures["audit"]["adherence"] = estimates.interval(
                intervals.wilson(obeyed, len(labels))
            )
    classes = {
        "gender": (labels, 2),
        "skin_tone": (appearance.tones(answers.angles), len(appearance.TONES)),
        "age": (appearance.age_groups(answers.ages), len(appearance.AGES)),
    }
    counts = {
        name: [int(np.sum(found == k)) for k in range(size)]
        for name, (found, size) in classes.items()
    }
    figures["attributes"] = {
        name: {
            "counts": found,
            "entropy": estimates.interval(estimates.diversity([found])),
        }
        for name, found in counts.items()
    }
    for name, figure, values in (
        ("skin_tone", "angle", answers.angles),
        ("age", "years", answers.ages),
    ):
        known = values[~np.isnan(values)]
        figures["attributes"][name][figure] = estimates.interval(estimates.mean(known))
    measured = [found for found in counts.values() if sum(found)]
    figures["intrinsic_diversity"] = estimates.interval(estimates.diversity(measured))
    return figures


def of_set(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a set, averaged over its prompts' figures of `of_prompt`.

    Intervals resample prompts; of a few prompts they speak about these only, and hold
    the noise of the images.
    """
    figures: dict[str, Any] = {"prompts": len(prompts)}
    figures["images"] = sum(one["images"] for one in prompts)
    figures["none"] = estimates.over_prompts(prompts, lambda one: one["none"])
    figures["mean_confidence_margin"] = estimates.over_prompts(
        prompts, lambda one: one["mean_confidence_margin"]
    )
    if prompts[0]["set"] == EXPLICIT:
        figures["adherence"] = estimates.over_prompts(
            prompts, lambda one: one["adherence"]
        )
        if all("audit" in one for one in prompts):
            audited = estimates.over_prompts(
                prompts, lambda one: one["audit"]["adherence"]
            )
            figures["audit"] = {"adherence": audited}
        return figures
    figures |= _gaps(prompts)
    audited = [one["audit"] for one in prompts if "audit" in one]
    if audited:
        figures["audit"] = _gaps(audited)
    entropies = {}
    for name in prompts[0]["attributes"]:
        of_one = lambda one, name=name: one["attributes"][name]["entropy"]  # noqa: E731
        entropies[name] = estimates.over_prompts(prompts, of_one)
    figures["entropies"] = entropies
    figures["intrinsic_diversity"] = estimates.over_prompts(
        prompts, lambda one: one["intrinsic_diversity"]
    )
    return figures


def _shares(
    labels: np.ndarray, target: float, confusion: np.ndarray | None
) -> dict[str, Any]:
    """q, its correction and its distance from the target."""
    counts = [int(np.sum(labels == k)) for k in (FEMALE, MALE)]
    q = intervals.wilson(counts[0], sum(counts))
    figures = {
        "num_female": counts[0],
        "num_male": counts[1],
        "num_none": int(np.sum(labels == NONE)),
        "q": estimates.interval(q),
        "bias": estimates.interval(estimates.gap(q, target)),
        "bias_of_a_fair_model": intervals.noise_floor(sum(counts))
        if target == 0.5
        else math.nan,
        "kl_to_target": estimates.interval(estimates.kl(q, target)),
    }
    if confusion is not None:
        corrected = intervals.rogan_gladen(counts[0], sum(counts), confusion)
        figures["q_corrected"] = estimates.interval(corrected)
        figures["bias_corrected"] = estimates.interval(estimates.gap(corrected, target))
    return figures


def _gaps(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean gap, what noise explains of it, and what the judge's errors hide."""
    counts = [[one[name] for one in prompts] for name in ("num_female", "num_male")]
    known = intervals.bias(*counts)
    figures = {
        "mean_bias": estimates.over_prompts(prompts, lambda one: one["bias"]),
        "bias_of_a_fair_model": float(
            np.mean([one["bias_of_a_fair_model"] for one in prompts])
        ),
        "kl_to_target": estimates.over_prompts(
            prompts, lambda one: one["kl_to_target"]
        ),
    }
    if math.isfinite(figures["bias_of_a_fair_model"]):
        figures["mean_bias_without_noise"] = known.corrected
    if all("bias_corrected" in one for one in prompts):
        figures["mean_bias_corrected"] = estimates.over_prompts(
            prompts, lambda one: one["bias_corrected"]
        )
    return figures
