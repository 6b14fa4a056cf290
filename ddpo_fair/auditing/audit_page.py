"""An audit as one HTML page that needs nothing but itself (report/audit.html.j2)."""

import contextlib
import math
import os
from typing import Any

from ddpo_fair.auditing import figures
from ddpo_fair.auditing.figures import CORRECTED, FAIR, OBSERVED
from ddpo_fair.errors import UserError
from ddpo_fair.report import formatting, page
from ddpo_fair.report.tables import Table

MOST_FILES = 100  # that the page names
OPENING = (
    "Errors of the classifier are not corrected: the shares are of what it says. Give"
    " --calibration, a folder with images of your own for each class, to correct them.",
    "Shares and bias are corrected for the classifier's errors on the calibration"
    " images, unless a line says observed.",
)


def build(content: dict[str, Any]) -> str:
    """The page of what audit.json holds."""
    attributes, unread = content["attributes"], content["unreadable"]
    calibrated = [
        formatting.title(name) for name, one in attributes.items() if one[CORRECTED]
    ]
    opening = OPENING[bool(calibrated)]
    if 0 < len(calibrated) < len(attributes):
        opening += f" That is so of {formatting.listed(calibrated)}, not of the others."
    failed: list[str] = []
    with contextlib.suppress(UserError):  # nothing recognised, which the command says
        failed = list(figures.above(content))
    cards = [
        ("Images", f"{content['images']:,}", f"{len(unread):,} unreadable"),
        ("Prompts", f"{content['prompts']:,}", ""),
    ]
    if found := content["faces"]:
        several = f"{found['several']:,} several"
        cards.append(("Without a face", f"{found['none']:,}", several))
    for name, one in attributes.items():
        remark = "not corrected for errors"
        if one[CORRECTED]:
            remark = f"observed: {_text(one[OBSERVED]['mean_bias'])}"
        cards.append((f"Mean bias, {formatting.title(name)}", bias_text(one), remark))
    text = page.TEMPLATES.get_template("audit.html.j2").render(
        title=_title(content["source"]),
        written_by=content["written_by"],
        opening=opening,
        summary={"word": _word(attributes), "sentence": " ".join(sentences(content))},
        remarks=[*failed, *content["notes"]],
        cards=cards,
        attributes=attributes,
        origin=Table(("Setting", "Value"), _origin(content), "settings"),
        unreadable=Table(("File", "Why"), unread[:MOST_FILES]),
        figures=figures,
        text=_text,
        tables_of=_tables,
    )
    return page.FORBIDDEN.sub("\ufffd", text)


def _title(source: dict[str, str | None]) -> str:
    """The name of what was audited: of images, or of a model with its LoRA."""
    named = [source.get("model") or source["images"], source.get("lora")]
    return " with ".join(os.path.basename(os.path.abspath(x)) for x in named if x)


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


def _tables(one: dict[str, Any]) -> dict[str, Table]:
    """The tables of an attribute below its prompts, by title."""
    found, names = {}, one["classes"]
    if one["confusion"]:
        matrix = [(x, *row) for x, row in zip(names, one["confusion"], strict=True)]
        said = [f"classified as {x}" for x in names]
        found["Errors of the classifier"] = Table(("Images of", *said), matrix)
    if compared := one.get("baseline"):
        each = {"mean over prompts": compared["mean_change"]} | compared["prompts"]
        changes = [(prompt, _text(change, "+")) for prompt, change in each.items()]
        note = "A change is shown where its interval leaves out 0."
        head = ("Prompt", f"change of {compared['kind']} bias")
        found["Since the baseline"] = Table(head, changes, notes=[note])
    return found


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
