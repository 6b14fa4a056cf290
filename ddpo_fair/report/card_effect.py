"""The model card's part about what was measured."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from ddpo_fair.report import (
    attribute_tables,
    changes,
    measurements,
    run_reader,
)
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics import intervals
from ddpo_fair.training import saved_run

FIGURES = ("q", "q_low", "q_high", "num_female", "num_male", "none")
BY_ATTRIBUTE = ("counts", "num_none", "shares", "distance")
UNKNOWN = "Not measured: the run was not evaluated {}. Do not assume any effect."
SEVERAL = (
    "Shares are of recognised images of fresh seeds that were never trained on;"
    " brackets are 95 % intervals, those of three classes or more hold together. The"
    " distance from the target is the share of images that would have to be of another"
    " class."
)


def result(run: saved_run.SavedRun, number: int) -> dict[str, Any]:
    """The figures of a checkpoint as JSON: {"before": {...}, "after": {...}}.

    Each has q (share classified as female among recognised faces), its 95 % interval
    and the counts; `attributes` where there are others; or is None if it was not
    evaluated.
    """
    before, after = saved_run.result(run, number)

    def figures(line: dict[str, Any] | None) -> dict[str, Any] | None:
        if line is None:
            return None
        found = {"epoch": line["epoch"]}
        if "eval_q" in line:
            found |= {name: line.get(f"eval_{name}") for name in FIGURES}
        attributes = {
            name: {field: part.get(f"eval_{field}") for field in BY_ATTRIBUTE}
            for name, part in measurements.parts(line).items()
        }
        return found | ({"attributes": attributes} if attributes else {})

    return {"before": figures(before), "after": figures(after)}


def text(run: saved_run.SavedRun, number: int) -> str:
    """What was measured before training and up to a checkpoint, as Markdown."""
    before, after = saved_run.result(run, number)
    if after is None:
        return UNKNOWN.format("up to this checkpoint")
    notes = []
    if after["epoch"] != number - 1:
        notes.append(
            f"The checkpoint has {number - 1 - after['epoch']} more epochs of"
            " training than the evaluation saw."
        )
    record = run_reader.read(run.folder)
    if measurements.of_gender_alone(record):
        return "\n".join([*_of_gender(run, before, after), *notes])
    if before is None:
        return UNKNOWN.format("before training")
    record = dataclasses.replace(record, lines=(before, after))
    return "\n".join([*_of_attributes(record), SEVERAL, *notes])


def plain(text: str) -> str:
    """`text` as Markdown that shows just that."""
    return re.sub(r"([\\`*_\[\]<>|#~&!])", r"\\\1", text)


def _of_attributes(record: Record) -> Iterator[str]:
    """Lines of a table of each attribute, and of one of its prompts where several."""
    for found in changes.of_runs([record]):
        for table in attribute_tables.as_markdown(found, record):
            yield _row(table.head)
            yield "|---" * len(table.head) + "|"
            yield from map(_row, table.rows)
            yield ""


def _row(cells: Any) -> str:
    return f"| {' | '.join(plain(str(cell)) for cell in cells)} |"


def _of_gender(
    run: saved_run.SavedRun, before: dict[str, Any] | None, after: dict[str, Any]
) -> Iterator[str]:
    """Lines of the table of gender, and what they mean."""
    yield "| | share classified as female | as female | as male | as neither |"
    yield "|---|---|---|---|---|"
    if before is not None:
        yield _row_of_gender("before training", before)
    yield _row_of_gender(f"after epoch {after['epoch']}", after)
    for prompt, line in (after.get("prompts") or {}).items():
        if "eval_q" in line:
            yield _row_of_gender(f"after, {plain(prompt)}", line)
    yield ""
    gender = run.config.attributes.gender
    yield (
        f"Fresh seeds that were never trained on, recognised at a confidence of"
        f" {gender.confidence_threshold:g} by the classifier `{gender.classifier}`;"
        " brackets are 95 % Wilson intervals."
    )
    if before is not None:
        change, low, high = intervals.newcombe(_q(before), _q(after))
        yield (
            f"The share changed by {100 * change:+.1f} points"
            f" [{100 * low:+.1f}, {100 * high:+.1f}]."
        )


def _row_of_gender(name: str, line: dict[str, Any]) -> str:
    share = "no face recognised"
    if line["eval_q"] is not None:
        share = "{:.1%} [{:.1%}, {:.1%}]".format(*_q(line))
    counts = (line["eval_num_female"], line["eval_num_male"], line["eval_none"])
    return f"| {name} | {share} | {' | '.join(map(str, counts))} |"


def _q(line: dict[str, Any]) -> intervals.Interval:
    """The share classified as female of an evaluation."""
    return intervals.Interval(line["eval_q"], line["eval_q_low"], line["eval_q_high"])
