"""A real project in a temporary folder, whose runs take a second each."""

import shutil
import subprocess
import sys

import pytest
from projects import ROOT, TINY, Project


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """What a clone holds, with parameters that train in a second."""
    folder = tmp_path_factory.mktemp("project") / "fresh"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    project = Project(folder)
    project.edit(lambda document: document["scales"].update(smoke=TINY))
    return project


@pytest.fixture(scope="session")
def finished(fresh, tmp_path_factory):
    """The same after `snakemake`: read it, copy it, do not change it."""
    project = fresh.copy(tmp_path_factory.mktemp("finished") / "project")
    project.snakemake()
    return project


@pytest.fixture
def project(finished, tmp_path):
    """A finished project to change."""
    return finished.copy(tmp_path / "project")
