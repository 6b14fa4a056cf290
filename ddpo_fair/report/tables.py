"""The report's figures as cards and tables of plain texts."""

import math
import shlex
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from ddpo_fair.loggers import progress
from ddpo_fair.report import changes, formatting, run_reader
from ddpo_fair.report.run_reader import Record, Share
from ddpo_fair.report.summary import Summary
from ddpo_fair.training import description

MOST_ROWS = 200  # of the table of epochs
MOST_LETTERS = 120  # of a setting in which runs differ
ORIGIN = {
    "command": "Command",
    "version": "ddpo_fair",
    "commit": "Commit",
    "devices": "Devices",
    "jax": "JAX",
    "python": "Python",
    "started": "Last started",
}
EPOCH_FIELDS = {
    "reward_mean": "reward",
    "loss": "loss",
    "kl": "KL, nats",
    "ratio_deviation": "|ratio - 1|",
    "epoch_seconds": "seconds",
}


class Table(NamedTuple):
    """A table: names of its columns, rows that begin with their name.

    Attributes:
        head: str [C].
        rows: [R] of [C] texts or numbers.
        look: its class in page.css.
        notes: a line each, below it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    look: str = ""
    notes: Sequence[str] = ()


def key_figures(run: Record) -> list[tuple[str, str, str]]:
    """The figures of one run that matter most: name, value, a smaller remark."""
    first, last, _ = changes.ends(run)
    images = sum(run_reader.count(line, "images") for line in run.lines)
    seconds = total_seconds(run)
    speed = f"{images / seconds:.2g} a second" if seconds and images else ""
    pace = f"{seconds / len(run.lines):.1f} s an epoch" if seconds else ""
    return [
        (
            "Classified as female",
            q_text(last or first),
            f"before: {q_text(first)}",
        ),
        (
            "Classified as neither",
            none_text(last or first),
            f"before: {none_text(first)}",
        ),
        ("Epochs", f"{len(run.lines)} of {run.num_epochs}", ""),
        ("Images trained on", f"{images:,}" if images else "unknown", speed),
        ("Time", time_text(run) or "unknown", pace),
    ]


def comparison(
    groups: Sequence[Sequence[Record]], summaries: Sequence[Summary]
) -> Table:
    """All runs, a row each, and a row for each set of seeds."""
    head = ["Run", "Summary", "Before", "After", "Neither", "Epochs", "Time"]
    rows = []
    for group, summary in zip(groups, summaries, strict=True):
        for run in group:
            first, last, _ = changes.ends(run)
            seed = f"seed {formatting.value_text(run.settings.get('seed'))}"
            rows.append(
                [
                    run.name,
                    summary.word if len(group) == 1 else seed,
                    q_text(first),
                    q_text(last),
                    none_text(last or first),
                    f"{len(run.lines)} of {run.num_epochs}",
                    time_text(run),
                ]
            )
        if len(group) > 1:
            change = summary.change
            unit = "%" if change.kind == changes.SHARE else "points of bias"
            shares = [
                formatting.with_interval(q, unit) for q in (change.before, change.after)
            ]
            name = f"{len(group)} seeds together"
            rows.append([name, summary.word, *shares, "", "", ""])
    return Table(head, rows)


def differences(groups: Sequence[Sequence[Record]]) -> Table | None:
    """The settings in which the groups differ, a column each; None without any."""
    firsts = [group[0] for group in groups]
    names = dict.fromkeys(name for run in firsts for name in run.settings)
    rows = []
    for name in names:
        values = [formatting.value_text(run.settings.get(name)) for run in firsts]
        if name not in run_reader.OF_ONE_RUN and len(set(values)) > 1:
            rows.append([name, *(textwrap.shorten(v, MOST_LETTERS) for v in values)])
    head = ["Setting that differs", *(run.name for run in firsts)]
    return Table(head, rows, "settings") if rows else None


def origin(run: Record) -> Table:
    """What made the run, and what proves that its figures are these."""
    about = {key: run.about[key] for key in ORIGIN if run.about.get(key) is not None}
    if isinstance(about.get("command"), list):
        about["command"] = shlex.join(map(str, about["command"]))
    rows = [[ORIGIN[key], formatting.value_text(v)] for key, v in about.items()]
    rows.append(["Folder", str(run.folder)])
    for field in description.fields(run.settings):
        if known := description.known(run.about, field):
            rows.append([f"Fingerprint of {field}", known["fingerprint"]])
    if run.checksum:
        rows.append(["SHA-256 of metrics.jsonl", run.checksum])
    return Table(["", ""], rows, "settings")


def settings(run: Record) -> Table:
    """Every setting of the run."""
    rows = [[name, formatting.value_text(v)] for name, v in run.settings.items()]
    return Table(["Setting", "Value"], rows, "settings")


def epochs(run: Record) -> Table:
    """The main fields of every epoch, or of every so many."""
    step = -(-len(run.lines) // MOST_ROWS) or 1
    rows = []
    for line in run.lines[::step]:
        trained, fresh = (
            run_reader.share(line, line["epoch"], fresh) for fresh in (False, True)
        )
        numbers = [run_reader.number(line, name) for name in EPOCH_FIELDS]
        rows.append(
            [
                line["epoch"],
                q_text(trained),
                q_text(fresh) if fresh else "",
                run_reader.count(line, "num_none"),
                *map(formatting.number_text, numbers),
            ]
        )
    head = ["Epoch", "As female", "Of fresh images", "Neither"]
    return Table([*head, *EPOCH_FIELDS.values()], rows)


def q_text(share: Share | None) -> str:
    """A measured share classified as female."""
    return formatting.with_interval(share.q if share else None)


def none_text(share: Share | None) -> str:
    """The share of images that were classified as neither."""
    if share is None:
        return "unknown"
    return formatting.percent(share.num_none / (share.num_faces + share.num_none))


def time_text(run: Record) -> str:
    """How long all epochs took; "" where it is unknown."""
    seconds = total_seconds(run)
    return progress.duration_text(seconds) if seconds else ""


def total_seconds(run: Record) -> float:
    """How long all epochs took, as far as it is known."""
    seconds = [run_reader.number(line, "epoch_seconds") for line in run.lines]
    return sum(s for s in seconds if math.isfinite(s))
