"""The house: floors, and what modules keep to themselves. pyproject.toml lists the floors."""

import ast
import re
import subprocess
import sys

import pytest
from repository import ROOT

MODULES = sorted((ROOT / "src").rglob("*.py"))


def test_imports_go_down_only():
    command = [
        sys.executable,
        "-c",
        "import sys; from importlinter.cli import lint_imports_command",
    ]
    command[-1] += "; sys.argv = ['lint-imports', '--no-cache']; lint_imports_command()"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_uses_what_another_keeps_to_itself(path):
    tree = ast.parse(path.read_text())
    private = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("relu_sparsity")
        for alias in node.names
        if alias.name.startswith("_")
    ]
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("relu_sparsity")
        for alias in node.names
    }
    private += [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr)
        and isinstance(node.value, ast.Name) and node.value.id in imported
    ]  # fmt: skip
    assert private == []


def test_no_module_is_longer_than_a_person_reads_at_once():
    package = ROOT / "src" / "relu_sparsity"
    long = {
        str(path.relative_to(package))
        for path in MODULES
        if len(path.read_text().splitlines()) > 400
    }
    assert long == set()
