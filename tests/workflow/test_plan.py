"""`relu-sparsity plan` says what Snakemake would run, and why; runs come from elsewhere."""

import json
import re
import shutil
from collections import Counter
from importlib import metadata

import pytest

from relu_sparsity.flops import training_flops
from relu_sparsity.params_file import load_params


def plan(project):
    return json.loads(project.run("relu_sparsity.cli", "plan", "--json"))


def jobs(project):
    return {job["name"]: job for job in plan(project)["jobs"]}


def files(project):
    return {
        path: path.read_bytes()
        for folder in ("results", "store", ".stamps")
        for path in (project.folder / folder).rglob("*")
        if path.is_file()
    }


def test_a_finished_project_has_no_plan(project):
    assert plan(project)["jobs"] == []
    assert "nothing would run" in project.run("relu_sparsity.cli", "plan")
    assert "nothing would run" in project.run("relu_sparsity.cli", "plan", "--summary")


def test_names_the_parameter_and_just_the_jobs_that_snakemake_would_run(project):
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    before = files(project)
    planned = jobs(project)
    assert files(project) == before
    train = planned["train/lr_x1of3/seed0"]
    assert train["action"] == "train"
    (reason,) = train["reasons"]
    assert re.fullmatch(r"optimizer.peak_lr: 0.00666\d+ -> 0.0001", reason)
    assert train["cost"]["steps"] == 24
    assert train["cost"]["tokens"] == 24 * 4 * 16
    assert planned["extract/lr_x1of3/seed0"]["reasons"] == [
        "made from other results: train/lr_x1of3/seed0"
    ]
    by_rule = Counter(name.split("/")[0] for name in planned)
    by_snakemake = project.planned()
    assert by_rule == {rule: by_snakemake[rule] for rule in by_rule}
    assert set(by_snakemake) - set(by_rule) == {"all"}
    what, how_long, _ = project.run("relu_sparsity.cli", "plan", "--summary").splitlines()
    assert what == f"Scale smoke: {len(planned)} jobs would run; 1 of them train, 24 steps in all."
    assert "measured on 12 runs" in how_long
    total = plan(project)["total"]
    assert total["steps"] == 24
    assert total["device_hours"] > 0


def test_the_speed_is_that_of_the_runs_in_the_store(project):
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    # What is told of devices holds until a run was timed on those that there are.
    project.edit(
        lambda document: (
            document["scales"]["smoke"].setdefault("resources", {}).update(num_devices=4)
        )
    )
    measured = plan(project)["speed"]
    assert (measured["measured_runs"], measured["num_devices"]) == (12, 1)
    shutil.rmtree(project.folder / "store")
    assumed = plan(project)["speed"]
    assert assumed == {"measured_runs": 0, "flops_per_device": 4e10, "num_devices": 4}


def test_names_the_module_and_the_parent(project):
    path = project.folder / "src/relu_sparsity/model.py"
    path.write_text(path.read_text().replace("10000.0", "5000.0"))
    planned = jobs(project)
    assert planned["train/baseline/seed0"]["reasons"] == ["the code changed: model.py"]
    assert planned["train/masked/seed0"]["reasons"] == [
        "the code changed: model.py",
        "made from other results: mask/masked/seed0",
    ]
    assert len([name for name in planned if name.startswith("train/")]) == 12


def test_tells_what_is_missing_resumed_exported_or_trained_again(project):
    run = project.results / "runs" / "depth_10" / "seed0"
    (run / "unit_use.csv").unlink()
    (baseline,) = (project.folder / "store/runs/smoke/baseline/seed0").iterdir()
    shutil.rmtree(baseline / "branches")
    (masked,) = (project.folder / "store/runs/smoke/masked/seed0").iterdir()
    shutil.rmtree(masked / "finished")
    (project.results / "runs/masked/seed0/mask.npz").unlink()
    (project.results / "runs/masked/seed0/run.json").unlink()
    planned = jobs(project)
    assert planned["train/depth_10/seed0"]["action"] == "export from the store"
    assert planned["train/depth_10/seed0"]["reasons"] == [
        "results/smoke/runs/depth_10/seed0/unit_use.csv: is missing"
    ]
    again = planned["mask/masked/seed0"]
    assert again["action"].startswith("train baseline to step 12 again")
    assert again["cost"]["steps"] == 12
    assert planned["train/masked/seed0"]["action"] == "resume at step 24"


def test_a_compacted_run_is_planned_as_narrow_as_its_mask(project):
    folder = project.results / "runs/masked/seed0"
    dims = json.loads((folder / "run.json").read_text())["trained_mlp_dims"]
    whole = json.loads((folder / "run.json").read_text())["config"]["model"]["mlp_dims"]
    assert sum(dims) < sum(whole)
    shutil.rmtree(next((project.folder / "store/runs/smoke/masked/seed0").iterdir()))
    (folder / "run.json").unlink()
    planned = jobs(project)["train/masked/seed0"]
    params = load_params(project.folder / "params.yaml", "smoke")
    config = params.run("masked").config
    assert planned["cost"]["flops"] == training_flops(
        config, dims, first_step=config.mask.step, last_step=config.training.num_steps
    )


def test_a_third_round_is_planned_as_wide_as_the_second(project):
    third = {"parent": "round2", "intervention": "used_widths", "seeds": [1]}
    project.edit(lambda document: document["branches"].update(round3=third))
    planned = jobs(project)
    described = json.loads((project.results / "runs/round2/seed1/run.json").read_text())
    config = load_params(project.folder / "params.yaml", "smoke").run("round3").config
    widths = described["config"]["model"]["mlp_dims"]
    flops = training_flops(config, widths, first_step=0, last_step=config.training.num_steps)
    assert planned["train/round3/seed1"]["cost"]["flops"] == flops
    # And before anything is known, as wide as the first.
    shutil.rmtree(project.folder / "store")
    shutil.rmtree(project.results / "runs")
    first = jobs(project)["train/round1/seed1"]["cost"]["flops"]
    assert jobs(project)["train/round3/seed1"]["cost"]["flops"] == pytest.approx(first, rel=0.01)


def test_a_mask_by_hand_needs_the_text_of_its_parent(project):
    """The store may lack the mask step; then the parent is trained up to it, on this text."""
    project.edit(
        lambda document: document["scales"]["smoke"]["tokenizer"].update(train_documents=60)
    )
    output = project.run("relu_sparsity.cli", "mask", "--run", "masked", status=1)
    assert "tokenizer.json: is not of the parameters now" in output
    assert not list((project.folder / "store/runs").glob("*/*/*/*/replay*"))


def test_what_a_power_cut_left_of_a_run_is_no_hindrance(project):
    for path in (project.folder / "store/runs/smoke/lr_x1of3/seed0").glob("*/finished/run.json"):
        path.write_text("")
    for path in (project.folder / "store/runs/smoke/lr_x2of3/seed0").glob("*/throughput.csv"):
        path.write_text("")
    assert plan(project)["speed"]["measured_runs"] == 10


def test_a_run_from_elsewhere_is_taken_over_if_it_is_the_same(finished, fresh, tmp_path):
    here = fresh.copy(tmp_path / "here")
    run = finished.results / "runs" / "lr_x1of3" / "seed0"
    here.run("relu_sparsity.cli", "adopt", str(run))
    trained = here.results / "runs" / "lr_x1of3" / "seed0" / "run.json"
    assert trained.read_bytes() == (run / "run.json").read_bytes()
    planned = jobs(here)["train/lr_x1of3/seed0"]
    assert planned["action"] == "export from the store"
    assert planned["reasons"] == ["after tokenizer, data"]
    assert len(list((here.folder / "store/runs/smoke/lr_x1of3/seed0").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda document: document["scales"]["smoke"]["model"].update(mlp_dim=16),
            "model.mlp_dim: 32 -> 16",
        ),
        (
            lambda document: document["runs"]["lr_x1of3"].update(seeds=[3]),
            "run 'lr_x1of3' has no seed 0 at this scale; allowed: 3",
        ),
        (lambda document: document["runs"].pop("lr_x1of3"), "run 'lr_x1of3' is not in params.yaml"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(
    finished, fresh, tmp_path, change, message
):
    here = fresh.copy(tmp_path / "here")
    here.edit(change)
    run = finished.results / "runs" / "lr_x1of3" / "seed0"
    output = here.run("relu_sparsity.cli", "adopt", str(run), status=1)
    assert message in output
    assert not here.results.exists()
    assert not (here.folder / "store").exists()


def test_results_without_a_store_are_kept_before_others_take_their_place(project):
    shutil.rmtree(project.folder / "store")
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    output = project.snakemake("run_lr_x1of3")
    assert "lr_x1of3/seed0: optimizer.peak_lr: " in output
    kept = list((project.folder / "store/runs/smoke/lr_x1of3/seed0").glob("*/finished"))
    assert len(kept) == 2


def test_names_the_package_that_changed_and_accepts_the_results_if_asked_to(project):
    """As after an upgrade: the environment has another version than what made the results."""
    fingerprint = project.folder / "src/relu_sparsity/fingerprint.py"
    source = fingerprint.read_text()
    upgraded = 'return "99.0" if package == "optax" else metadata.version(package)'
    fingerprint.write_text(source.replace("return metadata.version(package)", upgraded))
    planned = jobs(project)
    version = re.escape(metadata.version("optax"))
    (reason,) = planned["train/baseline/seed0"]["reasons"]
    assert re.fullmatch(rf'the package optax: "{version}" -> "99.0"', reason)
    assert len([name for name in planned if name.startswith("train/")]) == 12
    assert len(project.trained()) == 12

    before = project.result_bytes()
    project.edit(lambda document: document["runs"]["lr_x1of3"]["optimizer"].update(peak_lr=1e-4))
    told = json.loads(project.run("relu_sparsity.cli", "accept", "--json"))
    accepted, stale = told["accepted"], told["stale"]
    assert accepted["train/baseline/seed0"] == {"optax": metadata.version("optax")}
    assert "train/lr_x1of3/seed0" not in accepted, "its parameters have changed too"
    assert "table/table5" not in accepted
    assert any("train/lr_x1of3/seed0" in names for names in stale.values())
    assert not any("train/baseline/seed0" in names for names in stale.values())
    assert project.trained() == {"lr_x1of3"}
    run = json.loads((project.results / "runs/baseline/seed0/run.json").read_text())
    assert run["accepted"][0]["optax"] == metadata.version("optax")
    after = project.result_bytes()
    changed = {name for name in before if before[name] != after[name]}
    assert all(name.endswith("run.json") or "made_from" in name for name in changed)
    # Nothing is trained again for a mask at the same step, or when results are lost.
    (project.results / "runs/masked/seed0/mask.npz").unlink()
    shutil.rmtree(project.results / "runs/masked/seed0/made_from")
    (project.results / "runs/baseline/seed0/unit_use.csv").unlink()
    actions = {name: job["action"] for name, job in jobs(project).items()}
    assert actions["train/baseline/seed0"] == "export from the store"
    assert actions["mask/masked/seed0"] == "make"
