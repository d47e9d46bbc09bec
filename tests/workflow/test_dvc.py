"""DVC and Snakemake agree on what is stale, and results travel."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
import yaml

from relu_sparsity.jobs import job_table
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params

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
    allowed = (
        r"runs/lr_x1of3/|tables/(made_from/)?table5|figures/(made_from/)?fig(29|30|31)"
        r"|(made_from/)?(claims|curves|report|metrics)"
    )
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


def wait_for_the_middle(project, process):
    """Until the longer run has a checkpoint past its hundredth step."""
    while not list(project.folder.glob("store/runs/smoke/lr_x1of3/seed0/*/checkpoints/[1-9]??")):
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("whole_group", [True, False])
def test_killed_in_the_middle_of_a_run_repro_goes_on_with_it(
    versioned, uninterrupted, tmp_path, whole_group
):
    killed = versioned.copy(tmp_path / "killed")
    killed.edit(lambda document: document["runs"]["lr_x1of3"].update(LONGER))
    before = trained_runs(killed)
    process = killed.start("dvc", "repro")
    wait_for_the_middle(killed, process)
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


def test_a_run_that_is_taken_away_leaves_stale_for_dvc_what_showed_it(versioned, tmp_path):
    """Its results stay, so only the parameters tell."""
    project = versioned.copy(tmp_path / "project")
    project.edit(lambda document: document["runs"].pop("depth_14"))
    planned = set(project.planned())
    assert {"claims", "summary", "figure", "report"} <= planned
    # The report follows from those before it.
    assert {"tables", "figures", "claims"} <= changed_stages(project)


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
    by_snakemake = {str(path) for job in jobs_of_dvc().values() for path in job.files_written}
    assert by_dvc == by_snakemake


def test_stages_depend_on_the_code_and_have_the_names_of_the_jobs(fresh, tmp_path, monkeypatch):
    project = fresh.copy(tmp_path / "project")
    project.edit(lambda document: document["runs"].update(own={}))
    monkeypatch.chdir(project.folder)
    stages = yaml.safe_load((project.folder / "dvc.yaml").read_text())["stages"]
    table = jobs_of_dvc()
    assert {job.stage.partition("@")[0] for job in table.values()} == set(stages)
    for job in table.values():
        stage = stages[job.stage.partition("@")[0]]
        deps = stage.get("do", stage)["deps"]
        for name in job.fingerprint.code:
            path = name if "workflow/" in name else f"src/relu_sparsity/{name}"
            assert any(path == dep or path.startswith(f"{dep}/") for dep in deps), (job.name, path)
        assert "requirements.txt" in deps or not job.fingerprint.packages, job.name
        # A result may be the same, and made from something else.
        for before in (table[name] for name in job.after):
            run = before.arguments.get("run")
            if before.stage != job.stage:
                record = str(before.record).replace("results/smoke/", "results/${scale}/")
                named = {
                    dep.replace("${key}", str(job.arguments.get("run"))).replace(
                        "${item.parent}", str(run)
                    )
                    for dep in deps
                }
                assert any(record == dep or record.startswith(f"{dep}/") for dep in named), (
                    job.name,
                    record,
                )


def jobs_of_dvc():
    """All but those that are made only when asked for."""
    params = load_params()
    table = job_table(params, Layout(params.scale))
    without = {job.name for job in table.values() if not job.stage}
    assert without == {job.name for job in table.values() if job.on_request}
    return {name: job for name, job in table.items() if job.stage}


def changed_stages(project):
    return set(json.loads(project.run("dvc", "status", "--json")))


def test_a_part_of_the_workflow_leaves_the_rest_stale_for_dvc(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    project.snakemake("run_lr_x1of3")
    assert project.planned()
    changed = changed_stages(project)
    assert {"tables", "figures", "claims"} <= changed
    assert not any("lr_x1of3" in stage for stage in changed), "it is current, and recorded"
    project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "status")
    assert project.planned() == {}


def test_a_workflow_that_fails_leaves_what_it_did_not_make_stale_for_dvc(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")

    def diverge_in_one_and_change_another(document):
        document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e30)
        document["runs"]["lr_x2of3"]["optimizer"].update(peak_lr=1e-4)

    project.edit(diverge_in_one_and_change_another)
    project.snakemake("--keep-going", status=1)
    changed = changed_stages(project)
    assert {"run@lr_x1of3", "tables", "claims", "report"} <= changed
    assert "run@lr_x2of3" not in changed


def test_a_stage_of_the_users_own_is_left_to_dvc(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")
    note, path = project.folder / "note.txt", project.folder / "dvc.yaml"
    own = {"cmd": "cp note.txt copy.txt", "deps": ["note.txt"], "outs": ["copy.txt"]}
    stages = yaml.safe_load(path.read_text())
    stages["stages"]["own"] = own
    path.write_text(yaml.safe_dump(stages, sort_keys=False))
    note.write_text("first")
    project.run("dvc", "repro", "--quiet", "own")
    note.write_text("second")
    caption = project.folder / "workflow/report/figure.rst"
    caption.write_text(caption.read_text() + "\nAnother caption.\n")
    assert changed_stages(project) == {"report", "own"}
    project.snakemake()
    assert changed_stages(project) == {"own"}


def test_what_dvc_cannot_record_is_told_in_its_words(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")
    git(project, "add", "--force", "results/smoke/tables")
    told = project.run("relu_sparsity.cli", "record")
    assert "not recorded in DVC" in told
    assert "'results/smoke/tables' is already tracked by SCM" in told


def test_an_edit_during_a_workflow_is_not_taken_for_what_it_made(versioned, tmp_path):
    project = versioned.copy(tmp_path / "project")
    project.edit(lambda document: document["runs"]["lr_x1of3"].update(LONGER))
    process = project.start("snakemake", "--cores", "2", "run_lr_x1of3")
    wait_for_the_middle(project, process)
    project.edit(lambda document: document["runs"]["depth_10"]["model"].update(num_layers=3))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "run@depth_10" in changed_stages(project)
    assert project.trained() == {"depth_10"}
