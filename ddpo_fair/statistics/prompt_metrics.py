"""From what classifiers said of images to figures with intervals: evaluation.json.

Every figure is {"estimate", "low", "high"}, a 95 % interval, beside what a perfectly
fair model would show where that is not 0.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpo_fair.classifiers import classes, typology
from ddpo_fair.classifiers.classes import FEMALE, MALE, NONE
from ddpo_fair.learning.goals import Targets
from ddpo_fair.prompts import EXPLICIT, Prompt
from ddpo_fair.statistics import appearance, bias, correction, diversity, intervals
from ddpo_fair.statistics.intervals import Interval

NUM_BINS = 10
GENDER = classes.GENDER.name
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was said of N images; the audit's arrays are NaN where nothing was said."""

    labels: np.ndarray  # int [N], FEMALE, MALE or NONE, by the run's classifier
    p_female: np.ndarray  # float [N], by the run's classifier
    margins: np.ndarray  # float [N], its confidence margins, see `accuracy`
    audit: np.ndarray  # float [N], the audit classifier's probability of female
    angles: np.ndarray  # float [N], typology angles, see `appearance`
    ages: np.ndarray  # float [N], years
    # int [N], labels by each further attribute of the run
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What answers are compared with: the target, and the classifiers' known errors.

    The confusion matrices are int [K, K], `confusion[true, said]` of recognised images.
    """

    # The classes and the target of each attribute.
    attributes: Mapping[str, tuple[Sequence[str], Sequence[float]]]
    targets: Targets  # by attribute and prompt, which count instead of these
    confusions: Mapping[str, np.ndarray]  # of the attributes that are calibrated
    audit_confusion: np.ndarray | None = None

    def target(self, name: str, prompt: str) -> Sequence[float]:
        """The wanted shares of an attribute's classes."""
        return self.targets.get(name, {}).get(prompt, self.attributes[name][1])


def of_prompt(answers: Answers, prompt: Prompt, reference: Reference) -> Figures:
    """The figures of one prompt's images."""
    labels, target = answers.labels, reference.target(GENDER, prompt.text)[0]
    figures = {
        "set": prompt.set,
        "images": len(labels),
        **_shares(labels, target, reference.confusions.get(GENDER)),
        "none": _among(labels, NONE),
        "mean_confidence_margin": intervals.mean(answers.margins, True)._asdict(),
        "p_female_histogram": np.histogram(answers.p_female, NUM_BINS, (0, 1))[0],
    }
    audited = np.where(answers.audit > 0.5, FEMALE, MALE)
    audited = np.where(np.isnan(answers.audit), NONE, audited)
    if (audited != NONE).any():
        figures["audit"] = _shares(audited, target, reference.audit_confusion)
        likelier = np.where(answers.p_female > 0.5, FEMALE, MALE)
        alike = (likelier == audited)[audited != NONE]
        figures["audit"]["agreement"] = _among(alike, True)
    if prompt.wanted is not None:
        figures["adherence"] = _among(labels, prompt.wanted)
        if "audit" in figures:
            figures["audit"]["adherence"] = _among(audited, prompt.wanted)
    figures["classified"] = classified = {}
    for name, found in answers.others.items():
        names, wanted = (
            reference.attributes[name][0],
            reference.target(name, prompt.text),
        )
        confusion = reference.confusions.get(name)
        classified[name] = _classified(found, names, wanted, confusion)
    return figures | _attributes(answers)


def _classified(
    labels: np.ndarray,
    names: Sequence[str],
    target: Sequence[float],
    confusion: np.ndarray | None,
) -> Figures:
    """The shares of an attribute's classes, and their distance from the target."""
    counts = [int(np.sum(labels == k)) for k in range(len(names))]
    shares = [one._asdict() for one in intervals.goodman(counts)]
    corrected = {}
    if confusion is not None:
        each, distance = correction.of_shares(counts, confusion, target)
        if len(names) == 2:  # its bias, in the units of a distance
            distance = Interval(*(bound / 2 for bound in distance))
        corrected = {
            "shares_corrected": [one._asdict() for one in each],
            "distance_corrected": distance._asdict(),
        }
    return corrected | {
        "classes": list(names),
        "counts": counts,
        "shares": shares,
        "target": list(target),
        "distance": bias.of_shares(counts, target)._asdict(),
        "distance_of_a_fair_model": bias.distance_floor(target, sum(counts)),
        "none": _among(labels, NONE),
    }


def of_set(prompts: Sequence[Figures], reference: Reference) -> Figures:
    """The figures of a set, averaged over its prompts' figures of `of_prompt`.

    Intervals speak about new prompts, those of one or two prompts about these alone.
    The audit classifier's are of the prompts of which it said something.
    """
    shares = {name: _mean(prompts, name) for name in ("none", "mean_confidence_margin")}
    images = sum(one["images"] for one in prompts)
    figures = {"prompts": len(prompts), "images": images, **shares}
    audited = [one["audit"] for one in prompts if "audit" in one]
    if audited:
        agreement = _mean(audited, "agreement")
        figures["audit"] = {"prompts": len(audited), "agreement": agreement}
    if prompts[0]["set"] == EXPLICIT:
        figures["adherence"] = _mean(prompts, "adherence")
        if audited:
            figures["audit"]["adherence"] = _mean(audited, "adherence")
        return figures
    figures |= _biases(prompts, reference.confusions.get(GENDER))
    figures["classified"] = classified = {}
    for name in prompts[0]["classified"]:
        distances = [one["classified"][name] for one in prompts]
        classified[name] = {"distance": _mean(distances, "distance")}
        if (confusion := reference.confusions.get(name)) is not None:
            counts, targets = ([x[y] for x in distances] for y in ("counts", "target"))
            mean = Interval(**_mean(distances, "distance_corrected"))
            of_prompts = counts, confusion, targets
            mean = correction.over_prompts(mean, *of_prompts)._asdict()
            classified[name]["distance_corrected"] = mean
    if audited:
        figures["audit"] |= _biases(audited, reference.audit_confusion)
    counts = [
        {name: found["counts"] for name, found in one["attributes"].items()}
        for one in prompts
    ]
    figures["entropies"] = {
        name: diversity.over_prompts([[one[name]] for one in counts])._asdict()
        for name in prompts[0]["attributes"]
    }
    measured = [[found for found in one.values() if any(found)] for one in counts]
    figures["intrinsic_diversity"] = diversity.over_prompts(measured)._asdict()
    return figures


def change(
    before: Sequence[Figures], after: Sequence[Figures], name: str
) -> dict[str, float] | None:
    """After - before of a figure, over the same prompts in the same order.

    None for one or two: what is before and after says more.
    """
    first, last = ([one[name]["estimate"] for one in end] for end in (before, after))
    values = np.subtract(last, first, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < intervals.FEWEST_PROMPTS:
        return None
    return intervals.mean(values)._asdict()


def _attributes(answers: Answers) -> Figures:
    """Counts and balance of the classes of each attribute, and of all together."""
    counts = {
        name: np.array([np.sum(found == k) for k in range(size)])
        for name, found, size in (
            ("gender", answers.labels, 2),
            ("skin_tone", appearance.tones(answers.angles), len(typology.TONES)),
            ("age", appearance.age_groups(answers.ages), len(appearance.AGES)),
        )
    }
    attributes = {
        name: {"counts": x.tolist(), "entropy": diversity.of_counts([x])._asdict()}
        for name, x in counts.items()
    }
    measured = {"angle": ("skin_tone", answers.angles), "years": ("age", answers.ages)}
    for figure, (name, values) in measured.items():
        known = values[~np.isnan(values)]
        attributes[name][figure] = intervals.mean(known)._asdict()
    known = [found for found in counts.values() if found.any()]
    overall = diversity.of_counts(known)._asdict()
    return {"attributes": attributes, "intrinsic_diversity": overall}


def _shares(labels: np.ndarray, target: float, confusion: np.ndarray | None) -> Figures:
    """q, its correction and its distance from the target."""
    female, male, none = (int(np.sum(labels == k)) for k in (FEMALE, MALE, NONE))
    q, faces = intervals.wilson(female, female + male), female + male
    figures = {
        "num_female": female,
        "num_male": male,
        "num_none": none,
        "target": target,
        "q": q._asdict(),
        "bias": bias.of_share(q, target)._asdict(),
        "bias_of_a_fair_model": bias.noise_floor(faces) if target == 0.5 else math.nan,
        "kl_to_target": bias.kl(q, target)._asdict(),
    }
    if confusion is not None:
        corrected = intervals.rogan_gladen(female, faces, confusion)
        figures["q_corrected"] = corrected._asdict()
        figures["bias_corrected"] = bias.of_share(corrected, target)._asdict()
    return figures


def _biases(prompts: Sequence[Figures], confusion: np.ndarray | None) -> Figures:
    """The mean bias, what noise explains of it, and what the classifier hides."""
    counts = [[one[name] for one in prompts] for name in ("num_female", "num_male")]
    fair = float(np.mean([one["bias_of_a_fair_model"] for one in prompts]))
    figures = {
        "mean_bias": _mean(prompts, "bias"),
        "bias_of_a_fair_model": fair,
        "kl_to_target": _mean(prompts, "kl_to_target", share=False),
    }
    if math.isfinite(fair):
        figures["mean_bias_without_noise"] = bias.without_noise(*counts)
    if confusion is not None:
        mean = Interval(**_mean(prompts, "bias_corrected"))
        targets = [(one["target"], 1 - one["target"]) for one in prompts]
        pairs = np.transpose(counts)
        mean = correction.over_prompts(mean, pairs, confusion, targets)
        figures["mean_bias_corrected"] = mean._asdict()
    return figures


def _among(labels: np.ndarray, label: int) -> dict[str, float]:
    """The share of a label among all images."""
    return intervals.wilson(int(np.sum(labels == label)), len(labels))._asdict()


def _mean(
    prompts: Sequence[Figures], name: str, share: bool = True
) -> dict[str, float]:
    found = [Interval(**one[name]) for one in prompts]
    return intervals.over_prompts(found, share)._asdict()
