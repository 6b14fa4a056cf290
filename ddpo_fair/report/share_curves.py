"""The shares of an attribute over a run, and the classifier's confidence."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import axes, figure

from ddpo_fair.report import formatting, measurements, plots, run_reader
from ddpo_fair.report.measurements import GENDER
from ddpo_fair.report.run_reader import Record


def over_time(runs: Sequence[Record], name: str = GENDER) -> plots.Chart:
    """Shares of an attribute in every epoch's images and evaluations, and the target.

    Of two classes it is the first one's: the second has the rest.
    """
    runs = [run for run in runs if name in measurements.names(run)]
    classes = measurements.classes_of(runs[0], name)
    runs = [run for run in runs if measurements.classes_of(run, name) == classes]
    shown = [0] if len(classes) == 2 else list(range(len(classes)))
    one = len(shown) == 1

    def draw(size: tuple[float, float]) -> figure.Figure:
        sheet, plot = plots.canvas(size, 0 if one else plots.LABELS)
        _draw_targets(plot, _targets(runs, name, shown))
        looks, ends = plots.looks(runs), {}
        for index, run in enumerate(runs):
            for k in shown:
                look = looks[index]
                if not one:
                    colour, dash, marker = plots.look(k)
                    if len(runs) > 1:
                        dash = plots.DASHES[index % len(plots.DASHES)]
                    look = colour, dash, marker
                series = _Series(run, name, k, 0.08 * (index + k) * (index + k > 0))
                _draw_shares(plot, series, look, len(runs) == 1, one, index)
                measured = measurements.of_run(run, True, name)
                measured = measured or measurements.of_run(run, False, name)
                if measured:
                    end = measured[-1].shares[k].estimate
                    ends.setdefault(k, (end, plots.label(classes[k]), plots.look(k)))
        plot.set_ylim(-0.02, 1.02)
        plot.yaxis.set_major_formatter(plots.PERCENT)
        if ends and not one:
            plots.label_ends(plot, list(ends.values()))
        plots.finish(plot, legend=one or len(runs) > 1)
        return sheet

    title, file = f"Shares by {formatting.title(name)}", f"shares_of_{name}"
    if all(map(measurements.of_gender_alone, runs)):
        title, file = f"Share classified as {classes[0]}", f"share_of_{classes[0]}"
    file = re.sub(r"\W+", "_", file)[:60]
    caption = _caption(classes, len(runs))
    if wanted := _targets(runs, name, shown):
        hollow = "" if _equal(wanted) else " Hollow: the target of which class."
        caption += f" Dashed: the target.{hollow}"
    return plots.Chart(file, title, caption, draw, wide=True)


def _caption(classes: Sequence[str], num_runs: int) -> str:
    if len(classes) > 2:
        how = "Line: the images of each epoch's training. Points with bars: fresh"
        how += " images, never trained on"
        if num_runs > 1:
            how = "On fresh images; runs differ in dash"
        return (
            f"Share of each class among recognised images. {how}, with 95 % intervals"
            " that hold together."
        )
    share = f"Share classified as {classes[0]} among recognised faces"
    if num_runs > 1:
        return (
            f"{share}, on fresh images (on each epoch's own where a run has no"
            " evaluation), with 95 % Wilson intervals."
        )
    return (
        f"{share}. Line: the images of each epoch's training, with a 95 % Wilson band."
        " Points with bars: fresh images, never trained on, with their 95 % intervals."
    )


def _targets(
    runs: Sequence[Record], name: str, shown: Sequence[int]
) -> list[tuple[float, int]]:
    """Wanted shares, each with its class."""
    found = [measurements.target(run, name, run.prompts) for run in runs]
    return sorted({(t[k], k) for t in found if t is not None for k in shown})


def _equal(wanted: Sequence[tuple[float, int]]) -> bool:
    """Whether targets need not say whose they are."""
    return 1 in (len({share for share, _ in wanted}), len({k for _, k in wanted}))


def _draw_targets(plot: axes.Axes, wanted: Sequence[tuple[float, int]]) -> None:
    """A line for each target, in its class's colour and with its marker if needed."""
    place = {"transform": plot.get_yaxis_transform(), "clip_on": False}
    for target, k in wanted:
        colour, _, marker = plots.look(k)
        if _equal(wanted):
            plot.axhline(target, **plots.DASHED)
        else:
            plot.axhline(target, **plots.DASHED | {"color": colour})
            hollow = {"color": colour, "mfc": plots.COLOURS["paper"]}
            plot.plot(0, target, marker, **hollow, **place)


def histogram(runs: Sequence[Record]) -> plots.Chart | None:
    """P(female) of the classifier, first and last; None if unknown."""
    pairs = [(run, *_histograms(run)) for run in runs]
    pairs = [pair for pair in pairs if pair[1] is not None]
    if not pairs:
        return None
    looks = plots.looks([run for run, _, _ in pairs])

    def draw(size: tuple[float, float]) -> figure.Figure:
        sheet, plot = plots.canvas(size)
        for index, (run, first, last) in enumerate(pairs):
            name = "" if len(pairs) == 1 else f"{plots.label(run.name)}, "
            if index == 0:
                # Runs of one experiment begin with the same model.
                faint = plots.COLOURS["faint"]
                _steps(plot, first, "before", faint, (0, (1, 1.5)), 0.12)
            if last is not None:
                colour, dash, _ = looks[index]
                _steps(plot, last, f"{name}after", colour, dash, 0.0)
        plot.set_xlim(0, 1)
        plot.set_ylim(bottom=0)
        plot.yaxis.set_major_formatter(plots.PERCENT)
        plot.set_xlabel("P(female) of the classifier")
        plots.legend_above(plot)
        return sheet

    return plots.Chart(
        "p_female",
        "Confidence of the classifier",
        "Images by the classifier's probability of female. Balance of clear faces has"
        " a peak at each end; ambiguous faces gather in the middle.",
        draw,
    )


def _histograms(run: Record) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Shares of images in bins, of the first and the last evaluation."""
    found = []
    for line in run.lines:
        counts = line.get("eval_p_female_histogram")
        if isinstance(counts, list) and len(counts) > 1:
            values = [run_reader.number({"n": n}, "n") for n in counts]
            if all(v >= 0 for v in values) and 0 < sum(values) < math.inf:
                found.append(np.array(values) / sum(values))
    return (found[0] if found else None), (found[-1] if len(found) > 1 else None)


def _steps(
    plot: axes.Axes,
    shares: np.ndarray,
    label: str,
    colour: str,
    dash: object,
    opacity: float,
) -> None:
    edges = np.linspace(0, 1, len(shares) + 1)
    plot.stairs(shares, edges, color=colour, linestyle=dash, linewidth=2, label=label)
    if opacity:
        plot.stairs(shares, edges, color=colour, fill=True, alpha=opacity)


class _Series(NamedTuple):
    """A share in time: of the class k of an attribute, drawn a little to the right."""

    run: Record
    name: str
    k: int
    aside: float

    def arrays(self, fresh: bool) -> np.ndarray:
        """Epochs done, share, low and high, float [4, E]."""
        found = measurements.of_run(self.run, fresh, self.name)
        rows = [(one.epochs_done, *one.shares[self.k]) for one in found]
        return plots.thinned(np.array(rows, np.float64).reshape(-1, 4)).T


def _draw_shares(
    plot: axes.Axes,
    series: _Series,
    look: plots.Look,
    alone: bool,
    one: bool,
    index: int,
) -> None:
    """Draws a share: of the only run or of several, the only class or one of many."""
    colour, dash, marker = look
    trained, fresh = series.arrays(False), series.arrays(True)
    label = plots.label(series.run.name) if one or series.k == 0 else None
    if trained.size and (alone or not fresh.size):
        x, q, low, high = trained
        opacity = 1.0 if one else 0.5
        name = "trained on" if alone and one else label
        plot.plot(x, q, color=colour, linestyle=dash, label=name, alpha=opacity)
        if index < plots.NUM_BANDS and one:
            plot.fill_between(x, low, high, color=colour, alpha=plots.BAND, linewidth=0)
    if fresh.size:
        x, q, low, high = fresh
        errors = np.maximum([q - low, high - q], 0.0)
        if alone and one:
            colour, dash, marker = plots.look(1)[0], "none", plots.look(1)[2]
        plot.errorbar(
            x if alone and one else x + series.aside,
            q,
            errors,
            color=colour,
            linestyle="none" if alone else dash,
            marker=marker,
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label="fresh images" if alone else label,
        )
