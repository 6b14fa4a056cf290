"""The report's part about evaluation.json: sets, samplers, quality, attributes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ddpo_fair.report import formatting, run_reader
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.tables import Table
from ddpo_fair.statistics.intervals import Interval

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
    tables = [_sets(samplers[0])]
    tables += [_samplers(samplers)] if len(samplers) > 1 else []
    tables += [_distances(samplers[0]), _quality(content), _attributes(samplers[0])]
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
        figure, unit, fair = "mean_bias", "points", ""
        if name == "explicit":
            figure, unit, title = "adherence", "%", f"{title}: prompt adherence"
        else:
            floor = _number(sampler, "after", "sets", name, "bias_of_a_fair_model")
            fair = f"{100 * floor:.0f}" if math.isfinite(floor) else ""
        own, audit = (
            [_text(sampler, unit, model, "sets", name, *path) for model in MODELS]
            for path in ((figure,), ("audit", figure))
        )
        rows.append([title, *own, fair, *audit])
    return _table(["Mean bias", "Before", "After", "Fair model", *AUDIT_COLUMNS], rows)


def _distances(sampler: dict[str, Any]) -> Table:
    """Total variation distances from the target, of the run's further attributes."""
    rows = []
    for name in ("trained", "held_out", "given"):
        classified = _walk(sampler, "after", "sets", name, "classified")
        for attribute in classified if isinstance(classified, dict) else ():
            path = ("sets", name, "classified", attribute, "distance")
            cells = [_text(sampler, "points", model, *path) for model in MODELS]
            rows.append([f"{SETS[name]}: {attribute.replace('_', ' ')}", *cells])
    return _table(["Mean distance from the target", "Before", "After"], rows)


def _samplers(samplers: list[dict[str, Any]]) -> Table:
    """One prompt's share classified as female, or the bias of several; by sampler."""
    figure, unit, title = "mean_bias", "points", "mean bias of the trained prompts"
    if all(_only_prompt(one, "before") for one in samplers):
        figure, unit, title = "q", "%", "classified as female"
    columns = (((figure,), unit), (("none",), "%"), (("audit", figure), unit))
    head = ["Before", "After", "None before", "None after", *AUDIT_COLUMNS]
    rows = []
    for one in samplers:
        eta, guidance, steps = (
            formatting.number_text(run_reader.number(one, name))
            for name in ("eta", "guidance_scale", "num_steps")
        )
        name = f"eta {eta}, guidance {guidance}, {steps} steps"
        cells = [
            _text(_figure(one, model, *path), unit)
            for path, unit in columns
            for model in MODELS
        ]
        rows.append([f"{name} (training)" if one.get("of_training") else name, *cells])
    return _table([f"Sampler, {title}", *head], rows)


def _figure(sampler: dict[str, Any], model: str, *path: str) -> Any:
    """A figure of the trained prompts: of the only one, or of their set."""
    prompt = _only_prompt(sampler, model)
    if prompt is None or path[-1] == "mean_bias":
        return _walk(sampler, model, "sets", "trained", *path)
    return _walk(prompt, *path)


def _only_prompt(sampler: dict[str, Any], model: str) -> dict[str, Any] | None:
    """The figures of the one trained prompt; None if there are several."""
    prompts = _walk(sampler, model, "prompts")
    prompts = prompts.values() if isinstance(prompts, dict) else ()
    trained = [one for one in prompts if _walk(one, "set") == "trained"]
    return trained[0] if len(trained) == 1 else None


def _quality(content: dict[str, Any]) -> Table:
    quality = _walk(content, "quality")
    rows = [
        [title, *(_digits(quality, name, *path) for path in QUALITY.values())]
        for name, title in SETS.items()
    ]
    notes = [
        "Like: mean cosine, 1 is unchanged. Diversity: mean cosine distance within a"
        " prompt. All by the classifier's features, in which gender counts, too."
    ]
    kl = _digits(content, "kl_to_base", "nats_per_image")
    if kl:
        notes.append(f"KL of the trajectory to the base policy: {kl} nats an image.")
    renders = {
        name.replace("_", " "): _digits(quality, "to_balanced_renders", name, "frechet")
        for name in ("before", "after", "reference_itself")
    }
    known = ", ".join(f"{name} {text}" for name, text in renders.items() if text)
    if known:
        notes.append(f"Frechet distance to balanced renders: {known}.")
    return _table(["Quality", *QUALITY], rows, notes)


def _attributes(sampler: dict[str, Any]) -> Table:
    places = [(name, model) for name in ("trained", "held_out") for model in MODELS]
    rows = [
        [
            title,
            *(
                _digits(sampler, model, "sets", name, "entropies", attribute)
                for name, model in places
            ),
        ]
        for attribute, title in ATTRIBUTES.items()
    ]
    head = [f"{SETS[name]}, {model}" for name, model in places]
    return _table(["Balance of classes (entropy; 1: all equal)", *head], rows)


def _table(head: list[str], rows: list[list[str]], notes: Sequence[str] = ()) -> Table:
    """A table without the rows and columns of which nothing is known."""
    rows = [row for row in rows if any(row[1:])]
    kept = [c for c in range(len(head)) if c == 0 or any(row[c] for row in rows)]
    rows = [[row[column] for column in kept] for row in rows]
    return Table([head[column] for column in kept], rows, notes=notes)


def _text(found: Any, unit: str, *path: str) -> str:
    interval = _interval(found, *path)
    return formatting.with_interval(interval, unit) if interval else ""


def _digits(found: Any, *path: str) -> str:
    return formatting.digits_with_interval(_interval(found, *path))


def _interval(found: Any, *path: str) -> Interval | None:
    """The interval at a path; None where there is none."""
    part = _walk(found, *path)
    if not isinstance(part, dict):
        return None
    interval = Interval(*(run_reader.number(part, name) for name in Interval._fields))
    return interval if interval.estimate == interval.estimate else None


def _number(found: Any, *path: str) -> float:
    return run_reader.number({"number": _walk(found, *path)}, "number")


def _walk(found: Any, *path: str) -> Any:
    """What lies at a path, under its name of today or of before."""
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name, found.get(OLD_KEYS.get(name)))
    return found


def _list(content: dict[str, Any], name: str) -> list[Any]:
    part = content.get(name)
    return part if isinstance(part, list) else []
