"""The shares of an attribute over a run, and how far its prompts are from targets."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib import axes, figure

from ddpo_fair.report import changes, formatting, measurements, plots, run_reader
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
                _draw_share(plot, run, name, (index, k), look, len(runs) == 1, one)
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


def _arrays(run: Record, fresh: bool, name: str, k: int) -> np.ndarray:
    """Epochs done, share of class k, low and high, float [4, E]."""
    found = measurements.of_run(run, fresh, name)
    rows = [(one.epochs_done, *one.shares[k]) for one in found]
    return plots.thinned(np.array(rows, np.float64).reshape(-1, 4)).T


def _draw_share(
    plot: axes.Axes,
    run: Record,
    name: str,
    of: tuple[int, int],
    look: plots.Look,
    alone: bool,
    one: bool,
) -> None:
    """Draws the share of run and class `of`; of `one` class, of a run `alone`."""
    (index, k), (colour, dash, marker) = of, look
    trained, fresh = (_arrays(run, fresh, name, k) for fresh in (False, True))
    label = plots.label(run.name) if one or k == 0 else None
    if trained.size and (alone or not fresh.size):
        known = "trained on" if alone and one else label
        x, q, low, high = trained
        opacity = 1.0 if one else 0.5
        plot.plot(x, q, color=colour, linestyle=dash, label=known, alpha=opacity)
        if index < plots.NUM_BANDS and one:
            plot.fill_between(x, low, high, color=colour, alpha=plots.BAND, linewidth=0)
    if fresh.size:
        x, q, low, high = fresh
        errors = np.maximum([q - low, high - q], 0.0)
        if alone and one:
            colour, dash, marker = plots.look(1)[0], "none", plots.look(1)[2]
        x = x if alone and one else x + 0.08 * (index + k)
        line = {"color": colour, "linestyle": "none" if alone else dash}
        line["label"] = "fresh images" if alone else label
        bars = {"marker": marker, "markersize": 5, "elinewidth": 1.2, "capsize": 2.5}
        plot.errorbar(x, q, errors, **line, **bars)


def distances(runs: Sequence[Record]) -> plots.Chart | None:
    """The mean bias over prompts in time, or distance; None without several prompts."""
    several = [
        run for run in runs if any(run_reader.parts(x, "prompts") for x in run.lines)
    ]
    if not several:
        return None
    alone = all(map(measurements.of_gender_alone, runs))
    found = [
        (run, name, look if alone else _look(look, k))
        for run, look in zip(several, plots.looks(several), strict=True)
        for k, name in enumerate(measurements.names(run))
        if measurements.target(run, name, run.prompts) is not None
    ]

    def draw(size: tuple[float, float]) -> figure.Figure:
        sheet, plot = plots.canvas(size)
        for index, (run, name, (colour, dash, marker)) in enumerate(found):
            for fresh, opacity in ((False, 0.45), (True, 1.0)):
                table = plots.thinned(changes.over_time(run, fresh, name))
                if not len(table):
                    continue
                line = {"color": colour, "linestyle": dash, "alpha": opacity}
                line["label"] = _label(run, name, fresh, len(several), len(found))
                line["marker"] = marker if fresh else None
                plot.plot(*table[:, :2].T, **line)
                if fresh and index == 0 and np.isfinite(table[:, 2]).all():
                    plot.plot(*table[:, ::2].T, **plots.DASHED)
        plot.set(ylim=(0, 1.02), ylabel="points")
        plot.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
        plots.finish(plot, legend=True)
        return sheet

    if alone:
        names = "mean_bias", "Mean bias over prompts"
        what = (
            "|share classified as female - as male| of each prompt, averaged: 0 is"
            " balance, 100 is one class only. Points: fresh images; faint line: the"
            " images of training. Dashed: what a perfectly fair model would show on so"
            " few fresh images."
        )
    else:
        names = "mean_distance", "Mean distance from the target over prompts"
        first = formatting.title(found[0][1]) if found else ""
        what = (
            "Share of images that would have to be of another class, averaged over"
            " prompts. Points: fresh images; faint line: the images of training."
            f" Dashed: what a model on target would show of {first} on so few images."
        )
    return plots.Chart(*names, what, draw, wide=True)


def _look(of_run: plots.Look, k: int) -> plots.Look:
    """The look of the k-th attribute of a run: runs differ in dash."""
    colour, _, marker = plots.look(k)
    return colour, of_run[1], marker


def _label(
    run: Record, name: str, fresh: bool, num_runs: int, num_lines: int
) -> str | None:
    if num_lines == 1:
        return "fresh images" if fresh else "trained on"
    names = [plots.label(run.name)] if num_runs > 1 else []
    names += [plots.label(name.replace("_", " "))] if num_lines > num_runs else []
    return ", ".join(names) if fresh else None
