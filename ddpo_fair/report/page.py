"""The report of one run or several: a page that needs nothing but itself, and figures.

Jinja2 escapes every text on its way into the page (`page.html.j2`, `parts.html.j2`).
"""

import base64
import contextlib
import io
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import ddpo_fair
from ddpo_fair import files
from ddpo_fair.report import (
    changes,
    curves,
    evaluation_tables,
    measurements,
    plots,
    run_reader,
    share_curves,
    summary,
    tables,
    templates,
)
from ddpo_fair.report.run_reader import Record

PAGE = "report.html"
MARK = b": fairness report</title>"  # of every page
# What no HTML document may hold: control characters, surrogates, non-characters; nor
# ours, for it turns the order of letters: bidirectional embeddings and isolates.
FORBIDDEN = re.compile(
    r"[^\t\n\r\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\ud7ff"
    r"\ue000-\ufffd\U00010000-\U0010ffff]"
)


def write(run_folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of one run or several; returns the page's path.

    Without `output` it is report.html in the run's folder, or in the folder that holds
    all runs. Its figures go into a folder beside it. A UserError if a folder holds no
    run, or nothing can be written.
    """
    folders = dict.fromkeys(files.given("The run", f) for f in run_folders)
    groups = run_reader.groups(run_reader.read(folder) for folder in folders)
    target = files.output(
        "--output", output or Path(os.path.commonpath(list(folders))) / PAGE, MARK
    )
    figures = target.with_name(f"{target.stem}_figures")
    try:
        with files.writing(f"--output={str(target)!r}"), contextlib.ExitStack() as undo:
            files.hold(figures, "--output")
            if not any(figures.iterdir()):
                undo.callback(shutil.rmtree, figures, ignore_errors=True)
            files.replace(target, _page(groups, figures))
            undo.pop_all()
    finally:
        files.let_go()
    return target


def part(name: str, *content: Any) -> str:
    """A piece of the page, e.g. a table, as HTML; see parts.html.j2."""
    macro = getattr(TEMPLATES.get_template("parts.html.j2").module, name)
    return FORBIDDEN.sub("\ufffd", macro(*content))


def image_source(path: Path, side: int) -> tuple[str, str]:
    """An image file as a data URI, at most so many pixels wide and high.

    Or "", and why there is none.
    """
    kind = "png"
    try:
        content = files.content(path)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if max(image.size) > side:
                image = image.convert("RGB")
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
                file = io.BytesIO()
                image.save(file, format="jpeg", quality=88)
                content, kind = file.getvalue(), "jpeg"
    except Exception as error:  # Pillow raises whatever a broken file brings up
        return "", f"{path.name} cannot be read ({type(error).__name__})."
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}", ""


def _page(groups: Sequence[Sequence[Record]], folder: Path) -> str:
    """The whole page; saves its figures."""
    runs = [run for group in groups for run in group]
    names = dict.fromkeys(name for run in runs for name in measurements.names(run))
    found = [(run, one) for run in groups for one in changes.of_runs(run)]
    single = [name for name in names if measurements.JOINT not in name]
    distances, histogram = share_curves.distances(runs), curves.histogram(runs)
    text = TEMPLATES.get_template("page.html.j2").render(
        written_by={
            "date": time.strftime("%Y-%m-%d %H:%M %Z"),
            "version": ddpo_fair.__version__,
        },
        groups=groups,
        summaries=[summary.of_runs(group) for group in groups],
        runs=runs,
        distances=distances and _draw(distances, folder),
        histogram=histogram and _draw(histogram, folder),
        curves=[_draw(chart, folder) for chart in curves.charts(runs)],
        attributes={x: [pair for pair in found if pair[1].name == x] for x in names},
        shares={x: _draw(share_curves.over_time(runs, x), folder) for x in single},
    )
    return FORBIDDEN.sub("\ufffd", text)


def _draw(chart: plots.Chart, folder: Path) -> dict[str, str]:
    """Saves a chart's files and returns it for the page; its SVG is HTML."""
    sizes = {"any": plots.NARROW}
    if chart.wide:
        sizes = {"wide": plots.WIDE, "narrow": plots.NARROW}
    with plots.style():
        sheets = {}
        for name, size in sizes.items():
            sheets[name], plot = plots.canvas(size)
            chart.draw(plot)
        documents = {x: plots.svg(y, f"{chart.name}-{x}") for x, y in sheets.items()}
        image = plots.png(next(iter(sheets.values())))
    files.replace(folder / f"{chart.name}.svg", next(iter(documents.values())))
    files.replace(folder / f"{chart.name}.png", image)
    svg = (plots.inline(x, chart.title, name) for name, x in documents.items())
    return {"title": chart.title, "caption": chart.caption, "svg": "".join(svg)}


TEMPLATES = templates.ENVIRONMENT
TEMPLATES.filters["second_opinion"] = evaluation_tables.second_opinion
TEMPLATES.globals |= {
    "evaluation_tables": evaluation_tables,
    "image_source": image_source,
    "plots": plots,
    "tables": tables,
}
