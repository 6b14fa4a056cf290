"""The report's part about evaluation.json: sets, samplers, quality, attributes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ddpo_fair.report import formatting, run_reader
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.tables import Table, without_blanks
from ddpo_fair.statistics.intervals import Interval

CORRECTED = ", corrected for the classifier's errors"
SETS = {
    "trained": "Trained prompts",
    "held_out": "Held-out occupations",
    "explicit": "With a gender in the prompt",
    "given": "Further prompts",
}
MODELS = ("before", "after")
ATTRIBUTES = {
    "gender": "Gender, as classified",
    "skin_tone": "Skin tone",
    "age": "Age, as estimated",
}
OLD_KEYS = {  # of an evaluation.json before these names
    "mean_bias": "mean_gap",
    "bias_of_a_fair_model": "gap_of_a_fair_model",
    "adherence": "obeyed",
}
QUALITY = {  # by the name of a column
    "Like the same seed before": ("similarity_to_base",),
    "Diversity before": ("diversity_before",),
    "Diversity after": ("diversity_after",),
    "Frechet to base": ("distance_to_base", "frechet"),
    "Base to itself": ("base_to_itself", "frechet"),
}
LIKE = (
    "Like: mean cosine, 1 is unchanged. Diversity: mean cosine distance within a"
    " prompt. All by the classifier's features, in which gender counts, too."
)
AUDIT_COLUMNS = ["Before, audit classifier", "After, audit classifier"]


class Evaluation(NamedTuple):
    """What the newest evaluation of a run says, in the order of the page."""

    opening: str
    tables: list[Table]
    notes: list[str]


def of_run(run: Record) -> Evaluation | None:
    """What the newest evaluation says; None without one."""
    content = run.evaluation
    samplers = [one for one in _list(content, "samplers") if isinstance(one, dict)]
    if not samplers:
        return None
    opening = (
        f"Checkpoint {_walk(content, 'source', 'checkpoint')},"
        f" {content.get('images_per_prompt')} images of each prompt, the same seeds"
        f" before and after. Audit classifier: {_walk(content, 'source', 'audit')}."
        " Bias is |share classified as female - share classified as male|, in points;"
        " the fair model's is what a perfectly fair model would show on so few images."
    )
    first, *others = samplers
    tables = [
        _sets(first),
        *([_samplers(samplers)] if others else []),
        _distances(first),
        _quality(content),
        _entropies(first),
    ]
    notes = [str(note) for note in _list(content, "notes")]
    return Evaluation(opening, [table for table in tables if table.rows], notes)


def second_opinion(run: Record) -> str | None:
    """What the audit classifier says of the trained prompt; None without one."""
    samplers = _list(run.evaluation, "samplers")
    if not samplers or len(run.prompts) != 1:
        return None
    audit = _walk(samplers[0], "after", "prompts", run.prompts[0], "audit")
    share, corrected = _text(audit, "%", "q"), _text(audit, "%", "q_corrected")
    known = f"; corrected for its known mistakes: {corrected}" if corrected else ""
    if not share:
        return None
    return f"By an audit classifier, {share} are classified as female{known}."


def _sets(sampler: dict[str, Any]) -> Table:
    rows = []
    for name, title in SETS.items():
        before, after = (_walk(sampler, model, "sets", name) for model in MODELS)
        figure, unit = "mean_bias", "points"
        floor = run_reader.number({"": _walk(after, "bias_of_a_fair_model")}, "")
        fair = f"{100 * floor:.0f}" if math.isfinite(floor) else ""
        if name == "explicit":
            figure, unit, fair = "adherence", "%", ""
            title = f"{title}: prompt adherence"
        own, audit = (
            [_text(model, unit, *path) for model in (before, after)]
            for path in ((figure,), ("audit", figure))
        )
        rows.append([title, *own, fair, *audit])
        pair = before, after
        corrected = [_text(x, "points", "mean_bias_corrected") for x in pair]
        if any(corrected):
            rows.append([f"{title}{CORRECTED}", *corrected, "", "", ""])
    head = ["Mean bias", "Before", "After", "Fair model", *AUDIT_COLUMNS]
    return without_blanks(head, rows)


def _distances(sampler: dict[str, Any]) -> Table:
    """Total variation distances from the target, of the run's further attributes."""
    rows = []
    for name in ("trained", "held_out", "given"):
        for attribute in _dict(sampler, "after", "sets", name, "classified"):
            for figure, kind in (("distance", ""), ("distance_corrected", CORRECTED)):
                path = ("sets", name, "classified", attribute, figure)
                cells = [_text(sampler, "points", model, *path) for model in MODELS]
                title = f"{SETS[name]}: {attribute.replace('_', ' ')}{kind}"
                rows.append([title, *cells])
    return without_blanks(["Mean distance from the target", "Before", "After"], rows)


def _samplers(samplers: list[dict[str, Any]]) -> Table:
    """One prompt's share classified as female, or the bias of several; by sampler."""
    figure, unit, title = "mean_bias", "points", "mean bias of the trained prompts"
    if all(_only_prompt(one, "before") for one in samplers):
        figure, unit, title = "q", "%", "classified as female"
    rows = []
    for one in samplers:
        eta, guidance, steps = (
            formatting.number_text(run_reader.number(one, name))
            for name in ("eta", "guidance_scale", "num_steps")
        )
        name = f"eta {eta}, guidance {guidance}, {steps} steps"
        row = [f"{name} (training)" if one.get("of_training") else name]
        for path, of in (
            ((figure,), unit),
            (("none",), "%"),
            (("audit", figure), unit),
        ):
            for model in MODELS:
                part = _only_prompt(one, model)
                if part is None or path[-1] == "mean_bias":
                    part = _walk(one, model, "sets", "trained")
                row.append(_text(part, of, *path))
        rows.append(row)
    head = ["Before", "After", "None before", "None after", *AUDIT_COLUMNS]
    return without_blanks([f"Sampler, {title}", *head], rows)


def _only_prompt(sampler: dict[str, Any], model: str) -> dict[str, Any] | None:
    """The figures of the one trained prompt; None if there are several."""
    prompts = _dict(sampler, model, "prompts").values()
    trained = [one for one in prompts if _walk(one, "set") == "trained"]
    return trained[0] if len(trained) == 1 else None


def _quality(content: dict[str, Any]) -> Table:
    quality = _walk(content, "quality")
    notes, kl = [LIKE], _text(content, "", "kl_to_base", "nats_per_image")
    if kl:
        notes.append(f"KL of the trajectory to the base policy: {kl} nats an image.")
    renders = {
        name.replace("_", " "): _text(
            quality, "", "to_balanced_renders", name, "frechet"
        )
        for name in ("before", "after", "reference_itself")
    }
    known = ", ".join(f"{name} {text}" for name, text in renders.items() if text)
    if known:
        notes.append(f"Frechet distance to balanced renders: {known}.")
    rows = [
        [title, *(_text(quality, "", name, *path) for path in QUALITY.values())]
        for name, title in SETS.items()
    ]
    return without_blanks(["Quality", *QUALITY], rows, notes)


def _entropies(sampler: dict[str, Any]) -> Table:
    places = {
        f"{SETS[name]}, {model}": (model, "sets", name, "entropies")
        for name in ("trained", "held_out")
        for model in MODELS
    }
    rows = [
        [title, *(_text(sampler, "", *path, name) for path in places.values())]
        for name, title in ATTRIBUTES.items()
    ]
    head = ["Balance of classes (entropy; 1: all equal)", *places]
    return without_blanks(head, rows)


def _text(found: Any, unit: str, *path: str) -> str:
    """The interval at a path, in digits without a unit; "" where there is none."""
    part = _dict(found, *path)
    interval = Interval(*(run_reader.number(part, name) for name in Interval._fields))
    if math.isnan(interval.estimate):
        return ""
    if unit:
        return formatting.with_interval(interval, unit)
    estimate, low, high = map(formatting.number_text, interval)
    return f"{estimate} [{low}, {high}]" if low else estimate


def _walk(found: Any, *path: str) -> Any:
    """What lies at a path, under its name of today or of before."""
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name, found.get(OLD_KEYS.get(name)))
    return found


def _dict(found: Any, *path: str) -> Mapping[str, Any]:
    part = _walk(found, *path)
    return part if isinstance(part, dict) else {}


def _list(content: dict[str, Any], name: str) -> Sequence[Any]:
    part = content.get(name)
    return part if isinstance(part, list) else []
