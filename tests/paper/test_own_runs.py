"""A run that is not the paper's has a row and a figure; the paper's results stay as they are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from paper_runs import PAPER_SCALE, layout_of, write_paper_runs
from repository import PARAMS

from relu_sparsity.jobs import job_table
from relu_sparsity.layout import Layout
from relu_sparsity.paper.catalog import FIGURES, figures, own_runs
from relu_sparsity.paper.figures import draw, write_figure
from relu_sparsity.paper.history import load_runs
from relu_sparsity.paper.own_runs import difference, write_own_runs
from relu_sparsity.params_file import parse_params

OWN = ["no_decay", "slow_masked"]


@pytest.fixture(scope="module")
def own_params():
    document = yaml.safe_load((PARAMS).read_text())
    document["runs"]["no_decay"] = {"optimizer": {"weight_decay": 0.0}, "seeds": [0, 1]}
    document["branches"]["slow_masked"] = {
        "parent": "round1",
        "intervention": "mask_unused",
        "seeds": [1],
    }
    document |= {"scale": "test", "scales": {"test": PAPER_SCALE}}
    return parse_params(document, Path("params.yaml"))


@pytest.fixture(scope="module")
def layout(own_params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_paper_runs(folder, own_params)
    return layout_of(folder)


@pytest.fixture(scope="module")
def written(own_params, layout):
    write_own_runs(own_params, layout)
    return {path.suffix: path.read_text() for path in layout.table("own_runs")}


def test_a_row_for_each_below_the_baseline(own_params, layout, written):
    frame = pd.read_csv(layout.table("own_runs")[0]).set_index("run")
    assert list(frame.index) == ["baseline", *OWN]
    assert list(frame.differs_in[OWN]) == ["weight_decay 0.0", "mask_unused of round1"]
    assert list(frame.seeds) == [1, 2, 1]
    seeds = load_runs(layout.results, {"no_decay": (0, 1)})["no_decay"].values()
    row = frame.loc["no_decay"]
    assert row.loss == pytest.approx(np.mean([each.eval_loss[-1].mean() for each in seeds]))
    for metric in ("token_use", "sequence_use", "batch_use"):
        expected = 100 * np.mean([each.at_convergence(metric, 1000) for each in seeds], axis=0)
        np.testing.assert_allclose(
            [row[f"{metric}_layer{layer}"] for layer in range(6)], expected, rtol=1e-5
        )
    assert "| no_decay    | weight_decay 0.0" in written[".md"]
    assert r"slow\_masked & mask\_unused of round1" in written[".tex"]


def test_a_branch_whose_widths_its_parent_decides_differs_in_that_alone(own_params):
    run = own_params.runs["round2"]
    assert run.config.model.mlp_dim is None
    assert difference(own_params, run) == "used_widths of round1"


def test_the_figure_shows_use_by_layer_and_the_loss_beside_the_baselines(own_params, layout):
    row = figures(own_params.paper_runs)["run_no_decay"]
    runs = load_runs(layout.results, {run: own_params.runs[run].seeds for run in row.runs})
    use, loss = draw(row, runs, own_params).axes
    assert len(use.lines) > 6
    mean = np.mean([each.eval_loss.mean(axis=1) for each in runs["no_decay"].values()], axis=0)
    base, own, bigrams, unigrams = loss.lines
    assert [line.get_ydata()[0] for line in (bigrams, unigrams)] == [10.0, 12.0]
    assert (base.get_label(), own.get_label()) == ("baseline", "no_decay")
    np.testing.assert_allclose(own.get_ydata(), mean)
    assert "the run no_decay" in row.caption


def test_the_same_bytes_each_time(own_params, layout, written):
    path = layout.figure("run_slow_masked")
    first, second = (
        (write_figure(own_params, layout, "run_slow_masked"), path.read_bytes())[1]
        for _ in range(2)
    )
    assert first == second
    write_own_runs(own_params, layout)
    assert {each.suffix: each.read_text() for each in layout.table("own_runs")} == written


def test_the_jobs_of_the_paper_do_not_know_of_it(own_params, params):
    own, paper = (job_table(each, Layout("test")) for each in (own_params, params))
    assert set(paper) <= set(own)
    assert {"own", "figure/run_no_decay", "figure/run_slow_masked"} <= set(own)
    assert {"own", "figure/run_no_decay"} <= set(own["report"].after)
    for name in (*(f"figure/{figure}" for figure in FIGURES), "table/table1"):
        assert own[name].fingerprint == paper[name].fingerprint
    assert own_runs(params.paper_runs) == []
    assert "own" not in paper
