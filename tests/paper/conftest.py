"""Runs with the paper's numbers, once on disk and once in memory."""

import copy
from pathlib import Path

import pytest
from paper_runs import make_params, write_paper_runs

from relu_sparsity.paper.evidence import MeasuredResults
from relu_sparsity.paper.history import RunHistory, load_runs
from relu_sparsity.params import Params


@pytest.fixture(scope="session")
def params() -> Params:
    """A scale of one seed per run."""
    return make_params()


@pytest.fixture(scope="session")
def results_dir(tmp_path_factory, params) -> Path:
    """Runs whose numbers are the paper's. Do not write into it."""
    folder = tmp_path_factory.mktemp("paper")
    write_paper_runs(folder, params)
    return folder


@pytest.fixture(scope="session")
def loaded_runs(results_dir, params) -> dict[str, dict[int, RunHistory]]:
    """The runs of `results_dir`. Do not change them."""
    return load_runs(results_dir, {name: run.seeds for name, run in params.paper_runs.items()})


@pytest.fixture
def results(loaded_runs, params, results_dir) -> MeasuredResults:
    """The paper's numbers as measured runs; a test may change the arrays."""
    return MeasuredResults(copy.deepcopy(loaded_runs), params, results_dir)
