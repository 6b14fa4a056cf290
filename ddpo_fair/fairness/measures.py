"""From what classifiers said of images to figures with intervals: evaluation.json.

Every figure is {"estimate", "low", "high"}, a 95 % interval, beside what a perfectly
fair model would show where that is not 0.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpo_fair.fairness import appearance, statistics
from ddpo_fair.fairness.prompt_sets import EXPLICIT, Prompt
from ddpo_fair.fairness.statistics import Interval

FEMALE, MALE, NONE = 0, 1, -1
NUM_BINS = 10
NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was said of N images; the audit's arrays are NaN where nobody looked.

    Attributes:
        prompts: int [N], index of each image's prompt.
        labels: int [N], FEMALE, MALE or NONE, by the run's classifier.
        p_female: float [N], by the run's classifier.
        sureness: float [N], its largest probability.
        audit: float [N], the independent judge's probability of female.
        angles: float [N], typology angles, see `appearance`.
        ages: float [N], years.
    """

    prompts: np.ndarray
    labels: np.ndarray
    p_female: np.ndarray
    sureness: np.ndarray
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
    """How answers are read: the target share of female, and the judges' known errors.

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
        "none": interval(statistics.wilson(num_none, len(labels))),
        "polarisation": interval(mean(2 * np.abs(answers.sureness - 0.5))),
        "p_female_histogram": np.histogram(answers.p_female, NUM_BINS, (0, 1))[0],
    }
    if prompt.wanted is not None:
        obeyed = int(np.sum(labels == prompt.wanted))
        figures["obeyed"] = interval(statistics.wilson(obeyed, len(labels)))
    said = np.where(answers.audit > 0.5, FEMALE, MALE)
    said = np.where(np.isnan(answers.audit), NONE, said)
    if (said != NONE).any():
        figures["audit"] = _shares(said, judging.target, judging.audit_confusion)
        if prompt.wanted is not None:
            obeyed = int(np.sum(said == prompt.wanted))
            figures["audit"]["obeyed"] = interval(
                statistics.wilson(obeyed, len(labels))
            )
    figures["attributes"] = {
        "gender": _classes(labels, 2),
        "skin_tone": _classes(appearance.tones(answers.angles), len(appearance.TONES))
        | {"angle": interval(mean(answers.angles[~np.isnan(answers.angles)]))},
        "age": _classes(appearance.age_groups(answers.ages), len(appearance.AGES))
        | {"years": interval(mean(answers.ages[~np.isnan(answers.ages)]))},
    }
    return figures


def of_set(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a set, averaged over its prompts' figures of `of_prompt`.

    Intervals resample prompts; of one prompt they are its own, over images.
    """
    figures: dict[str, Any] = {"prompts": len(prompts)}
    figures["images"] = sum(one["images"] for one in prompts)
    figures["none"] = over_prompts(prompts, lambda one: one["none"])
    figures["polarisation"] = over_prompts(prompts, lambda one: one["polarisation"])
    if prompts[0]["set"] == EXPLICIT:
        figures["obeyed"] = over_prompts(prompts, lambda one: one["obeyed"])
        if all("audit" in one for one in prompts):
            audited = over_prompts(prompts, lambda one: one["audit"]["obeyed"])
            figures["audit"] = {"obeyed": audited}
        return figures
    figures |= _gaps(prompts)
    audited = [one["audit"] for one in prompts if "audit" in one]
    if audited:
        figures["audit"] = _gaps(audited)
    entropies = {}
    for name in prompts[0]["attributes"]:
        of_one = lambda one, name=name: one["attributes"][name]["entropy"]  # noqa: E731
        entropies[name] = over_prompts(prompts, of_one)
    figures["entropies"] = entropies
    figures["intrinsic_diversity"] = over_prompts(prompts, _diversity)
    return figures


def change(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], name: str
) -> dict[str, float] | None:
    """After - before of a figure, over the same prompts in the same order.

    None for one prompt, whose own intervals say more than a resampling of one.
    """
    pairs = [
        (one[name]["estimate"], two[name]["estimate"])
        for one, two in zip(before, after, strict=True)
        if name in one and name in two
    ]
    values = np.array([b - a for a, b in pairs], np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None
    return interval(_bootstrap(values))


def over_prompts(
    prompts: Sequence[dict[str, Any]], figure: Callable[[dict[str, Any]], Any]
) -> dict[str, float]:
    """The mean over prompts of a figure, a number or an interval."""
    found = [figure(one) for one in prompts]
    if len(found) == 1 and isinstance(found[0], dict):
        return found[0]
    values = [one["estimate"] if isinstance(one, dict) else one for one in found]
    finite = np.array([value for value in values if math.isfinite(value)], np.float64)
    if not len(finite):
        return interval(Interval(math.nan, math.nan, math.nan))
    if len(finite) == 1:
        return interval(Interval(float(finite[0]), math.nan, math.nan))
    return interval(_bootstrap(finite))


def interval(found: Interval) -> dict[str, float]:
    """An interval as JSON has it."""
    return dict(zip(("estimate", "low", "high"), map(float, found), strict=True))


def _shares(
    labels: np.ndarray, target: float, confusion: np.ndarray | None
) -> dict[str, Any]:
    """q, its correction and its distance from the target."""
    counts = [int(np.sum(labels == k)) for k in (FEMALE, MALE)]
    q = statistics.wilson(counts[0], sum(counts))
    figures = {
        "num_female": counts[0],
        "num_male": counts[1],
        "num_none": int(np.sum(labels == NONE)),
        "q": interval(q),
        "gap": interval(_gap(q, target)),
        "gap_of_a_fair_model": statistics.noise_floor(sum(counts))
        if target == 0.5
        else math.nan,
        "kl_to_target": statistics.kl_to_target(counts, (target, 1 - target)),
    }
    if confusion is not None:
        corrected = statistics.rogan_gladen(counts[0], sum(counts), confusion)
        figures["q_corrected"] = interval(corrected)
        figures["gap_corrected"] = interval(_gap(corrected, target))
    return figures


def _gap(q: Interval, target: float) -> Interval:
    """2 |q - target|, which is |f_female - f_male| for a target of 1/2."""
    bounds = [2 * abs(bound - target) for bound in (q.low, q.high)]
    low = 0.0 if q.low <= target <= q.high else min(bounds)
    return Interval(2 * abs(q.estimate - target), low, max(bounds))


def _gaps(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean gap, what noise explains of it, and what the judge's errors hide."""
    counts = [[one[name] for one in prompts] for name in ("num_female", "num_male")]
    known = statistics.bias(*counts)
    figures = {
        "mean_gap": over_prompts(prompts, lambda one: one["gap"]),
        "gap_of_a_fair_model": float(
            np.mean([one["gap_of_a_fair_model"] for one in prompts])
        ),
        "kl_to_target": over_prompts(prompts, lambda one: one["kl_to_target"]),
    }
    if math.isfinite(figures["gap_of_a_fair_model"]):
        figures["mean_gap_without_noise"] = known.corrected
    if all("gap_corrected" in one for one in prompts):
        figures["mean_gap_corrected"] = over_prompts(
            prompts, lambda one: one["gap_corrected"]
        )
    return figures


def _classes(labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    counts = [int(np.sum(labels == k)) for k in range(num_classes)]
    return {"counts": counts, "entropy": statistics.normalised_entropy(counts)}


def _diversity(prompt: dict[str, Any]) -> float:
    counts = [one["counts"] for one in prompt["attributes"].values()]
    measured = [each for each in counts if sum(each)]
    return statistics.intrinsic_diversity(measured) if measured else math.nan


def mean(values: np.ndarray) -> Interval:
    """A mean over images with its normal interval."""
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan)
    centre = float(np.mean(values))
    if len(values) == 1:
        return Interval(centre, math.nan, math.nan)
    half = statistics.Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def _bootstrap(values: np.ndarray) -> Interval:
    rng = np.random.default_rng(0)
    return statistics.bootstrap(values, rng, num_resamples=NUM_RESAMPLES)
