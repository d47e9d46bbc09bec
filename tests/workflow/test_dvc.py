"""DVC and Snakemake agree on what is stale, and results travel."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
import yaml

from relu_sparsity.layout import Layout
from relu_sparsity.params import load_params
from relu_sparsity.workflow import all_jobs

# Long enough to be caught in the middle.
LONGER = {"training": {"num_steps": "x20"}}


def git(project, *arguments):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(
        command, cwd=project.folder, check=True, capture_output=True, text=True
    ).stdout


def trained_runs(project):
    """Every run and fingerprint that was trained here: others come without their speed."""
    store = project.folder / "store" / "runs" / "smoke"
    return {
        str(path.parent.relative_to(store))
        for path in store.glob("*/*/*/finished")
        if (path.parent / "throughput.csv").is_file()
    }


@pytest.fixture(scope="module")
def versioned(finished, build_once):
    """A finished project in a Git repository, recorded, committed and pushed to a local remote."""
    return build_once("versioned", finished, record_and_push)


def record_and_push(project):
    git(project, "init", "--quiet")
    project.snakemake()
    project.run("dvc", "commit", "--force")
    project.run("dvc", "remote", "add", "--default", "local", str(project.folder.parent / "remote"))
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "first")
    project.run("dvc", "push")


def test_after_snakemake_dvc_has_nothing_to_do_and_the_other_way_round(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")
    assert "up to date" in project.run("dvc", "status")
    assert "up to date" in project.run("dvc", "repro")
    assert project.planned() == {}


def test_an_edit_retrains_that_run_and_a_checkout_brings_the_old_results_back(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")
    results, runs = project.result_bytes(), trained_runs(project)
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    project.run("dvc", "repro")
    (new,) = trained_runs(project) - runs
    assert new.startswith("lr_x1of3/seed0/")
    after = project.result_bytes()
    changed = {name for name in results if results[name] != after[name]}
    allowed = r"runs/lr_x1of3/|tables/table5|figures/fig(29|30|31)|claims|report|metrics"
    assert [name for name in changed if not re.match(allowed, name)] == []
    assert {"tables/table5.csv", "figures/fig29.svg", "metrics.yaml"} <= changed
    assert project.planned() == {}
    assert "lr_x1of3" in project.run("dvc", "metrics", "diff", "--md")

    git(project, "commit", "--quiet", "--all", "-m", "second")
    git(project, "checkout", "--quiet", "HEAD~1")
    project.run("dvc", "checkout")
    assert project.result_bytes() == results
    assert project.planned() == {}
    assert "up to date" in project.run("dvc", "repro")


@pytest.fixture(scope="module")
def uninterrupted(versioned, build_once):
    """The results of a longer run, made by `dvc repro` in one go."""
    return build_once("uninterrupted", versioned, reproduce_longer).result_bytes()


def reproduce_longer(project):
    project.edit(lambda document: document["runs"]["lr_x1of3"].update(LONGER))
    project.run("dvc", "repro")


@pytest.mark.parametrize("whole_group", [True, False])
def test_killed_in_the_middle_of_a_run_repro_goes_on_with_it(
    versioned, uninterrupted, tmp_path, whole_group
):
    killed = versioned.copy(tmp_path / "killed")
    killed.edit(lambda document: document["runs"]["lr_x1of3"].update(LONGER))
    before = trained_runs(killed)
    process = killed.start("dvc", "repro")
    in_the_middle = "store/runs/smoke/lr_x1of3/seed0/*/checkpoints/[1-9]??"
    while not list(killed.folder.glob(in_the_middle)):
        assert process.poll() is None
        time.sleep(0.05)
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
    assert trained_runs(killed) == before
    killed.run("dvc", "repro")
    log = (killed.folder / "logs/smoke/train/lr_x1of3.seed0.log").read_text()
    assert "resumes at step" in log
    assert killed.result_bytes() == uninterrupted
    assert "up to date" in killed.run("dvc", "status")


def test_a_clone_pulls_the_results_and_trains_only_what_an_edit_touches(versioned, tmp_path):
    subprocess.run(["git", "clone", "--quiet", versioned.folder, tmp_path / "clone"], check=True)
    clone = type(versioned)(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert "up to date" in clone.run("dvc", "status")
    assert clone.planned() == {}
    clone.edit(lambda document: document["runs"]["depth_10"]["model"].update(num_layers=3))
    clone.run("dvc", "repro")
    assert {name.split("/")[0] for name in trained_runs(clone)} == {"depth_10"}


def test_a_comment_trains_nothing(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")
    model = project.folder / "src/relu_sparsity/model.py"
    model.write_text(model.read_text() + "\n# A comment.\n")
    before, results = trained_runs(project), project.result_bytes()
    project.run("dvc", "repro")
    assert trained_runs(project) == before
    assert project.result_bytes() == results


def test_stages_have_the_outputs_of_snakemakes_jobs(versioned, tmp_path, monkeypatch):
    project = versioned.copy(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    listed = json.loads(project.run("dvc", "ls", ".", "--dvc-only", "--recursive", "--json"))
    by_dvc = {entry["path"] for entry in listed}
    params = load_params()
    by_snakemake = {
        str(path) for job in all_jobs(params, Layout(params.scale)) for path in job.outputs
    }
    assert by_dvc == by_snakemake


def test_stages_depend_on_the_modules_of_the_fingerprints(fresh):
    from relu_sparsity import fingerprint

    stages = yaml.safe_load((fresh.folder / "dvc.yaml").read_text())["stages"]
    needed = {
        "text": (*fingerprint.DATA_MODULES, *fingerprint.TOKENIZER_MODULES),
        "run": (*fingerprint.TRAINING_MODULES, *fingerprint.EXTRACT_MODULES),
        "branch": (*fingerprint.TRAINING_MODULES, *fingerprint.EXTRACT_MODULES),
        "tables": (*fingerprint.PAPER_MODULES["tables"], *fingerprint.PAPER_MODULES["pruning"]),
        "figures": fingerprint.PAPER_MODULES["figures"],
        "claims": fingerprint.PAPER_MODULES["claims"],
        "report": fingerprint.PAPER_MODULES["report"],
    }
    assert set(stages) == set(needed)
    for stage, modules in needed.items():
        deps = stages[stage].get("do", stages[stage])["deps"]
        for module in modules:
            path = f"src/relu_sparsity/{module}"
            assert any(path == dep or path.startswith(f"{dep}/") for dep in deps), (stage, module)
