"""The report of one run or several as files: the page, and its figures beside it."""

import os
from collections.abc import Sequence
from pathlib import Path

from ddpo_fair import files
from ddpo_fair.errors import UserError
from ddpo_fair.report import curves, page, plots, run_reader, share_curves, summary
from ddpo_fair.report.html import Markup
from ddpo_fair.report.run_reader import Record

PAGE = "report.html"


def write(run_folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of one run or several; returns the page's path.

    Args:
        run_folders: at least one.
        output: the page; see `default_output`. Its figures go into a folder beside it.

    Raises:
        UserError: if a folder holds no run, or nothing can be written.
    """
    folders = dict.fromkeys(files.given("The run", f) for f in run_folders)
    runs = [run_reader.read(folder) for folder in folders]
    target = default_output(runs) if output is None else _page(output)
    groups = run_reader.groups(runs)
    alone = [
        share_curves.mean_gap(runs),
        share_curves.over_time(runs),
        share_curves.histogram(runs),
    ]
    alone = [chart for chart in alone if chart is not None]
    try:
        figures = target.with_name(f"{target.stem}_figures")
        figures.mkdir(parents=True, exist_ok=True)
        content = page.build(
            groups,
            [summary.of_runs(group) for group in groups],
            [_draw(chart, figures) for chart in alone],
            [_draw(chart, figures) for chart in curves.charts(runs)],
        )
        _replace(target, content.encode("utf-8"))
    except OSError as error:
        raise UserError(
            f"--output={str(target)!r} cannot be written ({error.strerror or error});"
            " choose another path."
        ) from error
    return target


def default_output(runs: Sequence[Record]) -> Path:
    """report.html in the run's folder, or in the folder that holds all runs."""
    folders = [str(run.folder) for run in runs]
    return Path(os.path.commonpath(folders)) / PAGE


def _page(output: str | Path) -> Path:
    """The page that --output names.

    Raises:
        UserError: if it is a folder.
    """
    target = files.given("--output", output)
    if target.is_dir():
        raise UserError(
            f"--output={str(target)!r} is a folder; name the page, e.g. {PAGE}."
        )
    return target


def _draw(chart: plots.Chart, folder: Path) -> page.Drawn:
    """Saves a chart's files and returns it for the page."""
    sizes = {"wide": plots.WIDE} if chart.wide else {}
    sizes["narrow" if chart.wide else "any"] = plots.NARROW
    pictures = []
    with plots.style():
        for index, (name, size) in enumerate(sizes.items()):
            sheet = chart.draw(size)
            document = plots.svg(sheet, f"{chart.name}-{name}")
            pictures.append(plots.inline(document, chart.title, name))
            if index == 0:
                _replace(folder / f"{chart.name}.svg", document.encode("utf-8"))
                _replace(folder / f"{chart.name}.png", plots.png(sheet))
    return page.Drawn(chart.title, chart.caption, Markup("".join(pictures)))


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
