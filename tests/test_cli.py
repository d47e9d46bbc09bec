"""What the command line prints without running anything."""

from importlib import metadata

from typer.testing import CliRunner

from relu_sparsity.cli import app
from relu_sparsity.files import to_json
from relu_sparsity.reference import reference, schema


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
