"""The whole workflow: what it makes, what makes it stale, and what a kill leaves behind."""

import base64
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from relu_sparsity.layout import TABLE_FORMATS
from relu_sparsity.paper.catalog import FIGURES, PRUNING, TABLES

EVERY_RUN = {
    "baseline", "lr_x1of3", "lr_x2of3", "lr_x5of3", "width_x1of2", "width_x1of4",
    "depth_10", "depth_14", "masked", "random_masked", "round1", "round2",
}  # fmt: skip


def test_makes_every_table_figure_claim_and_the_report(finished):
    for table in (*TABLES, PRUNING):
        for suffix in TABLE_FORMATS:
            assert (finished.results / "tables" / f"{table}.{suffix}").stat().st_size
    assert len(FIGURES) == 34
    for figure in FIGURES:
        assert "</svg>" in (finished.results / "figures" / f"{figure}.svg").read_text()
    claims = json.loads((finished.results / "claims.json").read_text())["claims"]
    assert [claim["number"] for claim in claims] == list(range(1, 28))
    verdicts = {claim["verdict"] for claim in claims}
    assert verdicts <= {"reproduced", "not reproduced", "not decidable"}
    told = json.loads((finished.results / "data/manifest.json").read_text())["heldout_text"][
        "ngram_losses"
    ]
    assert 0 < told["bigram_loss"] < told["unigram_loss"]
    run = json.loads((finished.results / "runs/masked/seed0/run.json").read_text())
    assert run["ngram_losses"] == told


def test_the_report_opens_with_the_claims_and_needs_no_network(finished):
    html = (finished.results / "report.html").read_text()
    front = html.index("var workflow_desc")
    assert "27 claims" in html[front : html.index("</script>", front)]
    results = re.search(r'<script id="results">\s*var results = (.*?);\s*</script>', html, re.S)
    assert results is not None
    shown = json.loads(results[1])
    assert len(shown) == len(FIGURES) + len(TABLES) + 1
    assert all(result["data_uri"].startswith("data:") for result in shown.values())
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']?https?:", html)
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.S))
    first_page = html[front : html.index("</script>", front)]
    assert not re.findall(r"https?:|url\(|@import", style + first_page)
    assert first_page.count("data:image/svg+xml;base64,") > 20


def test_a_new_run_shows_up_without_code(project):
    before = project.result_bytes()
    project.edit(lambda d: d["runs"].update(no_decay={"optimizer": {"weight_decay": 0.0}}))
    project.snakemake()
    rows = (project.results / "tables/own_runs.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [
        ["baseline", ""],
        ["no_decay", "weight_decay 0.0"],
    ]
    assert "</svg>" in (project.results / "figures/run_no_decay.svg").read_text()
    html = (project.results / "report.html").read_text()
    assert "own_runs.csv" in html
    assert "run_no_decay.svg" in html
    after = project.result_bytes()
    changed = {name for name in before if before[name] != after[name]}
    assert all(re.match(r"(made_from/)?(claims|curves|report|metrics)", name) for name in changed)
    assert b",no_decay\n" in after["curves/batch_use.csv"]
    assert b",no_decay,0\n" in after["curves/heldout_loss.csv"]
    assert "Nothing to be done" in project.snakemake()


def test_has_nothing_to_do_afterwards(project):
    assert "Nothing to be done" in project.snakemake()
    shutil.rmtree(project.folder / ".snakemake")
    assert "Nothing to be done" in project.snakemake()


def test_editing_one_runs_parameter_reruns_it_and_what_follows(project):
    before = project.result_bytes()
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    assert project.trained() == {"lr_x1of3"}
    project.snakemake()
    after = project.result_bytes()
    changed = {name for name in before if before[name] != after[name]}
    assert {"tables/table5.csv", "figures/fig29.svg", "report.html"} <= changed
    allowed = (
        r"runs/lr_x1of3/|tables/(made_from/)?table5|figures/(made_from/)?fig(29|30|31)"
        r"|(made_from/)?(claims|curves|report|metrics)"
    )
    assert [name for name in changed if not re.match(allowed, name)] == []
    assert "Nothing to be done" in project.snakemake()


def test_going_back_to_an_old_parameter_trains_nothing(project):
    before = project.result_bytes()
    project.edit(lambda document: document["runs"]["round1"].update(optimizer={"b1": 0.7}))
    assert project.trained() == {"round1", "round2"}
    project.snakemake()
    project.edit(lambda document: document["runs"]["round1"].pop("optimizer"))
    output = project.snakemake()
    logs = [(project.folder / f"logs/smoke/train/{run}.seed1.log").read_text()
            for run in ("round1", "round2")]  # fmt: skip
    assert all("is in the store: exports it" in log for log in logs), output
    assert project.result_bytes() == before


@pytest.mark.parametrize(
    ("edit", "stale"),
    [
        (lambda d: d["runs"].update(baseline={"optimizer": {"b1": 0.7}}),
         {"baseline", "masked", "random_masked"}),
        (lambda d: d["scales"]["smoke"]["mask"].update(step=8), {"masked", "random_masked"}),
        (lambda d: d["runs"].update(extra={"model": {"num_layers": 2}}), {"extra"}),
        (lambda d: d["scales"]["smoke"]["metrics"].update(convergence_window=6), set()),
        (lambda d: d["scales"]["smoke"]["tokenizer"].update(vocab_size=500), EVERY_RUN),
    ],
    ids=["baseline", "mask step", "new experiment", "window", "vocabulary"],
)  # fmt: skip
def test_a_parameter_reruns_just_what_depends_on_it(project, edit, stale):
    project.edit(edit)
    assert project.trained() == stale


def test_choices_of_the_paper_are_made_only_when_asked_for(project):
    choices = {"rmsnorm": {"model": {"norm": "rmsnorm"}}, "same": {"model": {"norm": "layernorm"}}}
    project.edit(lambda document: document.update(sensitivity=choices))
    before = project.result_bytes()
    assert project.planned() == {}
    assert json.loads(project.run("relu_sparsity.cli", "plan", "--json"))["jobs"] == []
    told = json.loads(project.run("relu_sparsity.cli", "plan", "--json", "--sensitivity"))["jobs"]
    asked = ["train/rmsnorm/seed0", "extract/rmsnorm/seed0", "sensitivity"]
    assert [job["name"] for job in told] == asked
    project.snakemake("sensitivity")
    table = (project.results / "sensitivity.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in table[1:]] == [
        ["baseline", ""],
        ["rmsnorm", "norm rmsnorm"],
    ]
    assert project.planned("sensitivity") == {}
    after = project.result_bytes()
    assert {path: after[path] for path in before} == before


def test_a_new_mask_step_needs_no_new_baseline(project):
    """Also where the store has no checkpoint at that step: the baseline is replayed up to it."""
    project.edit(lambda document: document["scales"]["smoke"]["mask"].update(step=8))
    project.snakemake("results/smoke/runs/masked/seed0/run.json")
    log = (project.folder / "logs/smoke/mask/masked.seed0.log").read_text()
    assert "baseline seed 0 has no checkpoint at step 8 in the store: trains up to it" in log
    parent = json.loads((project.results / "runs/masked/seed0/run.json").read_text())["parent"]
    assert parent == {"run": "baseline", "seed": 0, "step": 8, "device_kind": "cpu"}


def test_figures_that_mark_the_mask_step_are_drawn_again(project):
    project.edit(lambda document: document["scales"]["smoke"]["mask"].update(step=8))
    shown = sum("baseline" in figure.runs for figure in FIGURES.values())
    assert project.planned()["figure"] == shown
    project.edit(lambda document: document["scales"]["smoke"]["mask"].update(step=12))
    project.edit(lambda document: document["runs"].update(depth_14={"metrics": {"early_steps": 6},
                 **document["runs"]["depth_14"]}))  # fmt: skip
    assert set(project.planned()) == {"figure", "report", "all"}


def test_a_tokenizer_of_other_parameters_is_noticed(project):
    """What a kill between the tokenizer and its manifest leaves, with the parameters put back."""
    tokenizer = project.results / "data/tokenizer.model"
    before = tokenizer.read_bytes()
    project.edit(lambda document: document["scales"]["smoke"]["tokenizer"].update(vocab_size=500))
    output = project.snakemake("results/smoke/data/tokenizer.model")
    assert tokenizer.read_bytes() != before
    [reason] = re.findall(".*runs/baseline/seed0.*: tokenizer.vocab_size: 400 -> 500.*", output)
    assert "runs/depth_14/seed0" in reason, "what is true of many runs is said once"
    project.edit(lambda document: document["scales"]["smoke"]["tokenizer"].update(vocab_size=400))
    output = project.run("relu_sparsity.cli", "train", "--run", "extra", status=1)
    assert "run 'extra' is not in params.yaml" in output
    project.edit(lambda document: document["runs"].update(extra={"optimizer": {"b1": 0.5}}))
    output = project.run("relu_sparsity.cli", "train", "--run", "extra", status=1)
    assert "made_from/tokenizer.json: is not of the parameters now" in output
    assert "tokenizer.vocab_size: 500 -> 400" in output
    assert project.planned()["tokenizer"] == 1
    project.snakemake("results/smoke/data/manifest.json")
    assert tokenizer.read_bytes() == before


def test_a_change_of_the_datas_code_builds_new_data(project):
    docs = project.folder / "src/relu_sparsity/data/docs.py"
    source = docs.read_text()
    docs.write_text(source.replace("MIN_CHARACTERS = 150", "MIN_CHARACTERS = 600"))
    assert docs.read_text() != source
    manifest = project.results / "data/manifest.json"
    before = json.loads(manifest.read_text())["splits"]["train"]["documents"]
    project.snakemake(str(manifest.relative_to(project.folder)))
    assert json.loads(manifest.read_text())["splits"]["train"]["documents"] < before


def test_commands_called_by_hand_refuse_results_of_other_parameters(project):
    project.edit(lambda document: document["runs"]["round1"].update(optimizer={"b1": 0.7}))
    for command in (
        ["widths", "--run", "round2", "--seed", "1"],
        ["tables"],
        ["claims"],
        ["extract", "--run", "round1", "--seed", "1"],
    ):
        output = project.run("relu_sparsity.cli", *command, status=1)
        assert "round1/seed1/run.json: is not of the parameters now; run" in output
    output = project.run("relu_sparsity.cli", "tables", "--scale", "mini", status=1)
    assert "there are no results of" in output


def test_comments_rerun_nothing_and_a_changed_model_everything(project):
    model = project.folder / "src/relu_sparsity/model.py"
    source = model.read_text()
    model.write_text(source.replace("def __call__", "# A comment.\n    def __call__"))
    assert project.planned() == {}
    model.write_text(source.replace("nnx.relu(self.up(x))", "nnx.relu(self.up(x) - 0.1)"))
    assert project.trained() == EVERY_RUN


def test_a_changed_figure_redraws_figures_and_trains_nothing(project):
    figures = project.folder / "src/relu_sparsity/paper/figures.py"
    figures.write_text(figures.read_text() + "\n_UNUSED = 1\n")
    assert project.planned() == {"figure": len(FIGURES), "report": 1, "all": 1}


def test_a_clone_with_the_exported_results_has_nothing_to_do(finished, fresh, tmp_path):
    clone = fresh.copy(tmp_path / "clone")
    shutil.copytree(finished.results, clone.results)
    # A clone sets modification times in any order.
    files = [path for path in clone.results.rglob("*") if path.is_file()]
    random.Random(0).shuffle(files)
    for age, path in enumerate(files):
        moment = time.time() - 10_000 + age
        os.utime(path, (moment, moment))
    assert clone.planned() == {}
    clone.edit(lambda document: document["runs"]["depth_10"]["model"].update(num_layers=3))
    assert clone.trained() == {"depth_10"}
    clone.snakemake()
    assert clone.planned() == {}


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(finished, fresh, tmp_path):
    killed = fresh.copy(tmp_path / "killed")
    moments = random.Random(0)
    for whole_group in (True, False) * 3:
        process = killed.start("snakemake", "--cores", "2")
        time.sleep(moments.uniform(2, 12))
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
    killed.snakemake()
    assert killed.result_bytes() == finished.result_bytes()


def test_ctrl_c_saves_where_a_run_is_and_the_same_command_goes_on(fresh, tmp_path):
    project = fresh.copy(tmp_path / "stopped")
    project.edit(lambda d: d["scales"]["smoke"]["training"].update(num_steps=600))
    process = project.start("snakemake", "--cores", "2")
    project.wait_for_step(12, "baseline")
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does: to all of the group.
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    log = project.folder / "logs/smoke/train/baseline.seed0.log"
    stopped = re.search(r"stopped at step (\d+) of 600; the same command goes on", log.read_text())
    assert stopped is not None, log.read_text()
    project.snakemake("run_baseline")
    assert f"resumes at step {stopped[1]} of 600" in log.read_text()


def test_bad_parameters_end_before_anything_starts(project):
    before = project.result_bytes()
    project.edit(lambda document: document["scales"]["smoke"]["model"].update(num_layers=0))
    output = project.snakemake(status=1)
    assert "params.yaml: scales.smoke.model.num_layers: 0: input should be greater" in output
    assert project.result_bytes() == before


def test_where_there_are_no_choices_the_sensitivity_says_so(project):
    project.edit(lambda document: document.pop("sensitivity"))
    output = project.snakemake("-n", "sensitivity", status=1)
    assert "sensitivity: params.yaml has nothing for it at the scale smoke" in output


def test_bad_text_is_named_with_its_line(project):
    bad = project.folder / "bad.jsonl"
    bad.write_text('{"text": "good"}\nnot json\n')

    def use_files(document):
        document["scales"]["smoke"]["data"] = {"source": "text", "files": ["bad.jsonl"]}

    project.edit(use_files)
    project.snakemake(status=1)
    log = (project.folder / "logs/smoke/tokenizer.log").read_text()
    assert re.search(r"bad.jsonl.*line 2", log)


def test_the_papers_scale_lists_every_experiment(fresh, tmp_path):
    project = fresh.copy(tmp_path / "project")
    assert project.trained("--config", "scale=tpu") == EVERY_RUN


def test_snakemakes_lint_has_one_wish_that_the_lock_answers(fresh):
    output = fresh.run("snakemake", "--lint", status=None)
    wishes = {line.strip() for line in output.splitlines() if line.startswith("    * ")}
    assert wishes == {"* Specify a conda environment or container for each rule.:"}, output


def test_a_changed_number_is_noticed_and_the_run_exported_again(project):
    before = project.result_bytes()
    path = project.results / "runs/baseline/seed0/unit_use.csv"
    text = path.read_text()
    path.write_text(text.replace("\n0,0,", "\n0,0,0.5", 1))
    assert path.read_text() != text
    told = "results/smoke/runs/baseline/seed0/unit_use.csv: was changed after it was written"
    assert told in project.run("relu_sparsity.cli", "plan")
    output = project.run("relu_sparsity.cli", "extract", "--run", "baseline", status=1)
    assert told in output
    output = project.snakemake()
    assert told in output
    log = (project.folder / "logs/smoke/train/baseline.seed0.log").read_text()
    assert "is in the store: exports it" in log
    assert project.result_bytes() == before
    # The same for what is made from runs.
    table = project.results / "tables/table1.csv"
    damaged = table.read_text().replace("0", "1")
    for _ in range(2):
        table.write_text(damaged)
        assert set(project.planned()) == {"table", "report", "all"}
        project.snakemake()
        assert project.result_bytes() == before


def test_what_is_stale_is_made_again_though_another_clock_dated_it_in_the_future(project):
    later = time.time() + 3 * 3600
    for path in project.results.rglob("*"):
        os.utime(path, (later, later))
    assert project.planned() == {}
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    assert project.trained() == {"lr_x1of3"}
    project.snakemake()
    assert project.planned() == {}


def test_what_config_says_is_known_or_refused(project):
    refused = project.snakemake("-n", "--config", "scales=mini", status=1)
    assert "--config scales: is no known key; allowed: scale, slices" in refused
    # It takes the place of the whole of the profile's.
    refused = project.snakemake(
        "-n", "--profile", "workflow/profiles/tpu", "--config", "scale=smoke", status=1
    )
    assert "allowed: --config scale=smoke slices=workflow/profiles/tpu/slices.yaml" in refused


def everything(project):
    """The content, and for results the time, of every file but stamps and Snakemake's own."""
    own = ("/.stamps/", "/.snakemake/", "/__pycache__/", "/.venv/")
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in project.folder.rglob("*")
        if path.is_file() and not any(part in f"{path}" for part in own)
    }


def test_a_dry_run_changes_nothing(project):
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    (project.folder / ".snakemake/locks").mkdir(exist_ok=True)
    (project.folder / ".snakemake/locks/0.input.lock").touch()
    before = everything(project)
    assert project.trained() == {"lr_x1of3"}
    assert everything(project) == before
    assert (project.folder / ".snakemake/locks/0.input.lock").exists()


def test_fewer_cores_train_with_the_threads_of_the_parameters(project):
    """As another number gives other last bits."""
    project.edit(lambda document: document["defaults"]["resources"].update(threads=2))
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    project.run("snakemake", "--cores", "1", "run_lr_x1of3")
    trained = json.loads((project.results / "runs/lr_x1of3/seed0/run.json").read_text())
    assert trained["environment"]["cpu_threads"] == 2


def test_a_read_only_checkout_can_be_looked_at(project):
    """Mounted read-only in a namespace of its own, which only root can do."""
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    look = (
        f"mount --bind {project.folder} {project.folder} && "
        f"mount -o remount,ro,bind {project.folder} && cd {project.folder} && "
        f"! touch x 2> /dev/null && export PYTHONDONTWRITEBYTECODE=1 && "
        f"{sys.executable} -m snakemake -n && "
        f"{sys.executable} -m relu_sparsity.cli plan"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", look],
        capture_output=True, text=True, check=False, env=project.environment,
    )  # fmt: skip
    if "unshare" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("no mounts can be made here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job stats:" in done.stdout + done.stderr
    assert re.findall(r"train (\w+), seed", done.stdout + done.stderr) == ["lr_x1of3"]
    assert "train/lr_x1of3/seed0: train" in done.stdout


def test_a_run_has_the_same_bits_whether_others_branch_off_or_not(project):
    """A new branch at a step that is not measured changes nothing of its parent."""
    before = project.result_bytes()

    def branch_off(document):
        masks = {"parent": "lr_x1of3", "intervention": "mask_unused", "mask": {"step": 13}}
        document["branches"]["slow_masked"] = masks

    project.edit(branch_off)
    assert project.trained() == {"slow_masked"}
    shutil.rmtree(project.folder / "store/runs")
    shutil.rmtree(project.results / "runs/lr_x1of3")
    project.snakemake("run_slow_masked", "run_lr_x1of3")
    after = project.result_bytes()
    runs = [name for name in before if name.startswith("runs/lr_x1of3/")]
    assert len(runs) > 5
    assert all(before[name] == after[name] for name in runs)


def test_an_edited_rule_does_not_hide_what_is_stale_after_it(project):
    """Snakemake would run the edited rule, and take what follows it for current."""
    rule = project.folder / "workflow/rules/data.smk"
    rule.write_text(rule.read_text().replace("relu-sparsity data ", "relu-sparsity  data "))
    tables = project.folder / "src/relu_sparsity/paper/tables.py"
    tables.write_text(tables.read_text() + "\n_UNUSED = 1\n")
    assert project.planned()["table"] == len(TABLES)


def test_marks_of_half_written_files_stop_nothing_where_records_tell_that_they_are_whole(project):
    """As after a kill between a job's end and Snakemake's note of it."""
    marked = "results/smoke/tables/table1.csv"
    mark = base64.b64encode(marked.encode()).decode()
    (project.folder / ".snakemake/incomplete").mkdir(exist_ok=True)
    (project.folder / ".snakemake/incomplete" / mark).touch()
    assert "Nothing to be done" in project.snakemake()


def test_what_ended_after_its_snakemake_was_killed_is_told_in_the_report_too(project):
    """Snakemake knows nothing of such a job's files, and reports only what it knows."""
    before = project.result_bytes()
    folder = project.folder / ".snakemake"
    (folder / "incomplete").mkdir(exist_ok=True)

    def note(name):
        return base64.urlsafe_b64encode(f"results/smoke/{name}".encode()).decode()

    for name in ("claims.json", "claims.md", "made_from/claims.json"):
        (folder / "metadata" / note(name)).rename(folder / "incomplete" / note(name))
    # Of another branch than what is asked for; the report looks at all.
    (folder / "incomplete" / note("metrics.yaml")).touch()
    # On a cluster, a job that ends by itself takes its marks away, and notes nothing.
    for name in ("data/manifest.json", "data/made_from/manifest.json"):
        (folder / "metadata" / note(name)).unlink()
    report = "results/smoke/report.html"
    (project.folder / report).unlink()
    assert project.planned(report) == {"report": 1}
    project.snakemake(report)
    assert project.result_bytes() == before


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        (["--cores", "8"], 8),
        (["--cores", "8", "--set-threads", "train=3"], 2),
        (["--cores", "8", "--resources", "gpu=1", "--set-resources", "train:gpu=1"], 1),
        (["--cores", "8", "--resources", "mem_mb=9000", "--set-resources", "train:mem_mb=2000"], 4),
    ],
)
def test_time_left_knows_how_many_runs_train_at_a_time(fresh, tmp_path, options, slots):
    project = fresh.copy(tmp_path / "project")
    (project.folder / "asks.smk").write_text(
        'include: "Snakefile"\n\n\n'
        "onstart:\n"
        '    raise SystemExit(f"trains {training_slots(workflow)} at a time")\n'
    )
    told = project.run("snakemake", "all", "-s", "asks.smk", *options, status=None)
    assert f"trains {slots} at a time" in told


def test_what_was_stale_and_not_asked_for_runs_when_it_is(project):
    """As in a stage of DVC, which may run the jobs of one rule only."""
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    for path in (project.folder / ".snakemake/metadata").iterdir():
        path.unlink()
    (project.results / "figures/fig01.svg").unlink()
    project.snakemake(
        "--allowed-rules", "figure", "--", "results/smoke/figures/fig01.svg", status=None
    )
    assert project.trained() == {"lr_x1of3"}


def test_for_a_person_it_tells_what_runs_what_failed_and_no_more(project):
    told = project.snakemake("--logger", "relu-sparsity")
    assert (
        told.splitlines()[-1]
        == "Nothing to be done (all requested files are present and up to date)."
    )
    drawn = project.results / "figures" / "fig01.svg"
    before = drawn.read_bytes()
    drawn.unlink()
    assert "draw fig01" in project.snakemake("-n", "--logger", "relu-sparsity")
    told = project.snakemake(str(drawn.relative_to(project.folder)), "--logger", "relu-sparsity")
    assert re.fullmatch(
        r"draw fig01: done in 0:00:0\d; 1 of 1 jobs done in \S+", told.splitlines()[-1]
    )
    # This one job started by itself; when it was first drawn there was a server to fork.
    assert drawn.read_bytes() == before
    with (project.folder / "src/relu_sparsity/paper/figures.py").open("a") as module:
        module.write('raise OSError("no paint")\n')
    told = project.snakemake("--logger", "relu-sparsity", status=1)
    assert "Error in rule figure" in told
    assert "OSError: no paint" in told
