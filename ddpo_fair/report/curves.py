"""How training went: a chart of every field of metrics.jsonl that says something."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import axes

from ddpo_fair.report import plots, run_reader
from ddpo_fair.report.run_reader import Record

FEW = 30  # epochs that still get a marker each
APART = 0.08  # epochs between the bars of lines side by side
TRUST_REGIONS = ("tr_ppo", "tr_ppo_rollback", "truly_ppo")


@dataclasses.dataclass(frozen=True)
class Line:
    """A figure over a run: of the images of training, and of evaluations' fresh ones.

    Rows are epochs done, the value, and the ends of its interval where there is one.
    """

    look: plots.Look
    label: str
    trained: np.ndarray  # float [E, 2 or 4]
    fresh: np.ndarray  # likewise
    corrected: np.ndarray | None = None  # of these, for the classifier's errors


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of metrics.jsonl that is worth a chart."""

    name: str
    title: str
    caption: str
    log: bool = False
    spread: str = ""  # a field that is drawn as a band around this one
    limit: str = ""  # a setting that is drawn as a line
    share: bool = False  # between 0 and 1, shown as a percentage
    positive: bool = True  # whether the axis begins at 0


FIELDS = (
    Field(
        "reward_mean",
        "Reward",
        "Mean over each epoch's images; the band is their standard deviation.",
        spread="reward_std",
        positive=False,
    ),
    Field("loss", "Loss", "Mean over the epoch's updates.", positive=False),
    Field(
        "kl",
        "Distance moved in an epoch",
        "KL to the policy that drew the images, nats per denoising step, mean over"
        " the epoch's updates.",
        limit="train.trust_region",
    ),
    Field(
        "base_kl",
        "Distance to the base policy",
        "KL to the model as it came, nats per denoising step that is trained, mean over"
        " the epoch's updates.",
    ),
    Field(
        "none",
        "Recognised as neither",
        "Share of the epoch's images that the classifier calls neither female nor"
        " male.",
        share=True,
    ),
    Field(
        "explicit_obeyed",
        "Prompt adherence",
        "Share of the epoch's images of prompts that say the gender which are"
        " classified as asked for.",
        share=True,
    ),
    Field(
        "ratio_deviation",
        "Sampler against learner",
        "Largest |ratio - 1| before an epoch's first update: 0 if both compute the"
        " same probabilities.",
        log=True,
        limit="train.ratio_tolerance",
    ),
    Field(
        "clip_fraction",
        "Clipped steps",
        "Share of steps outside PPO's interval.",
        share=True,
    ),
    Field(
        "trust_region_fraction",
        "Steps beyond the trust region",
        "Share of steps with a KL above the limit.",
        share=True,
    ),
    Field("advantage_max", "Largest advantage", "Its size, after clipping."),
    Field("grad_norm", "Gradient norm", "Before clipping, mean over the updates."),
    Field(
        "eval_polarisation",
        "Mean confidence margin",
        "Of the classifier: 1 is certainty of every face, 0 is even odds. A fall means"
        " ambiguous faces.",
    ),
)


def charts(runs: Sequence[Record]) -> list[plots.Chart]:
    """The curves that these runs have figures for, but for the share of female."""
    found = ((field, _lines(runs, field)) for field in FIELDS)
    return [_chart(runs, field, lines) for field, lines in found if lines]


def draw(plot: axes.Axes, lines: Sequence[Line], num_runs: int) -> None:
    """Draws the fresh images' figures; those of training where they are not alone."""
    alone = len(lines) == 1
    for index, one in enumerate(lines):
        colour, dash, marker = one.look
        style, fresh = {"color": colour, "linestyle": dash}, one.fresh.size > 0
        x, y, *ends = plots.thinned(one.trained).T
        if x.size and (num_runs == 1 or not fresh):
            label = "trained on" if alone else None if fresh else one.label
            how = {"label": label, "alpha": 0.5 if fresh and not alone else 1.0}
            how["marker"] = marker if x.size <= FEW and not fresh else None
            plot.plot(x, y, **style, **how)
            if ends and len(lines) <= plots.NUM_BANDS:
                plot.fill_between(x, *ends, color=colour, alpha=plots.BAND, lw=0)
            if alone and fresh:
                colour, _, marker = plots.look(1)
                style = {"color": colour, "linestyle": "none"}
        if fresh:
            x, y, *ends = plots.thinned(one.fresh).T
            errors = np.abs(np.subtract(ends, y)) if ends else None
            x = x + index * APART if ends else x
            style |= {"marker": marker, "markersize": 5, "elinewidth": 1.2}
            label = "fresh images" if alone else one.label
            plot.errorbar(x, y, errors, capsize=2.5, label=label, **style)
        if one.corrected is not None:
            x, y, *ends = one.corrected.T
            style = {"color": plots.look(2)[0] if alone else one.look[0]}
            style |= {"label": "corrected" if alone else None, "linestyle": "none"}
            style |= {"marker": "x", "markersize": 6, "elinewidth": 1.2}
            x += index * APART + max(APART, x[-1] / 80)
            plot.errorbar(x, y, np.abs(np.subtract(ends, y)), **style)


def _lines(runs: Sequence[Record], field: Field) -> list[Line]:
    found = []
    for run, look in zip(runs, plots.looks(runs), strict=True):
        epochs, values = _values(run, field.name)
        if field.log:
            values = np.where(values > 0, values, np.nan)
        if not np.isfinite(values).any():
            continue
        rows = np.stack([epochs, values], axis=1)
        if field.spread:
            _, spread = run_reader.series(run, field.spread)
            rows = np.stack([epochs, values, values - spread, values + spread], axis=1)
        pair = rows, rows[:0]
        if field.name.startswith("eval"):  # not every epoch: points are joined
            pair = rows[:0], rows[np.isfinite(values)]
        found.append(Line(look, plots.label(run.name), *pair))
    return found


def _chart(runs: Sequence[Record], field: Field, lines: list[Line]) -> plots.Chart:
    def drawn(plot: axes.Axes) -> None:
        draw(plot, lines, len(runs))
        for limit in {_limit(run, field) for run in runs} - {None}:
            plot.axhline(limit, **plots.DASHED)
        if field.log:
            plot.set_yscale("log")
        elif field.share:
            plot.set_ylim(0, max(plot.get_ylim()[1], 0.1))
            plot.yaxis.set_major_formatter(plots.PERCENT)
        elif field.positive:
            plot.set_ylim(bottom=0)
        plots.finish(plot, legend=len(runs) > 1)

    return plots.Chart(field.name, field.title, field.caption, drawn)


def histogram(runs: Sequence[Record]) -> plots.Chart | None:
    """P(female) of the classifier, first and last; None if unknown."""
    found = {run: shares for run in runs if (shares := _histograms(run))}
    if not found:
        return None

    def drawn(plot: axes.Axes) -> None:
        # Runs of one experiment begin with the same model.
        first = next(iter(found.values()))[0]
        edges, faint = np.linspace(0, 1, len(first) + 1), plots.COLOURS["faint"]
        dotted = {"linestyle": (0, (1, 1.5)), "label": "before"}
        plot.stairs(first, edges, linewidth=2, color=faint, **dotted)
        plot.stairs(first, edges, fill=True, alpha=0.12, color=faint)
        for (run, shares), look in zip(
            found.items(), plots.looks(list(found)), strict=True
        ):
            if len(shares) > 1:
                edges = np.linspace(0, 1, len(shares[-1]) + 1)
                name = "" if len(found) == 1 else f"{plots.label(run.name)}, "
                line = {"color": look[0], "linestyle": look[1], "label": f"{name}after"}
                plot.stairs(shares[-1], edges, linewidth=2, **line)
        plot.set_xlim(0, 1)
        plot.set_ylim(bottom=0)
        plot.yaxis.set_major_formatter(plots.PERCENT)
        plot.set_xlabel("P(female) of the classifier")
        plots.legend_above(plot)

    return plots.Chart(
        "p_female",
        "Confidence of the classifier",
        "Images by the classifier's probability of female. Balance of clear faces has"
        " a peak at each end; ambiguous faces gather in the middle.",
        drawn,
    )


def _histograms(run: Record) -> list[np.ndarray]:
    """Shares of images in bins, of each evaluation."""
    found = []
    for line in run.lines:
        counts = line.get("eval_p_female_histogram")
        if isinstance(counts, list) and len(counts) > 1:
            values = [run_reader.number({"n": n}, "n") for n in counts]
            if all(v >= 0 for v in values) and 0 < sum(values) < math.inf:
                found.append(np.array(values) / sum(values))
    return found


def _limit(run: Record, field: Field) -> float | None:
    if field.name == "kl" and (
        run.settings.get("train.objective") not in TRUST_REGIONS
    ):
        return None
    limit = run_reader.number(run.settings, field.limit)
    return limit if math.isfinite(limit) and limit > 0 else None


def _values(run: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values [E] of a field; what is derived of several, too."""
    if name != "none":
        epochs, values = run_reader.series(run, name)
        # An evaluation follows its epoch, but for the first; see run_reader.share.
        return epochs + (name.startswith("eval") & (epochs > 0)), values
    epochs, none = run_reader.series(run, "num_none")
    faces = sum(run_reader.series(run, f"num_{kind}")[1] for kind in ("female", "male"))
    return epochs, np.divide(
        none, none + faces, out=np.full_like(none, np.nan), where=none + faces > 0
    )
