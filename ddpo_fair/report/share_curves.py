"""The share classified as female over a run, and the classifier's confidence."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import axes, figure

from ddpo_fair.report import changes, plots, run_reader
from ddpo_fair.report.run_reader import Record, Share


def over_time(runs: Sequence[Record]) -> plots.Chart:
    """q of every epoch's images and of the evaluations, against the target."""
    caption = (
        "Share classified as female among recognised faces. Line: the images of each"
        " epoch's training, with a 95 % Wilson band. Points with bars: fresh images,"
        " never trained on, with their 95 % intervals. Dashed: the target."
    )
    if len(runs) > 1:
        caption = (
            "Share classified as female among recognised faces, on fresh images (on"
            " each epoch's own where a run has no evaluation), with 95 % Wilson"
            " intervals. Dashed: the target."
        )
    looks = plots.looks(runs)

    def draw(size: tuple[float, float]) -> figure.Figure:
        sheet, plot = plots.canvas(size)
        for target in sorted({run.target for run in runs}):
            plot.axhline(target, **plots.DASHED)
        for index, run in enumerate(runs):
            _draw_shares(plot, run, index, looks[index], alone=len(runs) == 1)
        plot.set_ylim(-0.02, 1.02)
        plot.yaxis.set_major_formatter(plots.PERCENT)
        plots.finish(plot, legend=True)
        return sheet

    return plots.Chart(
        "share_of_female", "Share classified as female", caption, draw, wide=True
    )


def mean_bias(runs: Sequence[Record]) -> plots.Chart | None:
    """The mean bias over prompts in time; None unless a run has several prompts."""
    several = [run for run in runs if any(map(run_reader.by_prompt, run.lines))]
    if not several:
        return None
    looks = plots.looks(several)

    def draw(size: tuple[float, float]) -> figure.Figure:
        sheet, plot = plots.canvas(size)
        for index, run in enumerate(several):
            colour, dash, marker = looks[index]
            for fresh, opacity in ((False, 0.45), (True, 1.0)):
                table = plots.thinned(changes.biases_over_time(run, fresh))
                if not len(table):
                    continue
                plot.plot(
                    *table[:, :2].T,
                    color=colour,
                    linestyle=dash,
                    marker=marker if fresh else None,
                    alpha=opacity,
                    label=_bias_label(run, fresh, len(several) == 1),
                )
                if fresh and index == 0 and np.isfinite(table[:, 2]).all():
                    plot.plot(*table[:, ::2].T, **plots.DASHED)
        plot.set(ylim=(0, 1.02), ylabel="points")
        plot.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
        plots.finish(plot, legend=True)
        return sheet

    return plots.Chart(
        "mean_bias",
        "Mean bias over prompts",
        "|share classified as female - as male| of each prompt, averaged: 0 is"
        " balance, 100 is one class only. Points: fresh images; faint line: the images"
        " of training. Dashed: what a perfectly fair model would show on so few fresh"
        " images.",
        draw,
        wide=True,
    )


def _bias_label(run: Record, fresh: bool, alone: bool) -> str | None:
    if alone:
        return "fresh images" if fresh else "trained on"
    return plots.label(run.name) if fresh else None


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


def _draw_shares(
    plot: axes.Axes, run: Record, index: int, look: plots.Look, alone: bool
) -> None:
    colour, dash, marker = look
    trained, fresh = (run_reader.shares(run, fresh) for fresh in (False, True))
    if trained and (alone or not fresh):
        x, q, low, high = _arrays(trained)
        label = "trained on" if alone else plots.label(run.name)
        plot.plot(x, q, color=colour, linestyle=dash, label=label)
        if index < plots.NUM_BANDS:
            plot.fill_between(x, low, high, color=colour, alpha=plots.BAND, linewidth=0)
    if fresh:
        x, q, low, high = _arrays(fresh)
        errors = np.maximum([q - low, high - q], 0.0)
        if alone:
            colour, dash, marker = plots.look(1)[0], "none", plots.look(1)[2]
        plot.errorbar(
            x if alone else x + 0.08 * index,
            q,
            errors,
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label="fresh images" if alone else plots.label(run.name),
        )


def _arrays(shares: list[Share]) -> tuple[np.ndarray, ...]:
    """Epochs done, q, low and high, [E] each."""
    table = np.array([(share.epochs_done, *share.q) for share in shares], np.float64)
    return tuple(plots.thinned(table).T)
