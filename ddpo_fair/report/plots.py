"""How all figures look: sizes, colours, and SVG that follows the page's theme."""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence

import markupsafe
import matplotlib as mpl
import numpy as np
from matplotlib import axes, figure, ticker

from ddpo_fair.report import run_reader
from ddpo_fair.report.run_reader import Record

# Colours of figure files; in a page each becomes a CSS variable of its name. Lines
# also differ in dash and marker, so nothing is told by colour alone.
COLOURS = {
    "ink": "#1d2330",
    "faint": "#626b7d",
    "rule": "#d6dae2",
    "paper": "#fefefe",
    "first": "#1f5fb4",
    "second": "#b4530a",
    "third": "#0a7d5c",
    "fourth": "#7b3fa0",
    "fifth": "#a8324e",
    "sixth": "#5c6b12",
}
SERIES = ("first", "second", "third", "fourth", "fifth", "sixth")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 2)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
MOST_POINTS = 2000  # of a curve
MARGINS = (0.72, 0.12, 0.48, 0.1)  # inches: left, right, bottom, top
NARROW, WIDE = (4.0, 2.5), (9.2, 3.3)  # inches: a phone's width, a page's
STYLE = {
    "axes.edgecolor": COLOURS["faint"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": COLOURS["ink"],
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.color": COLOURS["faint"],
    "ytick.labelcolor": COLOURS["ink"],
}
# A line that is wanted, such as the target.
DASHED = {"color": COLOURS["ink"], "linestyle": (0, (6, 4)), "linewidth": 1.2}
Look = tuple[str, object, str]  # colour, dash and marker
PERCENT = "{x:.0%}"  # ticks of a share
PNG_DPI = 200
BAND = 0.16  # opacity of an interval's band
LEGEND_ROW, LEGEND_GAP = 0.22, 0.15  # inches: of an entry, between columns
NUM_BANDS = 2  # lines that may show their bands in one chart


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure of a page."""

    name: str  # of its files
    title: str  # above it
    caption: str  # below it: what is drawn, how to read it
    draw: Callable[[axes.Axes], None]  # on axes of `canvas`
    wide: bool = False  # whether it deserves the width of a page


def thinned(rows: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Rows of a curve's points: all, or every so many down from the last."""
    step = -(-len(rows) // most) or 1
    return rows[::-step][::-1]


def canvas(size: tuple[float, float]) -> tuple[figure.Figure, axes.Axes]:
    """An empty figure of so many inches, and its axes; made inside `style()`.

    Margins are fixed, so charts above each other align; matplotlib's layouts, which
    measure each label, would double the time.
    """
    width, height = size
    sheet = figure.Figure(figsize=size)
    left, right, bottom, top = MARGINS
    shares = (left / width, bottom / height)
    inside = ((width - left - right) / width, (height - bottom - top) / height)
    return sheet, sheet.add_axes((*shares, *inside))


def style() -> object:
    """The context in which figures are made and saved."""
    return mpl.rc_context(STYLE)


def svg(sheet: figure.Figure, name: str) -> str:
    """The figure as an SVG document; the same figure gives the same bytes."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        sheet.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def png(sheet: figure.Figure) -> bytes:
    """The figure as a PNG file on white."""
    file = io.BytesIO()
    sheet.savefig(file, format="png", dpi=PNG_DPI, facecolor="white")
    return file.getvalue()


def inline(document: str, description: str, class_: str = "") -> str:
    """A document of `svg` as an element of a page, in the page's colours and fonts.

    The description is for who cannot see it, plain text; the class is the element's.
    """
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", element)
    element = element.replace("xlink:href", "href")
    element = re.sub(r' id="[a-z]+\d*_\d+"', "", element)  # figure_1, axes_1, ...
    element = re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    for name, colour in COLOURS.items():
        element = element.replace(colour, f"var(--{name})")
    label = markupsafe.escape(description)
    shown = f'<svg role="img" class="{class_}" aria-label="{label}"'
    return element.replace("<svg", shown, 1)


def look(index: int) -> Look:
    """That of a run; together no other of 36 runs has them."""
    turn, place = divmod(index, len(SERIES))
    dash = DASHES[(place + turn) % len(DASHES)]
    return COLOURS[SERIES[place]], dash, MARKERS[(place + turn) % len(MARKERS)]


def looks(runs: Sequence[Record]) -> list[Look]:
    """Those of several runs: the seeds of one experiment differ in dash alone.

    Runs that are all of one experiment get the looks of single runs.
    """
    groups = run_reader.groups(runs)
    if len(groups) == 1:
        return [look(index) for index in range(len(runs))]
    found = {}
    for index, group in enumerate(groups):
        colour, _, marker = look(index)
        for seed, run in enumerate(group):
            found[id(run)] = colour, DASHES[seed % len(DASHES)], marker
    return [found[id(run)] for run in runs]


def label(name: str) -> str:
    """A run's name in letters that every font has, never as a formula.

    A long one keeps its end, where seeds of one experiment differ.
    """
    name = name if len(name) <= 24 else f"{name[:17]}~{name[-6:]}"
    return ascii(name)[1:-1].replace("$", r"\$").lstrip("_")


def finish(plot: axes.Axes, legend: bool) -> None:
    """Labels the axis of epochs, and the lines if that is wanted."""
    plot.set_xlabel("epochs of training")
    # One tick is enough where there is one epoch.
    whole = ticker.MaxNLocator(integer=True, nbins=8, min_n_ticks=1)
    plot.xaxis.set_major_locator(whole)
    if isinstance(plot.yaxis.get_major_formatter(), ticker.ScalarFormatter):
        plot.yaxis.set_major_formatter("{x:.3g}")  # no factor above the axis
    if legend:
        legend_above(plot)


def legend_above(plot: axes.Axes) -> None:
    """A legend over the axes, for which the figure grows; the axes keep their size."""
    count = len(plot.get_legend_handles_labels()[0])
    if not count:
        return
    sheet = plot.get_figure()
    corner = {"bbox_to_anchor": (0, 1), "bbox_transform": sheet.transFigure}
    place = {"loc": "upper left", "borderaxespad": 0.3, **corner}
    width, height = sheet.get_size_inches()
    # No column is wider than the only one of all names would be.
    widest = plot.legend(**place).get_window_extent().width / sheet.dpi
    columns = max(1, int(width / (widest + LEGEND_GAP)))
    plot.legend(**place, ncols=columns)
    taller = height + LEGEND_ROW * -(-count // columns)
    box = plot.get_position()
    shares = (box.x0, box.y0 * height / taller, box.width, box.height * height / taller)
    sheet.set_size_inches(width, taller)
    plot.set_position(shares)
