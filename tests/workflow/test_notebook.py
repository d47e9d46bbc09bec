"""The notebook that reads, plots and calls what was trained."""

import nbformat
import pytest
from nbclient import NotebookClient
from repository import ROOT

NOTEBOOK = "examples/explore.ipynb"


def shown(notebook):
    """What each cell has put out, by kind."""
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    assert all(output.output_type != "error" for output in outputs)
    return [sorted(output.data) for output in outputs if "data" in output]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(ROOT / NOTEBOOK, as_version=4)


def test_runs_from_top_to_bottom_and_shows_what_was_committed(finished, committed):
    notebook = nbformat.read(finished.folder / NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(finished.folder / "examples")}}
    )
    client.execute(env=finished.environment)
    assert shown(notebook) == shown(committed)
    assert sum("image/png" in kinds for kinds in shown(notebook)) == 3


def test_is_committed_as_one_run_from_the_top(committed):
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
