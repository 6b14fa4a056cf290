"""The shares of an attribute over a run, and how far its prompts are from targets."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib import axes

from ddpo_fair.report import changes, curves, formatting, measurements, plots
from ddpo_fair.report.measurements import GENDER
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics import correction


def over_time(runs: Sequence[Record], name: str = GENDER) -> plots.Chart:
    """Shares of an attribute in every epoch's images and evaluations, and the target.

    Of two classes it is the first one's: the second has the rest.
    """
    runs = [run for run in runs if name in measurements.names(run)]
    classes = measurements.classes_of(runs[0], name)
    runs = [run for run in runs if measurements.classes_of(run, name) == classes]
    shown = classes[:1] if len(classes) == 2 else classes
    known = None
    if len(runs) == 1 and measurements.of_run(runs[0], True, name):
        known = measurements.calibration(runs[0], name)
    lines = [
        curves.Line(
            _look(look, k, len(shown) > 1, len(runs)),
            _label(runs, run, class_ if len(shown) > 1 else ""),
            *(_shares(run, fresh, name, k) for fresh in (False, True)),
            known and _corrected(run, name, k, known["confusion"]),
        )
        for run, look in zip(runs, plots.looks(runs), strict=True)
        for k, class_ in enumerate(shown)
    ]
    targets = [measurements.target(run, name, run.prompts) for run in runs]
    wanted = {(t[k], k) for t in targets if t is not None for k in range(len(shown))}
    equal = 1 in (len({share for share, _ in wanted}), len(shown))

    def draw(plot: axes.Axes) -> None:
        for target, k in sorted(wanted):
            colour, _, marker = plots.look(k)
            own = {"color": colour, "marker": marker, "mfc": plots.COLOURS["paper"]}
            own |= {"markevery": [0], "clip_on": False}
            plot.axhline(target, **plots.DASHED | ({} if equal else own))
        curves.draw(plot, lines, len(runs))
        plot.set_ylim(-0.02, 1.02)
        plot.yaxis.set_major_formatter(plots.PERCENT)
        plots.finish(plot, legend=True)

    title, file = f"Shares by {formatting.title(name)}", f"shares_of_{name}"
    if all(map(measurements.of_gender_alone, runs)):
        title, file = f"Share classified as {classes[0]}", f"share_of_{classes[0]}"
    what, of_bars = "of each class among recognised images", " that hold together"
    if len(shown) == 1:
        what = f"classified as {classes[0]} among recognised faces"
        of_bars = " (Wilson)"
    how = "Line: the images of each epoch's training. Points with bars: fresh images,"
    how += " never trained on"
    if len(runs) > 1:
        how = "On fresh images (on each epoch's own where a run has no evaluation)"
    caption = f"Share {what}. {how}, with 95 % intervals{of_bars}."
    if wanted:
        caption += " Dashed: the target."
        caption += "" if equal else " Hollow: the target of which class."
    if known:
        caption += " Crosses: the same, corrected for the classifier's errors on"
        caption += f" {known['source']}."
    return plots.Chart(re.sub(r"\W+", "_", file)[:60], title, caption, draw, wide=True)


def distances(runs: Sequence[Record]) -> plots.Chart | None:
    """The mean bias over prompts in time, or distance; None without several prompts."""
    several = [run for run in runs if measurements.prompts(run)]
    if not several:
        return None
    alone = all(map(measurements.of_gender_alone, runs))
    lines, fair = [], []
    for run, look in zip(several, plots.looks(several), strict=True):
        for k, name in enumerate(measurements.names(run)):
            if measurements.target(run, name, run.prompts) is None:
                continue
            title, own = formatting.title(name), _look(look, k, True, len(several))
            if alone:
                title, own = "", look
            pair = [changes.over_time(run, fresh, name) for fresh in (False, True)]
            each = (table[:, :2] for table in pair)
            lines.append(curves.Line(own, _label(several, run, title), *each))
            fair.append((title, pair[1]))

    def draw(plot: axes.Axes) -> None:
        curves.draw(plot, lines, len(several))
        for _, fresh in fair[:1]:
            plot.plot(*plots.thinned(fresh)[:, ::2].T, **plots.DASHED)
        plot.set(ylim=(0, 1.02), ylabel="points")
        plot.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
        plots.finish(plot, legend=True)

    how = "Points: fresh images; line: the images of training."
    how *= len(several) == 1
    if alone:
        names = "mean_bias", "Mean bias over prompts"
        what = (
            "|share classified as female - as male| of each prompt, averaged: 0 is"
            f" balance, 100 is one class only. {how} Dashed: what a perfectly fair"
            " model would show on so few fresh images."
        )
    else:
        names = "mean_distance", "Mean distance from the target over prompts"
        first = fair[0][0] if fair else ""
        what = (
            "Share of images that would have to be of another class, averaged over"
            f" prompts. {how} Dashed: what a model on target would show of {first} on"
            " so few images."
        )
    return plots.Chart(*names, what, draw, wide=True)


def _shares(run: Record, fresh: bool, name: str, k: int) -> np.ndarray:
    """Epochs done, share of class k, low and high, float [E, 4]."""
    found = measurements.of_run(run, fresh, name)
    rows = [(one.epochs_done, *one.shares[k]) for one in found]
    return np.array(rows, np.float64).reshape(-1, 4)


def _corrected(run: Record, name: str, k: int, confusion: list) -> np.ndarray:
    """As `_shares` of evaluations, corrected for the classifier's errors."""
    found = plots.thinned(np.array(measurements.of_run(run, True, name)), curves.FEW)
    matrix, even = np.array(confusion), [1 / len(confusion)] * len(confusion)
    each = [correction.of_shares(one.counts, matrix, even)[0][k] for one in found]
    return np.array([(x.epochs_done, *y) for x, y in zip(found, each, strict=True)])


def _look(of_run: plots.Look, k: int, several: bool, num_runs: int) -> plots.Look:
    """The look of the k-th of several lines of a run: runs differ in dash."""
    if not several:
        return of_run
    colour, dash, marker = plots.look(k)
    return colour, of_run[1] if num_runs > 1 else dash, marker


def _label(runs: Sequence[Record], run: Record, line: str) -> str:
    """What tells a line from the others: its run, its class or attribute."""
    names = [run.name] if len(runs) > 1 or not line else []
    return ", ".join(map(plots.label, filter(None, [*names, line])))
