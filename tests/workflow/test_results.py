"""What a notebook reads of runs that were really trained."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import relu_sparsity as rs
from relu_sparsity.errors import UserError
from relu_sparsity.metrics import METRICS


@pytest.fixture(scope="module")
def runs(finished):
    return rs.open_results(finished.results, store=finished.folder / "store")


def rows(run, name):
    with (run.folder / name).open() as file:
        return list(csv.DictReader(file))


def test_runs_are_found_by_name_and_seed(runs):
    assert len(runs) == 12
    assert list(runs)[:2] == [("baseline", 0), ("depth_10", 0)]
    run = runs["round2", 1]
    assert (run.name, run.seed) == ("round2", 1)
    assert ("round2", 0) not in runs
    assert "\n  baseline seed 0: 6 layers of 32 units, 24 steps\n" in repr(runs)
    assert run.params.model.mlp_dims == tuple(run.record["config"]["model"]["mlp_dims"])


def test_a_copy_of_ones_own_is_not_taken_for_the_run(finished, tmp_path):
    shutil.copytree(finished.results, tmp_path / "results/smoke")
    seed0 = tmp_path / "results/smoke/runs/baseline/seed0"
    for name in ("seed0_mine", "seed00"):
        shutil.copytree(seed0, seed0.with_name(name))
        record = json.loads((seed0 / "run.json").read_text()) | {"fingerprint": name}
        (seed0.with_name(name) / "run.json").write_text(json.dumps(record))
    runs = rs.open_results(tmp_path / "results/smoke")
    assert len(runs) == 12
    assert runs["baseline", 0].record["fingerprint"] not in ("seed0_mine", "seed00")


def test_a_run_says_what_it_was_trained_on(runs):
    trained_on = runs["round2", 1].record["environment"]
    assert (trained_on["device_kind"], trained_on["num_devices"]) == ("cpu", 1)
    # As Snakemake gives it `resources.threads`, whatever the machine has.
    assert trained_on["cpu_threads"] == 1


@pytest.mark.parametrize("key", [("round2", 0), "baseline", ["baseline", 0]])
@pytest.mark.parametrize("kind", [KeyError, UserError])
def test_a_run_that_is_not_there_is_told_with_those_that_are(runs, key, kind):
    with pytest.raises(kind) as error:
        runs[key]
    assert f"{key!r} was not trained; allowed: ['baseline', 0], " in str(error.value)


def test_a_folder_without_runs_is_told_with_those_that_have_some(finished):
    with pytest.raises(UserError, match=r"no run was trained here; allowed: .*results/smoke$"):
        rs.open_results(finished.results.parent)


def test_the_history_has_every_number_once(runs):
    history = runs.history()
    assert list(history) == ["run", "seed", "step", "layer", "metric", "value"]
    assert not history.duplicated(["run", "seed", "step", "layer", "metric"]).any()
    own = history[(history.run == "depth_10") & (history.seed == 0)]
    by_layer = own.dropna(subset="layer").set_index(["step", "layer", "metric"]).value
    use = rows(runs["depth_10", 0], "unit_use.csv")
    assert len(by_layer) == len(use) * len(METRICS)
    for row in use:
        for metric in METRICS:
            assert by_layer[int(row["step"]), int(row["layer"]), metric] == float(row[metric])
    of_model = own[own.layer.isna()].set_index(["step", "metric"]).value
    for row in rows(runs["depth_10", 0], "training.csv"):
        step = int(row.pop("step"))
        for metric, value in row.items():
            assert of_model[step, metric] == float(value)


def test_the_evaluation_has_every_number_once(runs):
    evaluation = runs.evaluation()
    assert list(evaluation) == ["run", "seed", "step", "metric", "value"]
    values = evaluation.set_index(["run", "seed", "step", "metric"]).value
    assert values.index.is_unique
    assert len(values) == 4 * sum(len(rows(run, "evaluation.csv")) for run in runs.values())
    last = rows(runs["masked", 0], "evaluation.csv")[-1]
    for metric in ("loss", "accuracy", "unigram_loss", "bigram_loss"):
        assert values["masked", 0, 24, metric] == float(last[metric])


def test_units_of_the_steps_that_a_run_keeps(runs):
    masked, parent = runs["masked", 0], runs["baseline", 0]
    assert (masked.unit_steps, parent.unit_steps) == ([0, 12, 23], [0, 23])
    for kept, used, last in zip(masked.kept_units, masked.units(12), masked.units(), strict=True):
        np.testing.assert_array_equal(used, kept)
        assert not (last & ~kept).any()
    assert parent.kept_units is None
    final = json.loads((parent.folder / "metrics.json").read_text())
    assert [int(used.sum()) for used in parent.units()] == [
        final[f"layer{k}"]["units_used"] for k in range(6)
    ]
    with pytest.raises(UserError, match=r"units.npz: step 7; allowed: 0, 23$"):
        parent.units(7)


def test_results_without_the_store_have_all_but_the_model(finished, tmp_path):
    shutil.copytree(finished.results, tmp_path / "results/smoke")
    run = rs.open_results(tmp_path / "results/smoke")["masked", 0]
    assert len(run.history())
    with pytest.raises(UserError, match="has no parameters of masked seed 0"):
        run.model()
    (run.folder / "training.csv").unlink()
    with pytest.raises(UserError, match=r"training.csv: is missing"):
        run.history()


@pytest.mark.parametrize("name", ["data/tokenizer.model", "runs/masked/seed0/mask.npz"])
def test_a_model_wants_the_files_that_it_was_trained_with(finished, tmp_path, name):
    shutil.copytree(finished.results, tmp_path / "results/smoke")
    runs = rs.open_results(tmp_path / "results/smoke", store=finished.folder / "store")
    with (tmp_path / "results/smoke" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=f"{name}: is missing, or another one than masked seed 0"):
        runs["masked", 0].model()


def test_results_are_read_without_jax_and_the_package_alone_without_pandas(finished):
    code = (
        "import sys, relu_sparsity as rs; print('pandas' in sys.modules);"
        "rs.open_results('results/smoke').history(); print('jax' in sys.modules);"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=finished.folder, env=finished.environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"]
