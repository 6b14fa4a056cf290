"""The report's figures as cards and tables of plain texts."""

import math
import shlex
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from ddpo_fair.loggers import progress
from ddpo_fair.report import changes, formatting, measurements, run_reader
from ddpo_fair.report.changes import AttributeChange, Change
from ddpo_fair.report.measurements import Measurement
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.summary import Summary
from ddpo_fair.statistics.intervals import Interval
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
RANGES = (
    "Of recognised images, from 0 to 100 %. Hollow: before. Filled: after. Bars: 95 %"
    " intervals. Long tick: the target."
)
HEAD = ("Target", "Before", "After", "Difference")
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
    for one in changes.of_runs([run]):
        if one.distance is not None and one.figure.before is not None:
            ends = one.figure.after or one.figure.before, one.figure.before
            now, before = (formatting.with_interval(x, one.unit) for x in ends)
            name = f"{formatting.sentence(formatting.title(one.name))}, {one.measure}"
            name = f"Classified as {one.share}" if one.share else name
            cards.append((name, now, f"before: {before}"))
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
    head = ["Run", "Summary", "Before", "After", "No class", "Epochs", "Time"]
    rows = []
    for group, summary in zip(groups, summaries, strict=True):
        for run in group:
            seed = f"seed {formatting.value_text(run.settings.get('seed'))}"
            word = summary.word if len(group) == 1 else seed
            epochs = f"{len(run.lines)} of {run.num_epochs}"
            rows.append([run.name, word, *_row([run]), epochs, time_text(run)])
        if len(group) > 1:
            name = f"{len(group)} seeds together"
            rows.append([name, summary.word, *_row(group), "", ""])
    return Table(head, rows)


def _row(runs: Sequence[Record]) -> list[str]:
    """What runs of one experiment were before and after, and images of no class."""
    found = [one for one in changes.of_runs(runs) if one.figure is not None]
    found = [one for one in found if one.distance is not None] or found
    write = formatting.with_interval if len(found) == 1 else _estimate
    columns = []
    for one in found:
        title, known = formatting.title(one.name), math.isfinite(one.none[1])
        texts = [write(x, one.unit) for x in (one.figure.before, one.figure.after)]
        texts.append(formatting.percent(one.none[1]) if known else "unknown")
        if len(found) > 1 or not one.share:
            names = one.share or title, one.share or title, title
            texts = [f"{name} {text}" for name, text in zip(names, texts, strict=True)]
        columns.append(texts)
    return [", ".join(texts) for texts in zip(*columns, strict=True)] or 3 * [""]


def _estimate(share: Interval | None, unit: str) -> str:
    return f"{100 * share.estimate:.0f}{formatting.SPACE}{unit}" if share else "?"


def differences(groups: Sequence[Sequence[Record]]) -> Table | None:
    """The settings in which the groups differ, a column each; None without any."""
    firsts = [group[0] for group in groups]
    names = dict.fromkeys(name for run in firsts for name in run.settings)
    rows = []
    for name in names:
        values = [formatting.value_text(x.settings.get(name, "–")) for x in firsts]
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
    names = [x for x in measurements.names(run) if measurements.JOINT not in x]
    head, rows = [], []
    for name in names:
        classes = measurements.classes_of(run, name)
        shown = classes[:1] if len(classes) == 2 else classes
        head += [" / ".join(shown), "of fresh images", "no class"]
    for line in run.lines[::step]:
        shares = []
        for name in names:
            trained, fresh = (
                measurements.of_line(line, line["epoch"], fresh, name)
                for fresh in (False, True)
            )
            none = trained.num_none if trained else ""
            shares += [_shares(trained), _shares(fresh) if fresh else "", none]
        numbers = (run_reader.number(line, name) for name in EPOCH_FIELDS)
        rows.append([line["epoch"], *shares, *map(formatting.number_text, numbers)])
    return Table(["Epoch", *head, *EPOCH_FIELDS.values()], rows)


def _shares(found: Measurement | None) -> str:
    """Of two classes the first one's measured share; of more all, "49 / 40 / 11 %"."""
    if found is None or len(found.counts) == 2:
        return formatting.with_interval(found and found.shares[0])
    if not found.num_faces:
        return "no face"
    each = " / ".join(f"{100 * share.estimate:.0f}" for share in found.shares)
    return f"{each}{formatting.SPACE}%"


def time_text(run: Record) -> str:
    """How long all epochs took; "" where it is unknown."""
    seconds = total_seconds(run)
    return progress.duration_text(seconds) if seconds else ""


def total_seconds(run: Record) -> float:
    """How long all epochs took, as far as it is known."""
    seconds = [run_reader.number(line, "epoch_seconds") for line in run.lines]
    return sum(s for s in seconds if math.isfinite(s))


def of_classes(found: AttributeChange) -> Table:
    """A row for each class, one for images of none, one for the distance."""
    rows = [[name, *_texts(one)] for name, one in found.classes.items()]
    none = [formatting.percent(x) if math.isfinite(x) else "" for x in found.none]
    rows.append(["no class recognised", "", *none, ""])
    if found.distance is not None:
        rows.append([found.measure, *_texts(found.distance, "points")])
    title = formatting.sentence(formatting.title(found.name))
    return without_blanks([title, *HEAD], rows)


def of_cells(found: AttributeChange, run: Record) -> Table | None:
    """Of a joint goal the changes of its cells: a column for each last class."""
    names = found.name.split(measurements.JOINT)
    columns = measurements.classes_of(run, names[-1])
    last, whole = columns[0], len(found.classes) % len(columns) == 0
    if len(names) == 1 or not whole or not next(iter(found.classes)).endswith(last):
        return None
    rows = []
    for k, (name, one) in enumerate(found.classes.items()):
        if k % len(columns) == 0:
            rows.append([name.removesuffix(last).strip()])
        rows[-1].append(one)
    return Table([" and ".join(map(formatting.title, names[:-1])), *columns], rows)


def of_prompts(run: Record, name: str) -> Table | None:
    """Rows for each of several prompts, each with its change to draw.

    Of two classes the first says all; of more the distance stands below them.
    """
    texts, rows, what = measurements.prompts(run), [], "Share"
    if len(texts) < 2:
        return None
    for prompt in texts:
        found = changes.of_attribute([run], name, prompt)
        if found.share:
            what = f"Share classified as {found.share}"
            rows.append([prompt, *_texts(found.figure), found.figure])
            continue
        for class_, one in found.classes.items():
            rows.append([f"{prompt}: {class_}", *_texts(one), one])
        if (far := found.distance) is not None:
            title = f"{prompt}: {found.measure}"
            rows.append([title, *_texts(far, "points"), far])
    return Table(["Prompt", *HEAD, what], rows, "prompts", [RANGES])


def _texts(one: Change, unit: str = "%") -> list[str]:
    """Target, before, after and the difference of a change."""
    wanted = formatting.percent(one.target) if unit == "%" and one.target >= 0 else ""
    ends = [formatting.with_interval(x, unit) for x in (one.before, one.after)]
    moved = one.difference and formatting.with_interval(one.difference, "points")
    return [wanted, *ends, moved or ""]
