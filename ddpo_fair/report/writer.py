"""The report of one run or several as files: the page, and its figures beside it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddpo_fair import files
from ddpo_fair.errors import UserError
from ddpo_fair.report import (
    curves,
    distance_curves,
    measurements,
    page,
    plots,
    run_reader,
    share_curves,
    summary,
)

PAGE = "report.html"
MARK = b": fairness report</title>"  # of every page


def write(run_folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of one run or several; returns the page's path.

    Args:
        run_folders: at least one.
        output: the page; without one, report.html in the run's folder, or in the folder
            that holds all runs. Its figures go into a folder beside it.

    Raises:
        UserError: if a folder holds no run, or nothing can be written.
    """
    folders = dict.fromkeys(files.given("The run", f) for f in run_folders)
    runs = [run_reader.read(folder) for folder in folders]
    target = files.output(
        "--output", output or Path(os.path.commonpath(list(folders))) / PAGE, MARK
    )
    groups = run_reader.groups(runs)
    alone = all(map(measurements.of_gender_alone, runs))
    names = dict.fromkeys(name for run in runs for name in measurements.names(run))
    single = [name for name in names if measurements.JOINT not in name]
    shares = [share_curves.over_time(runs, name) for name in single]
    wide = [distance_curves.over_time(runs), *(shares if alone else ())]
    wide = [chart for chart in (*wide, share_curves.histogram(runs)) if chart]
    figures = target.with_name(f"{target.stem}_figures")
    try:
        figures.mkdir(parents=True, exist_ok=True)
        content = page.build(
            groups,
            [summary.of_runs(group) for group in groups],
            [_draw(chart, figures) for chart in wide if chart],
            [_draw(chart, figures) for chart in curves.charts(runs)],
            {} if alone else _by_name(names, single, shares, figures),
        )
        files.replace(target, content)
    except OSError as error:
        raise UserError(
            f"--output={str(target)!r} cannot be written ({error.strerror or error});"
            " choose another path."
        ) from error
    return target


def _by_name(
    names: Iterable[str],
    single: Sequence[str],
    shares: Sequence[plots.Chart],
    folder: Path,
) -> dict[str, plots.InlineChart | None]:
    """The chart of each attribute; None for the cells of several."""
    drawn = (_draw(chart, folder) for chart in shares)
    return dict.fromkeys(names) | dict(zip(single, drawn, strict=True))


def _draw(chart: plots.Chart, folder: Path) -> plots.InlineChart:
    """Saves a chart's files and returns it for the page."""
    sizes = {"any": plots.NARROW}
    if chart.wide:
        sizes = {"wide": plots.WIDE, "narrow": plots.NARROW}
    elements = []
    with plots.style():
        for name, size in sizes.items():
            sheet = chart.draw(size)
            document = plots.svg(sheet, f"{chart.name}-{name}")
            elements.append(plots.inline(document, chart.title, name))
            if name != "narrow":
                files.replace(folder / f"{chart.name}.svg", document)
                files.replace(folder / f"{chart.name}.png", plots.png(sheet))
    return plots.InlineChart(chart.title, chart.caption, "".join(elements))
