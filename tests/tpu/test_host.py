"""What runs on a host: it starts the job's process, and tells how that goes."""

import json

import pytest
from repository import PARAMS

from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.runs import resolve
from relu_sparsity.tpu.host import serve
from relu_sparsity.tpu.slice_job import EXPECTED, JobDescription, SliceJob


def baseline():
    """What the baseline depends on."""
    return resolve(load_params(scale="smoke"), Layout("smoke"), "baseline", 0).job.fingerprint


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Serves a job whose process is a command of `relu-sparsity`; returns its end and its word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELU_SPARSITY_STORE", str(tmp_path / "store"))
    (tmp_path / "params.yaml").write_text((PARAMS).read_text())
    expected = baseline()

    def start(*command, wanted=None):
        job = SliceJob(tmp_path / "store" / "jobs" / "a-slice")
        (tmp_path / EXPECTED).write_text(json.dumps((wanted or expected).as_json()))
        job.describe(
            JobDescription(
                command=command,
                done_file="done",
                run="baseline",
                seed=0,
                scale="smoke",
                poll_seconds=0.2,
            )
        )
        state = serve(job, attempt=1, worker=2, num_hosts=4, max_restarts=1)
        [report] = job.reports(1)
        assert (report.worker, report.state) == (2, state)
        return state, report, job.read_log(1, 2).decode()

    return start


def test_a_job_whose_file_is_there_is_done(start, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "done").touch()
    state, report, log = start("params", "--run", "baseline")
    assert (state, report.restarts) == ("done", 0)
    assert "num_layers: 6" in log


def test_a_users_error_is_not_tried_again(start):
    state, report, _ = start("params", "--run", "nothing")
    assert (state, report.restarts) == ("failed", 0)
    assert "error: run 'nothing' is not in params.yaml" in report.message


def test_any_other_end_is_tried_again_but_not_forever(start):
    state, report, log = start("no-such-command")  # Ends with status 2.
    assert (state, report.restarts) == ("failed", 1)
    assert log.count("No such command") == 2


def test_another_run_than_the_controllers_is_refused(start, tmp_path):
    wanted = baseline()
    wanted.parameters["optimizer"]["peak_lr"] = 0.5
    state, report, log = start("params", wanted=wanted)
    assert state == "failed"
    assert "another run than the controller asked for" in report.message
    assert "optimizer.peak_lr: 0.5 -> 0.03" in report.message
    assert log == ""
