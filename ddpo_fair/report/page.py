"""The report as one HTML page that needs nothing but itself.

Jinja2 escapes every text on its way into the page (`page.html.j2`, `parts.html.j2`).
"""

import base64
import io
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

import ddpo_fair
from ddpo_fair.report import (
    attribute_tables,
    changes,
    evaluation_tables,
    formatting,
    plots,
    tables,
)
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.summary import Summary
from ddpo_fair.statistics import intervals

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# What no HTML document may hold: control characters, surrogates, non-characters.
FORBIDDEN = re.compile(
    r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
LARGEST_SIDE = 1100  # pixels of a grid that goes in as it is
FILM_SIDE, FILM_LENGTH = 420, 3  # pixels and number of the grids in between
SAMPLERS = "The same seeds under each sampler, before and after training."


class Grid(NamedTuple):
    """An image of the page: its data URI, or why there is none."""

    title: str
    source: str
    problem: str


class PromptRow(NamedTuple):
    """A row of the table of prompts."""

    prompt: str
    before: str
    after: str
    change: str
    ends: changes.Ends


def build(
    groups: Sequence[Sequence[Record]],
    summaries: Sequence[Summary],
    wide: Sequence[plots.InlineChart],
    curves: Sequence[plots.InlineChart],
    shares: Mapping[str, plots.InlineChart | None],
) -> str:
    """The whole page.

    Args:
        groups: runs that differ in their seed only, together.
        summaries: one for each group.
        wide: charts that are a section each; the first stands before the images.
        curves: all others.
        shares: of each attribute, or None for the cells of several; {} for gender
            alone.
    """
    runs = [run for group in groups for run in group]
    text = TEMPLATES.get_template("page.html.j2").render(
        title=", ".join(run.name for run in runs),
        date=time.strftime("%Y-%m-%d %H:%M %Z"),
        version=ddpo_fair.__version__,
        groups=[_group(*pair) for pair in zip(groups, summaries, strict=True)],
        cards=tables.key_figures(runs[0]),
        comparison=tables.comparison(groups, summaries),
        differences=tables.differences(groups),
        runs=[_run(run) for run in runs],
        paired=any(len(run.grids) > 1 for run in runs),
        wide=wide,
        curves=curves,
        attributes=[_attribute(groups, *item) for item in shares.items()],
    )
    return FORBIDDEN.sub("\ufffd", text)


def part(name: str, *content: Any) -> str:
    """A piece of the page, e.g. a table, as HTML; see parts.html.j2."""
    macro = getattr(TEMPLATES.get_template("parts.html.j2").module, name)
    return FORBIDDEN.sub("\ufffd", macro(*content))


def _group(runs: Sequence[Record], summary: Summary) -> dict[str, Any]:
    opinions = filter(None, map(evaluation_tables.second_opinion, runs))
    return {
        "name": ", ".join(run.name for run in runs),
        "summary": summary,
        "remarks": [*opinions, *summary.caveats],
    }


def _attribute(
    groups: Sequence[Sequence[Record]], name: str, chart: plots.InlineChart | None
) -> dict[str, Any]:
    """What the page says of an attribute."""
    parts, aimed = [], False
    for runs in groups:
        for found in changes.of_runs(runs):
            if found.name == name:
                aimed = aimed or found.distance is not None
                part = attribute_tables.of_attribute(found, runs)
                parts.append((", ".join(run.name for run in runs), part))
    return {
        "title": formatting.sentence(formatting.title(name)),
        "aimed": aimed,
        "chart": chart,
        "parts": parts,
    }


def _run(run: Record) -> dict[str, Any]:
    """What the page says of one run."""
    epochs = list(run.grids)
    middle = epochs[1:-1]
    film = middle[:: max(1, len(middle) // FILM_LENGTH)][:FILM_LENGTH]
    sheets = sorted(run.folder.glob("evaluation_*/samplers.png"))[-1:]
    return {
        "name": run.name,
        "target": run.target,
        "ends": _grids(run, dict.fromkeys(epochs[:1] + epochs[-1:]), LARGEST_SIDE),
        "between": _grids(run, film, FILM_SIDE),
        "prompts": [_prompt_row(*row) for row in changes.ends_by_prompt(run).items()],
        "evaluation": evaluation_tables.of_run(run),
        "samplers": _grid(SAMPLERS, sheets[0], LARGEST_SIDE) if sheets else None,
        "origin": tables.origin(run),
        "settings": tables.settings(run),
        "epochs": tables.epochs(run),
    }


def _prompt_row(prompt: str, ends: changes.Ends) -> PromptRow:
    first, last, _ = ends
    change = ""
    if last is not None:
        difference = intervals.newcombe(first.q, last.q)
        change = formatting.with_interval(difference, "points")
    shares = map(tables.q_text, (first, last))
    return PromptRow(prompt, *shares, change, ends)


def _grids(run: Record, epochs: Iterable[int], side: int) -> list[Grid]:
    return [
        _grid(
            "Before training" if epoch == 0 else f"After epoch {epoch}",
            run.grids[epoch],
            side,
        )
        for epoch in epochs
    ]


def _grid(title: str, path: Path, side: int) -> Grid:
    """An image file for the page, at most so many pixels wide and high."""
    try:
        return Grid(title, _data_uri(path, side), "")
    except Exception as error:  # Pillow raises whatever a broken file brings up
        problem = f"{path.name} cannot be read ({type(error).__name__})."
        return Grid(title, "", problem)


def _data_uri(path: Path, side: int) -> str:
    if not path.is_file():  # a FIFO would be waited for
        raise FileNotFoundError
    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if max(image.size) > side:
            image = image.convert("RGB")
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            image.save(file, format="jpeg", quality=88)
            content, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
