"""The report's figures as cards and tables of plain texts."""

import math
import shlex
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from ddpo_fair.loggers import progress
from ddpo_fair.report import changes, formatting, measurements, run_reader
from ddpo_fair.report.measurements import Measurement
from ddpo_fair.report.run_reader import Record
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
    """A table: names [C] of its columns, rows [R] of [C] that begin with their name."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    look: str = ""  # its class in page.css
    notes: Sequence[str] = ()  # a line each, below it


def without_blanks(
    head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> Table:
    """A table without the rows and columns of which nothing is known."""
    rows = [row for row in rows if any(row[1:])]
    kept = [c for c in range(len(head)) if c == 0 or any(row[c] for row in rows)]
    head, *rows = ([row[c] for c in kept] for row in (head, *rows))
    return Table(head, rows, notes=notes)


def key_figures(run: Record) -> list[tuple[str, str, str]]:
    """The figures of one run that matter most: name, value, a smaller remark."""
    images = sum(run_reader.count(line, "images") for line in run.lines)
    seconds = total_seconds(run)
    speed = f"{images / seconds:.2g} a second" if seconds and images else ""
    pace = f"{seconds / len(run.lines):.1f} s an epoch" if seconds else ""
    cards = []
    if measurements.of_gender_alone(run):
        first, last, _ = changes.ends(run)
        for name, text in (("female", q_text), ("neither", none_text)):
            before = f"before: {text(first)}"
            cards.append((f"Classified as {name}", text(last or first), before))
    else:
        for one in changes.of_runs([run]):
            if one.distance is not None and one.distance.before is not None:
                ends = one.distance.after or one.distance.before, one.distance.before
                now, before = (formatting.with_interval(x, "points") for x in ends)
                name = formatting.sentence(formatting.title(one.name))
                cards.append((f"{name}, from target", now, f"before: {before}"))
    return [
        *cards,
        ("Epochs", f"{len(run.lines)} of {run.num_epochs}", ""),
        ("Images trained on", f"{images:,}" if images else "unknown", speed),
        ("Time", time_text(run) or "unknown", pace),
    ]


def comparison(
    groups: Sequence[Sequence[Record]], summaries: Sequence[Summary]
) -> Table:
    """All runs, a row each, and a row for each set of seeds."""
    head = ["Run", "Summary", "Before", "After", "Neither", "Epochs", "Time"]
    alone = all(measurements.of_gender_alone(run) for group in groups for run in group)
    if not alone:
        head[2:5] = ["Before, from target", "After, from target", "No class"]
    rows = []
    for group, summary in zip(groups, summaries, strict=True):
        for run in group:
            first, last, _ = changes.ends(run)
            shares = [q_text(first), q_text(last), none_text(last or first)]
            seed = f"seed {formatting.value_text(run.settings.get('seed'))}"
            word = summary.word if len(group) == 1 else seed
            shares = shares if alone else _ends_texts([run])
            epochs = f"{len(run.lines)} of {run.num_epochs}"
            rows.append([run.name, word, *shares, epochs, time_text(run)])
        if len(group) > 1:
            shares, change = _ends_texts(group), summary.change
            if alone:
                unit = "%" if change.kind == changes.SHARE else "points of bias"
                ends = change.before, change.after
                shares = [*(formatting.with_interval(q, unit) for q in ends), ""]
            name = f"{len(group)} seeds together"
            rows.append([name, summary.word, *shares, "", ""])
    return Table(head, rows)


def _ends_texts(runs: Sequence[Record]) -> list[str]:
    """What runs of one experiment were before and after, and images of no class."""
    texts: list[list[str]] = [[], [], []]
    for one in changes.of_runs(runs):
        if one.distance is None:
            continue
        far = [one.distance.before, one.distance.after]
        numbers = [f"{100 * x.estimate:.0f}" if x else "?" for x in far]
        numbers.append(formatting.percent(one.none[1]))
        for column, number in zip(texts, numbers, strict=True):
            column.append(f"{formatting.title(one.name)} {number}")
    before, after, none = map(", ".join, texts)
    return [f"{before} points", f"{after} points", none]


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
    alone, rows = measurements.of_gender_alone(run), []
    names = [x for x in measurements.names(run) if measurements.JOINT not in x]
    text = q_text if alone else shares_text
    for line in run.lines[::step]:
        shares = []
        for name in names:
            trained, fresh = (
                measurements.of_line(line, line["epoch"], fresh, name)
                for fresh in (False, True)
            )
            shares += [text(trained), text(fresh) if fresh else ""]
        if alone:
            shares.append(run_reader.count(line, "num_none"))
        numbers = (run_reader.number(line, name) for name in EPOCH_FIELDS)
        rows.append([line["epoch"], *shares, *map(formatting.number_text, numbers)])
    head = ["As female", "Of fresh images", "Neither"]
    if not alone:
        titles = {x: " / ".join(measurements.classes_of(run, x)) for x in names}
        head = [text for x in names for text in (titles[x], "of fresh images")]
    return Table(["Epoch", *head, *EPOCH_FIELDS.values()], rows)


def q_text(share: Measurement | None) -> str:
    """A measured share classified as female."""
    return formatting.with_interval(share.q if share else None)


def shares_text(found: Measurement | None) -> str:
    """The measured shares of all classes, e.g. "49 / 51 %"."""
    if found is None or not found.num_faces:
        return "no face" if found else "not measured"
    each = " / ".join(f"{100 * share.estimate:.0f}" for share in found.shares)
    return f"{each}{formatting.SPACE}%"


def none_text(share: Measurement | None) -> str:
    """The share of images that were classified as neither."""
    return formatting.percent(changes.none_share([share])) if share else "unknown"


def time_text(run: Record) -> str:
    """How long all epochs took; "" where it is unknown."""
    seconds = total_seconds(run)
    return progress.duration_text(seconds) if seconds else ""


def total_seconds(run: Record) -> float:
    """How long all epochs took, as far as it is known."""
    seconds = [run_reader.number(line, "epoch_seconds") for line in run.lines]
    return sum(s for s in seconds if math.isfinite(s))
