"""The report's part about evaluation.json: sets, samplers, quality, attributes."""

import math
from collections.abc import Mapping
from typing import Any

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


def of_run(run: Record) -> tuple[str, list[Table], list[str]] | None:
    """Opening, tables and notes of the newest evaluation; None without one."""
    content, samplers = run.evaluation, _drawn_with(run)
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
    notes = content.get("notes")
    notes = list(map(str, notes)) if isinstance(notes, list) else []
    return opening, [table for table in tables if table.rows], notes


def second_opinion(run: Record, several: bool = False) -> str | None:
    """What the audit classifier says of the trained prompt; None without one.

    It names the run where `several` are summarised together.
    """
    place = "after", "prompts", run.prompts[0], "audit"
    samplers = _drawn_with(run)[:1] if len(run.prompts) == 1 else []
    audit = [_text(x, "%", *place, y) for x in samplers for y in ("q", "q_corrected")]
    if not any(audit):
        return None
    share, corrected, *_ = audit
    known = f"; corrected for its known mistakes: {corrected}" if corrected else ""
    name = f"{run.name}: " if several else ""
    return f"{name}By an audit classifier, {share} are classified as female{known}."


def _drawn_with(run: Record) -> list[dict[str, Any]]:
    """The figures of each sampler; the first is training's."""
    found = run.evaluation.get("samplers")
    found = found if isinstance(found, list) else []
    return [one for one in found if isinstance(one, dict)]


def _sets(sampler: dict[str, Any]) -> Table:
    rows = []
    for name, title in SETS.items():
        figure, unit, place = "mean_bias", "points", ("sets", name)
        if name == "explicit":
            figure, unit, title = "adherence", "%", f"{title}: prompt adherence"
        own = _pair(sampler, unit, *place, figure)
        audit = _pair(sampler, unit, *place, "audit", figure)
        corrected = _pair(sampler, unit, *place, "mean_bias_corrected")
        alike = _pair(sampler, "%", *place, "audit", "agreement")
        found = _dict(sampler, "after", *place)
        fair = run_reader.number(found, "bias_of_a_fair_model")
        fair = f"{100 * fair:.0f}" if math.isfinite(fair) else ""
        rows.append([title, *own, fair, *audit])
        rows.append([f"{title}{CORRECTED}", *corrected, "", "", ""])
        rows.append([f"{SETS[name]}: both classify alike", *alike, "", "", ""])
    head = ["Mean bias", "Before", "After", "Fair model", *AUDIT_COLUMNS]
    return without_blanks(head, rows)


def _distances(sampler: dict[str, Any]) -> Table:
    """Total variation distances from the target, of the run's further attributes."""
    rows = []
    for name in ("trained", "held_out", "given"):
        place = "sets", name, "classified"
        for attribute in _dict(sampler, "after", *place):
            title = f"{SETS[name]}: {attribute.replace('_', ' ')}"
            for figure, kind in (("distance", ""), ("distance_corrected", CORRECTED)):
                pair = _pair(sampler, "points", *place, attribute, figure)
                rows.append([f"{title}{kind}", *pair])
    return without_blanks(["Mean distance from the target", "Before", "After"], rows)


def _samplers(samplers: list[dict[str, Any]]) -> Table:
    """One prompt's share classified as female, or the bias of several; by sampler."""
    place, figure, unit = ("sets", "trained"), "mean_bias", "points"
    prompts = _dict(samplers[0], "before", "prompts").items()
    trained = [text for text, one in prompts if _walk(one, "set") == "trained"]
    title = "mean bias of the trained prompts"
    if len(trained) == 1:
        place, figure, unit = ("prompts", *trained), "q", "%"
        title = "classified as female"
    rows = []
    for one in samplers:
        eta, guidance, steps = (
            formatting.number_text(run_reader.number(one, name))
            for name in ("eta", "guidance_scale", "num_steps")
        )
        name = f"eta {eta}, guidance {guidance}, {steps} steps"
        row = [f"{name} (training)" if one.get("of_training") else name]
        for path, of in ((figure,), unit), (("none",), "%"), (("audit", figure), unit):
            row += _pair(one, of, *place, *path)
        rows.append(row)
    head = ["Before", "After", "None before", "None after", *AUDIT_COLUMNS]
    return without_blanks([f"Sampler, {title}", *head], rows)


def _quality(content: dict[str, Any]) -> Table:
    quality = _walk(content, "quality")
    notes, kl = [LIKE], _text(content, "", "kl_to_base", "nats_per_image")
    if kl:
        notes.append(f"KL of the trajectory to the base policy: {kl} nats an image.")
    known = []
    for name in ("before", "after", "reference_itself"):
        if text := _text(quality, "", "to_balanced_renders", name, "frechet"):
            known.append(f"{name.replace('_', ' ')} {text}")
    if known:
        notes.append(f"Frechet distance to balanced renders: {', '.join(known)}.")
    rows = [
        [title, *(_text(quality, "", name, *path) for path in QUALITY.values())]
        for name, title in SETS.items()
    ]
    return without_blanks(["Quality", *QUALITY], rows, notes)


def _entropies(sampler: dict[str, Any]) -> Table:
    names, rows = ("trained", "held_out"), []
    for name, title in ATTRIBUTES.items():
        pairs = [_pair(sampler, "", "sets", x, "entropies", name) for x in names]
        rows.append(sum(pairs, [title]))
    head = [f"{SETS[name]}, {model}" for name in names for model in MODELS]
    return without_blanks(["Balance of classes (entropy; 1: all equal)", *head], rows)


def _pair(sampler: dict[str, Any], unit: str, *path: str) -> list[str]:
    """The intervals at a path before and after."""
    return [_text(sampler, unit, model, *path) for model in MODELS]


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
    """What lies at a path; None where it ends before."""
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _dict(found: Any, *path: str) -> Mapping[str, Any]:
    part = _walk(found, *path)
    return part if isinstance(part, dict) else {}
