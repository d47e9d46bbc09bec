import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from paper_runs import layout_of, make_params, write_paper_runs

from relu_sparsity.paper.catalog import FIGURES
from relu_sparsity.paper.claims import CLAIMS
from relu_sparsity.paper.figures import draw, draw_evidence, layer_color, write_figure
from relu_sparsity.paper.history import load_runs
from relu_sparsity.paper.published import published_layers
from relu_sparsity.paper.verdicts import decide_claims


def write_figures(folder, params, figures):
    layout = layout_of(folder)
    for figure in figures:
        write_figure(params, layout, figure)
    return [layout.figure(figure) for figure in figures]


@pytest.fixture(scope="module")
def figure_paths(results_dir, params):
    return write_figures(results_dir, params, FIGURES)


def test_every_figure_is_an_svg(figure_paths, results_dir):
    folder = results_dir / "figures"
    assert figure_paths == [folder / f"fig{number:02d}.svg" for number in range(1, 35)]
    for path in figure_paths:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 20


def test_same_runs_same_bytes(figure_paths, results_dir, params):
    before = [path.read_bytes() for path in figure_paths[:4]]
    write_figures(results_dir, params, ["fig01", "fig02", "fig03", "fig04"])
    assert [path.read_bytes() for path in figure_paths[:4]] == before


def test_twin_figures_show_the_same(loaded_runs, params):
    for first, second in (("fig06", "fig07"), ("fig08", "fig09")):
        assert FIGURES[first].panels == FIGURES[second].panels


def test_lines_are_the_runs_numbers(loaded_runs, params):
    (axes,) = draw(FIGURES["fig08"], loaded_runs, params).axes
    history = loaded_runs["baseline"][0]
    pairs = 2 * np.arange(250)
    for layer, line in enumerate(axes.lines[:6]):
        values = 100 * history.unit_use["batch_use"][:, layer]
        np.testing.assert_allclose(line.get_ydata()[:250], (values[pairs] + values[pairs + 1]) / 2)
        np.testing.assert_allclose(line.get_xdata()[:250], history.steps[pairs] + 10)
        assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (9999, values[-1])


def test_early_plots_end_early(loaded_runs, params):
    early, whole = draw(FIGURES["fig10"], loaded_runs, params).axes
    assert early.lines[0].get_xdata()[-1] == 700
    assert whole.lines[0].get_xdata()[-1] == 9999
    np.testing.assert_array_equal(early.lines[0].get_xdata(), np.arange(0, 701, 20))


def test_a_layer_has_one_colour_at_any_depth(loaded_runs, params):
    shallow, deep = (
        draw(FIGURES[each], loaded_runs, params).axes[0] for each in ("fig16", "fig22")
    )
    for layer in range(6):
        assert shallow.lines[layer].get_color() == deep.lines[layer].get_color()
    colors = [layer_color(layer) for layer in range(14)]
    lightness = [np.dot(color[:3], (0.2126, 0.7152, 0.0722)) for color in colors]
    assert (np.diff(lightness) > 0).all()
    assert len({mpl.colors.to_hex(color) for color in colors}) == 14


def test_warm_up_and_mask_are_marked(loaded_runs, params):
    (axes,) = draw(FIGURES["fig01"], loaded_runs, params).axes
    marks = {line.get_label(): line.get_xdata()[0] for line in axes.lines[6:]}
    assert marks == {"end of warm-up": 50, "mask step": 500}
    (axes,) = draw(FIGURES["fig31"], loaded_runs, params).axes
    assert [line.get_label() for line in axes.lines[6:]] == ["end of warm-up"]


def test_models_over_layers(loaded_runs, params):
    (axes,) = draw(FIGURES["fig04"], loaded_runs, params).axes
    assert [len(line.get_xdata()) for line in axes.lines] == [6, 10, 14]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["6 layers", "10 layers", "14 layers"]
    np.testing.assert_allclose(axes.lines[2].get_ydata()[6], 14.0)


def test_several_seeds_have_a_band(tmp_path):
    params = make_params(runs={"baseline": {"seeds": [0, 1]}})
    write_paper_runs(tmp_path, params)
    runs = load_runs(tmp_path, {"baseline": [0, 1]})
    runs["baseline"][1].unit_use["batch_use"][:, 0] += 0.1
    (axes,) = draw(FIGURES["fig08"], runs, params).axes
    assert len(axes.collections) == 6 + 1, "six bands and the paper's marks"
    values = [100 * each.unit_use["batch_use"][:, 0] for each in runs["baseline"].values()]
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(np.mean(values, axis=0)[-1])
    low, high = np.mean(values, axis=0)[-1] + np.array([-1, 1]) * np.std([0, 10], ddof=1)
    extent = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert extent.min() == pytest.approx(low)
    assert extent.max() >= high


@pytest.mark.parametrize("figure", [name for name, row in FIGURES.items() if row.panels[0].table])
def test_the_papers_values_are_hollow_marks(figure, loaded_runs, params, figure_paths):
    row = FIGURES[figure]
    for panel, axes in zip(row.panels, draw(row, loaded_runs, params).axes, strict=True):
        marks, *ours = axes.collections
        assert marks.get_facecolor().size == 0
        # The lines of the first steps do not end where the paper's values are taken.
        assert len(ours) == (panel.span == "early")
        for each in ours:
            (history,) = loaded_runs[panel.runs[0]].values()
            converged = 100 * history.at_convergence(panel.metric, 1000)
            np.testing.assert_allclose(each.get_offsets()[:, 1], converged)
        paper = published_layers(panel.table, panel.runs[0], panel.metric)
        np.testing.assert_array_equal(marks.get_offsets()[:, 1], paper)
        low, high = axes.get_ylim()
        assert low <= min(paper) <= max(paper) <= high
    svg = figure_paths[list(FIGURES).index(figure)].read_text()
    assert f"<!-- paper at convergence (Table {row.panels[0].table}) -->" in svg
    marks = svg[svg.index('id="PathCollection_1"') :]
    assert len(re.findall("<use [^>]*fill: none", marks[: marks.index("</g>\n   </g>")])) == 6


def test_another_depth_has_no_marks_of_the_paper(tmp_path):
    params = make_params(model={"num_layers": 4})
    write_paper_runs(tmp_path, params)
    runs = load_runs(tmp_path, {"baseline": [0]})
    (axes,) = draw(FIGURES["fig08"], runs, params).axes
    assert not axes.collections


def test_a_claims_measurements_are_drawn_beside_the_papers(results):
    drawn = {}
    for claim, decision in zip(CLAIMS, decide_claims(results), strict=True):
        canvas = draw_evidence(decision.evidence, decision.paper)
        drawn[claim.number] = canvas and canvas.axes[0].lines[:-1]  # but for zero
    ours, paper = drawn[1]
    np.testing.assert_array_equal(ours.get_ydata(), published_layers(1, "baseline", "batch_use"))
    np.testing.assert_array_equal(paper.get_ydata(), ours.get_ydata())
    assert (ours.get_markerfacecolor(), paper.get_markerfacecolor()) == ("#000000", "none")
    assert len(drawn[19]) == 2 * 4, "four learning rates, ours and the paper's"
    labels = [line.get_label() for line in drawn[10]]
    assert labels == ["lowest", "end"], "steps are no percentages"
    assert [line.get_label() for line in drawn[9]] == ["drop step"]
    assert len(drawn[22]) == 2, "the paper has no numbers of its widths"
    without = {number for number, lines in drawn.items() if not lines}
    assert without == {11, 14, 15, 16, 18, 21, 26}


def test_a_missing_run_is_said(tmp_path, params):
    (path,) = write_figures(tmp_path, params, ["fig31"])
    ElementTree.parse(path)
    (axes,) = draw(FIGURES["fig04"], {}, params).axes
    assert "no results of width_x1of2, depth_10, depth_14" in axes.texts[0].get_text()
