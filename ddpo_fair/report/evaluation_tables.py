"""The report's part about evaluation.json: sets, samplers, quality, attributes."""

from typing import Any

from ddpo_fair.report import formatting, html, run_reader
from ddpo_fair.report.html import Markup, element
from ddpo_fair.report.run_reader import Record
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


def section(run: Record) -> list[Markup]:
    """What the newest evaluation found; [] without one."""
    said = run.evaluation
    samplers = [one for one in _list(said, "samplers") if isinstance(one, dict)]
    if not samplers:
        return []
    source = said.get("source") if isinstance(said.get("source"), dict) else {}
    opening = (
        f"Checkpoint {source.get('checkpoint')}, {said.get('images_per_prompt')} images"
        " of each prompt, the same seeds before and after. Independent judge:"
        f" {source.get('audit')}. Gaps are |share classified as female - as male| in"
        " points; a perfectly fair model would show the gap in the column of that name."
    )
    parts = [
        element("p", opening),
        _sets(samplers[0]),
        _samplers(samplers) if len(samplers) > 1 else None,
        _quality(said),
        _attributes(samplers[0]),
        *(element("p", note, class_="meta") for note in _list(said, "notes")),
    ]
    return [part for part in parts if part is not None]


def second_opinion(run: Record) -> str | None:
    """What the independent judge says of the trained prompt, where there is one."""
    samplers = _list(run.evaluation, "samplers")
    after = _walk(samplers[0], "after", "prompts") if samplers else None
    if not isinstance(after, dict) or len(run.prompts) != 1:
        return None
    audit = _walk(after, run.prompts[0], "audit")
    q = interval(audit, "q")
    if q is None:
        return None
    corrected = interval(audit, "q_corrected")
    said = formatting.with_interval(q)
    text = f"By an independent classifier, {said} are classified as female"
    if corrected is not None:
        text += (
            f"; corrected for its known mistakes: {formatting.with_interval(corrected)}"
        )
    return f"{text}."


def interval(found: Any, *path: str) -> Interval | None:
    """The interval at a path; None where there is none."""
    said = _walk(found, *path)
    if not isinstance(said, dict):
        return None
    bounds = [run_reader.number(said, name) for name in ("estimate", "low", "high")]
    return Interval(*bounds) if bounds[0] == bounds[0] else None


def _sets(sampler: dict[str, Any]) -> Markup:
    rows = []
    for name, title in SETS.items():
        before, after = (_walk(sampler, m, "sets", name) for m in ("before", "after"))
        if not isinstance(before, dict):
            continue
        obeyed = name == "explicit"
        figure, unit = ("obeyed", "%") if obeyed else ("mean_gap", "points")
        label = f"{title}: obeyed" if obeyed else title
        fair = run_reader.number(after or {}, "gap_of_a_fair_model")
        rows.append(
            [
                label,
                _text(before, unit, figure),
                _text(after, unit, figure),
                "" if obeyed or fair != fair else f"{100 * fair:.0f}",
                _text(before, unit, "audit", figure),
                _text(after, unit, "audit", figure),
            ]
        )
    judge = "independent judge"
    head = ["", "Before", "After", "Fair model", f"Before, {judge}", f"After, {judge}"]
    return html.table(head, rows)


def _samplers(samplers: list[dict[str, Any]]) -> Markup:
    """One prompt's share classified as female, or the gap of several; by sampler."""
    figure, unit, title = ("gap", "points", "gap of the trained prompts")
    if all(_only_prompt(one, "before") for one in samplers):
        figure, unit, title = ("q", "%", "classified as female")
    head = [f"Sampler, {title}", "Before", "After", "None before", "None after"]
    audited = any(_figure(one, "after", "audit", figure) for one in samplers)
    if audited:
        head += ["Before, independent judge", "After, independent judge"]
    rows = []
    for one in samplers:
        name = (
            f"eta {_number(one, 'eta')}, guidance {_number(one, 'guidance_scale')},"
            f" {_number(one, 'num_steps')} steps"
        )
        row = [f"{name} (training)" if one.get("of_training") else name]
        row += [_text(_figure(one, m, figure), unit) for m in MODELS]
        row += [_text(_figure(one, m, "none"), "%") for m in MODELS]
        if audited:
            row += [_text(_figure(one, m, "audit", figure), unit) for m in MODELS]
        rows.append(row)
    return html.table(head, rows)


def _figure(sampler: dict[str, Any], model: str, *path: str) -> Any:
    """A figure of the trained prompts: of the only one, or of their set."""
    *parents, name = path
    if name == "gap":
        return _walk(sampler, model, "sets", "trained", *parents, "mean_gap")
    prompt = _only_prompt(sampler, model)
    if prompt is None:
        return _walk(sampler, model, "sets", "trained", *path)
    return _walk(prompt, *path)


def _only_prompt(sampler: dict[str, Any], model: str) -> dict[str, Any] | None:
    """The figures of the one trained prompt; None if there are several."""
    prompts = _walk(sampler, model, "prompts")
    found = [
        one
        for one in (prompts.values() if isinstance(prompts, dict) else ())
        if isinstance(one, dict) and one.get("set") == "trained"
    ]
    return found[0] if len(found) == 1 else None


def _quality(said: dict[str, Any]) -> Markup | None:
    rows = []
    for name, title in SETS.items():
        found = _walk(said, "quality", name)
        if isinstance(found, dict):
            rows.append(
                [
                    title,
                    _plain(found, "similarity_to_base"),
                    _plain(found, "diversity_before"),
                    _plain(found, "diversity_after"),
                    _plain(found, "distance_to_base", "frechet"),
                    _plain(found, "base_to_itself", "frechet"),
                ]
            )
    if not rows:
        return None
    head = [
        "Quality",
        "Like the same seed before",
        "Variety before",
        "Variety after",
        "Frechet to base",
        "Base to itself",
    ]
    renders = []
    for name in ("before", "after", "reference_itself"):
        text = _plain(said, "quality", "to_balanced_renders", name, "frechet")
        if text:
            renders.append(f"{name.replace('_', ' ')} {text}")
    chain = _plain(said, "kl_to_base", "nats_per_image")
    lines = [
        "Like: mean cosine, 1 is unchanged. Variety: mean cosine distance within a"
        " prompt. All by the classifier's features, in which gender counts, too.",
        f"KL from the base model along the whole chain: {chain} nats an image."
        if chain
        else None,
        f"Frechet distance to balanced renders: {', '.join(renders)}."
        if renders
        else None,
    ]
    shown = [element("p", line, class_="meta") for line in lines if line]
    return element("div", html.table(head, rows), *shown)


def _attributes(sampler: dict[str, Any]) -> Markup:
    sets = {"trained": "Trained", "held_out": "Held-out"}
    shown = {
        name: title
        for name, title in sets.items()
        if isinstance(_walk(sampler, "before", "sets", name), dict)
    }
    rows = [
        [
            title,
            *(
                _plain(sampler, model, "sets", name, "entropies", attribute)
                for name in shown
                for model in ("before", "after")
            ),
        ]
        for attribute, title in ATTRIBUTES.items()
    ]
    head = ["Balance of classes (entropy; 1: all equal)"]
    head += [f"{t}, {m}" for t in shown.values() for m in ("before", "after")]
    return html.table(head, rows)


def _text(found: Any, unit: str, *path: str) -> str:
    said = interval(found, *path)
    return formatting.with_interval(said, unit) if said else ""


def _plain(found: Any, *path: str) -> str:
    said = interval(found, *path)
    if said is None:
        return ""
    if said.low != said.low:
        return _digits(said.estimate)
    return f"{_digits(said.estimate)} [{_digits(said.low)}, {_digits(said.high)}]"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _number(found: dict[str, Any], name: str) -> str:
    return _digits(run_reader.number(found, name))


def _walk(found: Any, *path: str) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _list(found: dict[str, Any], name: str) -> list[Any]:
    said = found.get(name)
    return said if isinstance(said, list) else []
