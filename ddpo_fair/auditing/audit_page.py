"""An audit as one HTML page that needs nothing but itself (report/audit.html.j2)."""

import math
from pathlib import Path
from typing import Any

from ddpo_fair.auditing import figures
from ddpo_fair.auditing.figures import CORRECTED, FAIR, OBSERVED
from ddpo_fair.errors import UserError
from ddpo_fair.report import formatting, page
from ddpo_fair.report.tables import Table
from ddpo_fair.statistics.intervals import Interval

MOST_FILES = 100  # that the page names
OPENING = (
    "Errors of the classifier are not corrected: the shares are of what it says. Give"
    " --calibration, a folder with images of your own for each class, to correct them.",
    "Shares and bias are corrected for the classifier's errors on the calibration"
    " images, unless a line says observed.",
)


def build(content: dict[str, Any]) -> str:
    """The page of what audit.json holds."""
    attributes = content["attributes"]
    calibrated = [
        formatting.title(name) for name, one in attributes.items() if one[CORRECTED]
    ]
    opening = OPENING[bool(calibrated)]
    if 0 < len(calibrated) < len(attributes):
        opening += f" That is so of {formatting.listed(calibrated)}, not of the others."
    unread = content["unreadable"]
    text = page.TEMPLATES.get_template("audit.html.j2").render(
        title=Path(content["source"].get("model") or content["source"]["images"]).name,
        written_by=content["written_by"],
        opening=opening,
        summary={"word": _word(attributes), "sentence": " ".join(sentences(content))},
        remarks=[*_failed(content), *content["notes"]],
        cards=[
            ("Images", f"{content['images']:,}", f"{len(unread):,} unreadable"),
            ("Prompts", f"{content['prompts']:,}", ""),
            *_faces(content["faces"]),
            *(
                (f"Mean bias, {formatting.title(name)}", bias_text(one), _remark(one))
                for name, one in attributes.items()
            ),
        ],
        attributes=[_attribute(name, one) for name, one in attributes.items()],
        origin=Table(("Setting", "Value"), _origin(content), "settings"),
        unreadable=Table(("File", "Why"), unread[:MOST_FILES]),
    )
    return page.FORBIDDEN.sub("\ufffd", text)


def _failed(content: dict[str, Any]) -> list[str]:
    try:
        return list(figures.above(content))
    except UserError:  # nothing was recognised, which the command says
        return []


def _faces(found: dict[str, int] | None) -> list[tuple[str, str, str]]:
    if found is None:
        return []
    return [("Without a face", f"{found['none']:,}", f"{found['several']:,} several")]


def sentences(content: dict[str, Any]) -> list[str]:
    """The mean bias of each attribute, and its change, in words."""
    found = []
    for name, one in content["attributes"].items():
        fair, kind = figures.best(one)[FAIR], "corrected " if one[CORRECTED] else ""
        fair = "" if fair is None else f"; a fair model would show {fair:.2f} by chance"
        title = formatting.title(name)
        text = f"{title}: the mean {kind}bias is {bias_text(one)}{fair}."
        if "baseline" in one:
            kind = one["baseline"]["kind"]
            change = _text(one["baseline"]["mean_change"], "+")
            text += f" The {kind} bias changed by {change} since the baseline."
        found.append(formatting.sentence(text))
    return found


def bias_text(one: dict[str, Any]) -> str:
    """The mean bias of an attribute with its interval."""
    return _text(figures.best(one)["mean_bias"])


def _word(attributes: dict[str, Any]) -> str:
    """How many prompts are biased for more than chance."""
    words = []
    for name, one in attributes.items():
        found = [figures.interval(figures.best(x)["bias"]) for x in one["prompts"]]
        known = [each for each in found if math.isfinite(each.estimate)]
        biased = sum(each.low > 0 for each in known)
        word = f"{biased} of {formatting.count(len(known), 'prompt')} surely biased"
        word = word if known else "nothing recognised"
        several = len(attributes) > 1
        words.append(f"{formatting.title(name)}: {word}" if several else word)
    return formatting.sentence(", ".join(words))


def _remark(one: dict[str, Any]) -> str:
    if one[CORRECTED]:
        return f"observed: {_text(one[OBSERVED]['mean_bias'])}"
    return "not corrected for errors"


def _attribute(name: str, one: dict[str, Any]) -> dict[str, Any]:
    names, audit = one["classes"], one["audit"]
    differ = any(each["target"] != one["target"] for each in one["prompts"])
    # What the line of a bias ends with: of two classes it may be as much as 2.
    wanted = [max(x["target"]) for x in one["prompts"]]
    most = max(1.0, 2 * max(wanted)) if len(names) == 2 else 1.0
    rows = []
    for number, each in enumerate(one["prompts"]):
        second = audit["prompts"][number] if audit else None
        own = figures.best(each)
        found = figures.interval(own["bias"])
        known = own[FAIR] is not None
        rows.append(
            {
                "prompt": each["prompt"],
                "cells": [_cell(k, each, second, differ) for k in range(len(names))],
                "none": each["none"],
                "bias": _text(own["bias"]),
                "bar": Interval(*(x / most for x in found)) if known else None,
                "fair": own[FAIR] / most if known else None,
            }
        )
    tables = {}
    if one["confusion"]:
        matrix = [(x, *row) for x, row in zip(names, one["confusion"], strict=True)]
        said = [f"classified as {x}" for x in names]
        tables["Errors of the classifier"] = Table(("Images of", *said), matrix)
    if compared := one.get("baseline"):
        each = {"mean over prompts": compared["mean_change"]} | compared["prompts"]
        changes = [(prompt, _text(change, "+")) for prompt, change in each.items()]
        note = "A change is shown where its interval leaves out 0."
        head_of = ("Prompt", f"change of {compared['kind']} bias")
        tables["Since the baseline"] = Table(head_of, changes, notes=[note])
    title = formatting.sentence(formatting.title(name))
    content = {"title": title, "head": names, "rows": rows, "tables": tables}
    return content | {"most": f"{most:g}"}


def _cell(
    k: int, each: dict[str, Any], second: dict[str, Any] | None, differ: bool
) -> list[str]:
    """A prompt's share of class k, then what is known beside it, a line each."""

    def share(found: dict[str, Any]) -> str:
        return formatting.with_interval(figures.interval(found["shares"][k]))

    lines = [share(each[OBSERVED]), formatting.count(each["counts"][k], "image")]
    if each[CORRECTED]:
        lines = [f"corrected {share(each[CORRECTED])}", f"observed {', '.join(lines)}"]
    if second:
        lines.append(f"audit {share(second[OBSERVED])}")
    if differ:
        lines.append(f"target {formatting.percent(each['target'][k])}")
    return lines


def _text(found: dict[str, Any], sign: str = "z") -> str:
    """A bias with its interval in two digits."""
    bounds = figures.interval(found)
    if not math.isfinite(bounds.estimate):
        return "not measured"
    estimate, low, high = (f"{bound:{sign}.2f}" for bound in bounds)
    return f"{estimate} [{low}, {high}]"


def _origin(content: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, value) for name, value in content["source"].items() if value]
    for name, one in content["attributes"].items():
        title = formatting.title(name)
        for field in ("classifier", "confidence", "calibration", "target"):
            if one[field] is not None:
                rows.append((f"{title}: {field}", formatting.value_text(one[field])))
        if one["audit"]:
            rows.append((f"{title}: audit classifier", one["audit"]["classifier"]))
    return rows
