"""The report's figures in words and tables."""

import math
import shlex
from collections.abc import Sequence

from ddpo_fair.report import changes, formatting, html, run_reader
from ddpo_fair.report.html import Markup, element
from ddpo_fair.report.run_reader import Record, Share
from ddpo_fair.report.summary import Verdict

MOST_ROWS = 200  # of the table of epochs
ORIGIN = (
    ("command", "Command"),
    ("version", "ddpo_fair"),
    ("commit", "Commit"),
    ("devices", "Devices"),
    ("jax", "JAX"),
    ("python", "Python"),
    ("started", "Last started"),
)
EPOCH_FIELDS = (
    ("reward_mean", "reward"),
    ("loss", "loss"),
    ("kl", "KL, nats"),
    ("ratio_deviation", "|ratio - 1|"),
    ("epoch_seconds", "seconds"),
)


def key_figures(run: Record) -> Markup:
    """The figures of one run that matter most."""
    first, last, _ = changes.ends(run)
    images = sum(run_reader.count(line, "images") for line in run.lines)
    seconds = total_seconds(run)
    speed = f"{images / seconds:.2g} a second" if seconds and images else None
    shares, nones = (
        (said(last or first), f"before: {said(first)}")
        for said in (share_text, none_text)
    )
    cards = [
        ("Classified as female", *shares),
        ("Classified as neither", *nones),
        ("Epochs", f"{len(run.lines)} of {run.num_epochs}", None),
        ("Images trained on", f"{images:,}" if images else "unknown", speed),
        ("Time", formatting.duration(seconds) if seconds else "unknown", _speed(run)),
    ]
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value, element("small", small) if small else None),
            )
            for name, value, small in cards
        ),
        class_="figures",
    )


def comparison(
    groups: Sequence[Sequence[Record]], verdicts: Sequence[Verdict]
) -> Markup:
    """All runs, a row each, and a row for each set of seeds."""
    head = ["Run", "Verdict", "Before", "After", "Neither", "Epochs", "Time"]
    rows = []
    for group, verdict in zip(groups, verdicts, strict=True):
        for run in group:
            first, last, _ = changes.ends(run)
            seconds = total_seconds(run)
            rows.append(
                [
                    run.name,
                    verdict.word if len(group) == 1 else f"seed {_seed(run)}",
                    share_text(first),
                    share_text(last),
                    none_text(last or first),
                    f"{len(run.lines)} of {run.num_epochs}",
                    formatting.duration(seconds) if seconds else "",
                ]
            )
        if len(group) > 1:
            found = verdict.finding
            unit = "%" if found.kind == changes.SHARE else "points of gap"
            before, after = (
                formatting.with_interval(found.before, unit),
                formatting.with_interval(found.after, unit),
            )
            rows.append(
                [
                    f"{len(group)} seeds together",
                    verdict.word,
                    before,
                    after,
                    "",
                    "",
                    "",
                ]
            )
    return html.table(head, rows)


def differences(groups: Sequence[Sequence[Record]]) -> Markup | None:
    """The settings in which the groups differ, a column each."""
    firsts = [group[0] for group in groups]
    names = dict.fromkeys(name for run in firsts for name in run.settings)
    rows = []
    for name in names:
        if name not in run_reader.OF_ONE_RUN:
            values = [formatting.value_text(run.settings.get(name)) for run in firsts]
            if len(set(values)) > 1:
                rows.append([name, *values])
    if not rows:
        return None
    head = ["Setting that differs", *(run.name for run in firsts)]
    return html.table(head, rows, "settings")


def prompts(run: Record, several: bool) -> Markup:
    """Each prompt's share classified as female before and after, drawn as well."""
    rows = [
        [
            element("bdi", name),
            share_text(first),
            share_text(last),
            formatting.with_interval(changes.difference(first, last), "points")
            if first and last
            else "",
            span(first, last, run.target),
        ]
        for name, first, last in changes.ends_by_prompt(run)
    ]
    head = ["Prompt", "Before", "After", "Change", "Share classified as female"]
    text = (
        "Of recognised faces, from 0 to 100 %. Hollow: before. Filled: after. Bars:"
        " 95 % intervals. Long tick: the target."
    )
    title = element("h3", run.name) if several else None
    return element(
        "div",
        title,
        html.table(head, rows, "prompts"),
        element("p", text, class_="meta"),
    )


def span(first: Share | None, last: Share | None, target: float) -> Markup:
    """Two shares with their intervals on a line from 0 to 1."""

    def x(share: float) -> str:
        return f"{6 + 164 * share:.1f}"

    parts = [
        element("line", x1=x(0), x2=x(1), y1=10, y2=10, stroke="var(--rule)"),
        element("line", x1=x(target), x2=x(target), y1=1, y2=19, stroke="var(--ink)"),
    ]
    looks = (
        (first, 6, "var(--paper)", "var(--faint)"),
        (last, 14, *2 * ["var(--first)"]),
    )
    for share, y, fill, stroke in looks:
        if share is not None and math.isfinite(share.q.estimate):
            look = {"stroke": stroke, "stroke_width": "2"}
            ends = {"x1": x(share.q.low), "x2": x(share.q.high), "y1": y, "y2": y}
            centre = x(share.q.estimate)
            parts.append(element("line", **ends, **look))
            parts.append(element("circle", cx=centre, cy=y, r=4, fill=fill, **look))
    return element(
        "svg", *parts, viewBox="0 0 176 20", class_="range", aria_hidden="true"
    )


def origin(run: Record) -> Markup:
    """What made the run, and what proves that its figures are these."""
    rows = []
    for key, name in ORIGIN:
        if run.about.get(key) is not None:
            said = run.about[key]
            if key == "command" and isinstance(said, list):
                said = shlex.join(map(str, said))
            rows.append([name, formatting.value_text(said)])
    rows.append(["Folder", str(run.folder)])
    if run.checksum:
        rows.append(["SHA-256 of metrics.jsonl", run.checksum])
    return html.table(["", ""], rows, "settings")


def settings(run: Record) -> Markup:
    """Every setting of the run."""
    rows = [
        [name, formatting.value_text(value)] for name, value in run.settings.items()
    ]
    return html.table(["Setting", "Value"], rows, "settings")


def epochs(run: Record) -> Markup:
    """The main fields of every epoch, or of every so many."""
    step = -(-len(run.lines) // MOST_ROWS) or 1
    rows = []
    for line in run.lines[::step]:
        fresh = run_reader.evaluated(line, line["epoch"])
        rows.append(
            [
                line["epoch"],
                share_text(run_reader.trained_on(line, line["epoch"])),
                share_text(fresh) if fresh else "",
                run_reader.count(line, "num_none"),
                *(
                    formatting.number_text(run_reader.number(line, name))
                    for name, _ in EPOCH_FIELDS
                ),
            ]
        )
    names = [name for _, name in EPOCH_FIELDS]
    return html.table(
        ["Epoch", "As female", "Of fresh images", "Neither", *names], rows
    )


def share_text(share: Share | None) -> str:
    """A measured share classified as female."""
    return formatting.with_interval(share.q if share else None)


def none_text(share: Share | None) -> str:
    """The share of pictures that were recognised as neither."""
    if share is None or not share.num_faces + share.num_none:
        return "unknown"
    return formatting.percent(share.num_none / (share.num_faces + share.num_none))


def total_seconds(run: Record) -> float:
    """How long all epochs took, as far as it is known."""
    seconds = [run_reader.number(line, "epoch_seconds") for line in run.lines]
    return sum(s for s in seconds if math.isfinite(s))


def _speed(run: Record) -> str | None:
    seconds = total_seconds(run)
    return f"{seconds / len(run.lines):.1f} s an epoch" if seconds else None


def _seed(run: Record) -> str:
    return formatting.value_text(run.settings.get("seed"))
