"""The paper's figure 3, and how figures enter a page."""

import re
from pathlib import Path

import made_runs
import numpy as np
import pytest
from matplotlib import figure

from ddpo_fair.evaluation import classifier_evaluation
from ddpo_fair.report import plots, run_reader
from ddpo_fair.statistics import accuracy


def test_figures_say_their_numbers_in_the_colours_of_the_page():
    matrix = np.array([[60, 3, 5], [2, 70, 8], [9, 1, 34]])
    truth, said = (
        np.repeat(one, matrix.ravel()) for one in np.indices((3, 3)).reshape(2, 9)
    )
    answers = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    found = accuracy.measure(np.where(truth == 2, -1, truth), answers[said], 0.7)
    np.testing.assert_array_equal(found["confusion"], matrix)
    with plots.style():
        document = plots.svg(classifier_evaluation.accuracy_sheet(found), "sheet")
    for number in matrix.ravel():
        assert f">{number}<" in document
    assert ">Accuracy with none 0.854 [" in document  # (60 + 70 + 34) / 192
    element = plots.inline(document, 'a "title" & <more>', "any")
    assert element.startswith('<svg role="img" class="any" aria-label="a &#34;title')
    assert "var(--first)" in element
    left = set(re.findall(r"#[0-9a-f]{6}", element)) & set(plots.COLOURS.values())
    assert not left
    assert "font-family" not in element
    assert "http" not in element


def test_a_single_epoch_has_its_number_alone():
    plot = figure.Figure().subplots()
    plot.plot([3], [0.5], "o")
    plots.finish(plot, False)
    low, high = plot.get_xlim()
    assert [x for x in plot.get_xticks() if low <= x <= high] == [3]


@pytest.mark.parametrize("name", ["$x^{2", "_hidden", "\ud800\x00", "n" * 99, "名前"])
def test_any_name_can_be_a_label(name):
    label = plots.label(name)
    assert label.isascii() and label.isprintable() and len(label) < 60
    with plots.style():
        sheet, plot = plots.canvas(plots.NARROW)
        plot.plot([0, 1], label=label)
        plots.finish(plot, legend=True)
        assert "<svg" in plots.svg(sheet, "label")


def test_long_names_of_seeds_have_labels_of_their_own():
    names = [f"elec_eng_shift_unrestrained_{seed}" for seed in range(3)]
    labels = [plots.label(name) for name in names]
    assert labels == [f"elec_eng_shift_un~ined_{seed}" for seed in range(3)]


def test_seeds_of_an_experiment_differ_in_dash_alone():
    def run(name, **changes):
        settings = made_runs.settings(**changes)
        return run_reader.Record(Path(name), settings, {}, (), {}, {}, (), "", ())

    experiments = [
        [run(f"{place}_{seed}", epochs=place, seed=seed) for seed in range(3)]
        for place in range(1, 9)
    ]
    found = plots.looks([one for seeds in experiments for one in seeds])
    assert len({str(look) for look in found}) == 24
    for place in range(0, 24, 3):
        assert len({(colour, marker) for colour, _, marker in found[place:][:3]}) == 1
    assert len({(colour, marker) for colour, _, marker in found}) == 8
    alone = plots.looks(experiments[0])
    assert len({colour for colour, _, _ in alone}) == 3


@pytest.mark.parametrize("size", [plots.NARROW, plots.WIDE])
@pytest.mark.parametrize("num_runs", [2, 14])
@pytest.mark.parametrize("name", ["many_prompts_explicit", "W" * 22])
def test_a_legend_of_many_runs_covers_no_line(size, num_runs, name):
    with plots.style():
        sheet, plot = plots.canvas(size)
        for index in range(num_runs):
            plot.plot([0, 1], label=f"{name}_{index}, after")
        before = plot.get_window_extent()
        plots.finish(plot, legend=True)
        sheet.draw_without_rendering()
        axes, legend = plot.get_window_extent(), plot.get_legend().get_window_extent()
    assert (axes.width, axes.height) == pytest.approx((before.width, before.height))
    assert legend.y0 >= axes.y1
    assert legend.x1 <= sheet.bbox.x1 and legend.y1 <= sheet.bbox.y1
