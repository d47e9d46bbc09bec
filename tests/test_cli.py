"""What the command line prints without running anything."""

import os
import subprocess
import sys
from importlib import metadata

from typer.testing import CliRunner

from relu_sparsity.cli import app
from relu_sparsity.errors import UserError
from relu_sparsity.files import to_json
from relu_sparsity.options import DEFAULT_PARAMS, threads_to_use
from relu_sparsity.reference import reference, schema
from relu_sparsity.tpu.slices import Slice


def printed(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_versions_are_those_that_are_installed():
    lines = printed("--version").splitlines()
    for name in ("relu-sparsity", "jax", "flax", "optax", "numpy", "snakemake", "dvc"):
        assert f"{name} {metadata.version(name)}" in lines


def test_schema_and_reference_need_no_parameter_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert printed("params", "--schema") == to_json(schema())
    assert printed("params", "--reference") == "\n".join(reference())


def test_a_run_trained_by_hand_has_the_threads_of_the_workflow(monkeypatch):
    assert threads_to_use(None, DEFAULT_PARAMS, "gpu") == 8
    assert threads_to_use(3, DEFAULT_PARAMS, "gpu") == 3
    monkeypatch.setenv("RELU_SPARSITY_SLICE", "a-slice")
    assert threads_to_use(None, DEFAULT_PARAMS, "tpu") is None


def test_an_error_of_the_system_has_no_traceback(tmp_path):
    (tmp_path / "file").touch()
    ended = subprocess.run(
        [sys.executable, "-m", "relu_sparsity", "tokenizer"],
        env=os.environ | {"RELU_SPARSITY_STORE": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: NotADirectoryError: ")
    assert "Traceback" not in ended.stderr


def test_cleanup_goes_on_where_a_slice_cannot_be_deleted(monkeypatch):
    deleted = []

    class Cloud:
        def delete(self, name):
            if name == "a":
                raise UserError("a could not be deleted")
            deleted.append(name)

    slices = [Slice(name, "ACTIVE", "", "v2-8", False, {}, "") for name in "abc"]
    monkeypatch.setattr("relu_sparsity.tpu.setup.connect", lambda settings: Cloud())
    monkeypatch.setattr("relu_sparsity.tpu.setup.owned_slices", lambda cloud, all_stores: slices)
    result = CliRunner().invoke(app, ["tpu", "cleanup", "--yes"])
    assert deleted == ["b", "c"]
    assert "a is still there: a could not be deleted" in str(result.exception)
