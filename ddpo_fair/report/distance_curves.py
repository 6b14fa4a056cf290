"""How far the prompts of a run are from their targets, over its epochs."""

from collections.abc import Sequence

import numpy as np
from matplotlib import figure

from ddpo_fair.report import (
    changes,
    formatting,
    measurements,
    plots,
    run_reader,
)
from ddpo_fair.report.run_reader import Record


def over_time(runs: Sequence[Record]) -> plots.Chart | None:
    """The mean bias over prompts in time, or distance; None without several prompts."""
    several = [run for run in runs if any(map(run_reader.by_prompt, run.lines))]
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
                plot.plot(
                    *table[:, :2].T,
                    color=colour,
                    linestyle=dash,
                    marker=marker if fresh else None,
                    alpha=opacity,
                    label=_label(run, name, fresh, len(several), len(found)),
                )
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
