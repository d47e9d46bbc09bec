import json
import subprocess
import sys

import numpy as np
import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.paper.history import load_mask, load_run, load_runs


@pytest.fixture
def run_dir(results_dir, tmp_path):
    """A copy of one run that a test may damage."""
    folder = tmp_path / "seed0"
    folder.mkdir()
    for path in (results_dir / "runs" / "baseline" / "seed0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_reads_what_the_trainer_writes(run_dir):
    history = load_run(run_dir)
    assert (history.run, history.seed, history.parent_step) == ("baseline", 0, None)
    assert history.unit_use["batch_use"].shape == (len(history.steps), 6)
    assert history.steps[[0, 1, -1]].tolist() == [0, 20, 9999]
    np.testing.assert_allclose(
        history.unit_use["batch_use"][-1], [0.133, 0.793, 0.710, 0.730, 0.861, 0.956]
    )
    assert history.eval_steps[-1] == 10000
    assert history.eval_accuracy.shape == (11, 40)
    assert sorted(history.units) == [0, 9999]
    assert [layer.size for layer in history.units[0]] == history.mlp_dims


def test_convergence_is_the_mean_over_the_last_steps(run_dir):
    history = load_run(run_dir)
    history.unit_use["p50"][:] = history.steps[:, None]
    measured = [9000, *range(9020, 9981, 20), 9999]
    assert history.at_convergence("p50", 1000)[0] == pytest.approx(np.mean(measured))
    assert history.at_convergence("p50", 1)[0] == 9999
    # Steps 9981 to 9999, and 9980 to 9999.
    assert history.at_convergence("p50", 19)[0] == 9999
    assert history.at_convergence("p50", 20)[0] == pytest.approx((9980 + 9999) / 2)


@pytest.mark.parametrize(
    "name", ["run.json", "unit_use.csv", "evaluation_sequences.csv", "units.npz"]
)
def test_names_a_missing_file(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(UserError, match=name):
        load_run(run_dir)


@pytest.mark.parametrize("name", ["run.json", "units.npz"])
def test_names_a_file_of_another_kind(run_dir, name):
    (run_dir / name).write_text("not this")
    with pytest.raises(UserError, match=f"{name}: is not"):
        load_run(run_dir)


def test_names_units_that_are_cut_off(run_dir):
    path = run_dir / "units.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"units\.npz: is not an NPZ file"):
        load_run(run_dir)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("token_use", "use", "line 1: .* allowed: step,layer,token_use"),
        ("\n20,3,", "\n20,4,", "one for every step and every layer"),
        ("\n20,3,0.", "\n20,3,1e999", "line 11: allowed: finite numbers"),
        ("\n20,3,0.", "\n20,3,half", "could not convert string .half"),
        ("\n9999,", "\n9998,", "layers up to step 9998; allowed: .* up to step 9999"),
    ],
)
def test_names_what_is_wrong_in_a_table(run_dir, old, new, message):
    path = run_dir / "unit_use.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"unit_use.csv: .*{message}"):
        load_run(run_dir)


def test_names_an_empty_table(run_dir):
    path = run_dir / "evaluation_sequences.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"evaluation_sequences\.csv: has no rows"):
        load_run(run_dir)


def test_names_what_the_description_lacks(run_dir):
    description = json.loads((run_dir / "run.json").read_text())
    del description["config"]["training"]["num_steps"]
    (run_dir / "run.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"run\.json: 'num_steps' is missing"):
        load_run(run_dir)


def test_leaves_out_runs_without_results(results_dir):
    assert list(load_runs(results_dir, {"baseline": [0, 7], "unknown": [0]})) == ["baseline"]
    assert list(load_runs(results_dir, {"baseline": [0, 7]})["baseline"]) == [0]


def test_the_folder_and_the_mask_of_a_run_to_come_are_no_results(tmp_path):
    (tmp_path / "runs/masked/seed0").mkdir(parents=True)
    (tmp_path / "runs/masked/seed0/mask.npz").touch()
    assert load_runs(tmp_path, {"masked": [0]}) == {}
    (tmp_path / "runs/masked/seed0/unit_use.csv").touch()
    with pytest.raises(UserError, match=r"run\.json: is missing"):
        load_runs(tmp_path, {"masked": [0]})


def test_names_a_mask_with_too_few_layers(results_dir):
    path = results_dir / "runs" / "masked" / "seed0" / "mask.npz"
    assert np.mean(load_mask(path, 6)) == pytest.approx(0.7, abs=1e-4)
    with pytest.raises(UserError, match=r"mask\.npz: has no array .*layer6"):
        load_mask(path, 7)


def test_nothing_downstream_of_the_history_imports_jax():
    modules = ("catalog", "claims", "extract", "figures", "tables")
    imports = "; ".join(f"import relu_sparsity.paper.{name}" for name in modules)
    code = f"import sys; {imports}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
