"""Results of other versions of packages that are kept."""

import shutil

import pytest
from paper_runs import record_all, write_paper_results

from relu_sparsity import fingerprint
from relu_sparsity.accept import accept_other_versions, still_stale
from relu_sparsity.files import read_json, write_json, write_text
from relu_sparsity.jobs import job_table
from relu_sparsity.provenance import Digests
from relu_sparsity.runs import resolve_all


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Runs and metrics that another NumPy made."""
    monkeypatch.setenv("RELU_SPARSITY_STORE", str(tmp_path / "store"))
    params, layout = write_paper_results(tmp_path / "test")
    for name, seed in params.jobs():
        if params.runs[name].sensitivity:
            shutil.rmtree(layout.run(name, seed))
    for job in job_table(params, layout).values():
        if job.rule in ("tokenizer", "data", "widths"):
            for path in job.outputs:
                write_text(path, job.name)
    version = fingerprint._version
    with monkeypatch.context() as before:
        before.setattr(
            fingerprint, "_version", lambda name: "0.1" if name == "numpy" else version(name)
        )
        record_all(params, layout)
    return params, layout


def stale(params, layout):
    made = (job for job in job_table(params, layout).values() if job.record.is_file())
    return [job.name for job in made if job.problems(Digests())]


def test_results_of_another_version_are_kept_and_say_so(results):
    params, layout = results
    assert len(stale(params, layout)) > 40
    accepted = accept_other_versions(params, layout)
    assert stale(params, layout) == []
    assert accepted["train/baseline/seed0"] == {"numpy": "0.1"}
    (told,) = read_json(layout.run("baseline", 0) / "run.json")["accepted"]
    assert told["numpy"] == "0.1"
    assert accept_other_versions(params, layout) == {}


def test_what_is_missing_comes_from_the_store_and_is_not_trained_again(results):
    params, layout = results
    run = next(run for run in resolve_all(params, layout) if run.name == "baseline")
    run.keep_results()
    (run.folder / "unit_use.csv").unlink()
    # No store has these.
    extracted = job_table(params, layout)["extract/baseline/seed1"]
    extracted.outputs[0].unlink()
    accepted = accept_other_versions(params, layout)
    assert accepted["train/baseline/seed0"] == {"numpy": "0.1"}
    assert run.store.is_finished()
    assert (run.folder / "unit_use.csv").is_file()
    assert extracted.name not in accepted


def test_what_stays_stale_is_told_with_the_reason(results):
    params, layout = results
    path = layout.run("baseline", 0) / "run.json"
    record = read_json(path)
    record["made_from"]["parameters"]["optimizer"]["peak_lr"] = 1.0
    write_json(path, record)
    accepted = accept_other_versions(params, layout)
    assert "train/baseline/seed0" not in accepted
    reasons = [why for why, jobs in still_stale(params, layout).items()
               if "train/baseline/seed0" in jobs]  # fmt: skip
    assert len(reasons) == 1
    assert "optimizer.peak_lr: 1.0 -> " in reasons[0]


def test_a_call_that_was_stopped_is_finished_by_the_next(results):
    """What comes after a result that was accepted names what that was before."""
    params, layout = results
    records = [job.record for job in job_table(params, layout).values() if job.record.is_file()]
    before = {path: path.read_bytes() for path in records}
    whole = accept_other_versions(params, layout)
    for path in records[len(records) // 3 :]:
        path.write_bytes(before[path])
    again = accept_other_versions(params, layout)
    assert 0 < len(again) < len(whole)
    assert stale(params, layout) == []


@pytest.mark.parametrize("changed", ["code", "made_from", "result"])
def test_what_more_than_versions_has_changed_is_not_accepted(results, changed):
    params, layout = results
    job = job_table(params, layout)["extract/baseline/seed0"]
    if changed == "result":
        write_text(job.outputs[0], "{}")
    else:
        record = read_json(job.record)
        first = next(iter(record["made_from"][changed]))
        record["made_from"][changed][first] = "another"
        write_json(job.record, record)
    accepted = accept_other_versions(params, layout)
    assert "extract/baseline/seed1" in accepted
    assert job.name not in accepted
    assert job.name in stale(params, layout)
