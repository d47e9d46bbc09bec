"""A real project in a temporary folder, whose runs take a second each."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from gcloud_stand_in import Cloud
from gcs_emulator import start_gcs_emulator
from projects import TINY, Project, copy_checkout
from slices import Controller, make_tpu_scale_tiny, tables, train_in_one_process


def pytest_collection_modifyitems(items):
    """Marks what needs a whole workflow, a cluster or a slice: minutes, for `make test-all`."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.whole)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """What a clone holds, with parameters that train in a second."""
    folder = tmp_path_factory.mktemp("project") / "fresh"
    project = copy_checkout(folder)
    project.edit(lambda document: document["scales"].update(smoke=TINY))
    return project


@pytest.fixture(scope="session")
def build_once(tmp_path_factory):
    """Builds a project for all test workers: read it, copy it, do not change it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def build_once(name, start, build):
        """Gives the folder `name`, a copy of the project `start` that `build` has changed."""
        with (folder / f"{name}.lock").open("w") as lock:
            # The first worker builds; the others wait for it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            built = folder / name / "built"
            project = Project(folder / name / "project")
            if not built.exists():
                shutil.rmtree(built.parent, ignore_errors=True)
                start.copy(project.folder)
                build(project)
                built.touch()
        return project

    return build_once


@pytest.fixture(scope="session")
def finished(fresh, build_once):
    """The same after `snakemake`."""
    return build_once("finished", fresh, lambda project: project.snakemake())


@pytest.fixture
def project(finished, tmp_path):
    """A finished project to change."""
    return finished.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def bucket(tmp_path_factory):
    with start_gcs_emulator(tmp_path_factory.mktemp("gcs")) as emulator:
        yield emulator


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud.install(tmp_path / "cloud")
    yield cloud
    cloud.destroy()


@pytest.fixture(scope="session")
def with_data(fresh, build_once):
    """A project whose tpu scale is tiny, with its text and tokenizer."""
    return build_once("tpu", fresh, make_tpu_scale_tiny)


@pytest.fixture(scope="session")
def plain(with_data, build_once):
    """The tables of the runs that one process with four devices trains."""
    project = build_once("tpu_in_one_process", with_data, train_in_one_process)
    mask = (project.folder / "results/tpu/runs/masked/seed0/mask.npz").read_bytes()
    return {"mask": mask} | {run: tables(project, run) for run in ("baseline", "masked")}


@pytest.fixture
def controller(with_data, bucket, cloud, tmp_path):
    return Controller(with_data.copy(tmp_path / "project"), bucket, cloud)
