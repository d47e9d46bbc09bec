"""How far runs are, from what the store holds."""

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from repository import PARAMS

from relu_sparsity import status
from relu_sparsity.files import write_json
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.runs import removed_results, resolve
from relu_sparsity.tpu.slice_job import SliceJob

KNOWN = {
    "state": "training",
    "step": 120,
    "num_steps": 500,
    "loss": 3.25,
    "tokens_per_second": 5000.0,
    "input_share": 0.07,
    "mfu": 0.41,
    "seconds_left": 3725.0,
    "seconds_between_lines": 10.0,
    "host": "elsewhere",
    "process": 1,
    "slurm_job": None,
    "tpu_slice": None,
    "device_kind": "TPU v2",
    "num_devices": 32,
    "num_processes": 4,
}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RELU_SPARSITY_STORE", str(tmp_path / "store"))
    # There are no results of one's own runs here.
    shutil.copy(PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    params = load_params(PARAMS, "smoke")
    return resolve(params, Layout("smoke"), "baseline", 0).store


def of_baseline():
    found = status.all_status(load_params(PARAMS, "smoke"))
    assert len(found) == 12
    return next(each for each in found if each.run == "baseline")


def write_progress(store, age=1.0, **changes):
    store.folder.mkdir(parents=True, exist_ok=True)
    known = KNOWN | {"updated": time.time() - age} | changes
    store.progress.write_text(json.dumps(known))


def write_launcher(store, at_work, age=1.0):
    job = SliceJob(store.folder.parents[4] / "jobs" / f"relu-sparsity-x-{store.folder.name[:8]}")
    job.folder.mkdir(parents=True, exist_ok=True)
    told = {"message": "asks for a slice", "at_work": at_work, "updated": time.time() - age}
    job.launcher_state.write_text(json.dumps(told))


def test_a_run_that_has_not_begun(store):
    assert of_baseline().state == "not started"
    write_launcher(store, at_work=True)
    assert (of_baseline().state, of_baseline().message) == ("waiting", "asks for a slice")


def test_a_run_under_way(store):
    write_progress(store)
    told = of_baseline()
    assert (told.state, told.step, told.num_steps, told.loss, told.mfu) == (
        "training", 120, 500, 3.25, 0.41,
    )  # fmt: skip
    assert told.where == "elsewhere: 32 TPU v2 on 4 hosts"
    write_progress(store, slurm_job="17", tpu_slice=None)
    assert of_baseline().where == "SLURM job 17, elsewhere: 32 TPU v2 on 4 hosts"
    lines = "\n".join(status.as_lines([told]))
    assert "120 of 500" in lines
    assert "1:02:05" in lines
    assert re.search(r" 7% +41\.0% ", lines)
    assert "1 run: 1 training" in lines


def test_what_each_layer_uses_is_shown_while_a_run_trains(store):
    use = {"token_use": [0.41, 0.068, 0.004], "batch_use": [1.0, 0.793, 0.71]}
    write_progress(store, unit_use=use)
    told = of_baseline()
    assert told.unit_use == use
    (line,) = re.findall("^baseline.*", "\n".join(status.as_lines([told], use=True)), re.MULTILINE)
    assert line.endswith("  41 7 0                    100 79 71")
    assert "tokens/s" not in "".join(status.as_lines([told], use=True))
    # A run of an earlier version did not tell.
    write_progress(store)
    assert "baseline" in "".join(status.as_lines([of_baseline()], use=True))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"age": 3600.0}, "silent"),
        ({"age": 3600.0, "seconds_between_lines": 3000.0}, "training"),
        ({"host": socket.gethostname(), "process": 2**22 + 1}, "silent"),
        ({"host": socket.gethostname(), "process": os.getpid()}, "training"),
        ({"state": "stopped"}, "stopped"),
    ],
    ids=["silent for long", "a slow run", "killed here", "alive here", "stopped"],
)
def test_runs_that_say_nothing(store, changes, state):
    write_progress(store, **changes)
    told = of_baseline()
    assert told.state == state
    assert (told.seconds_left is None) == (state != "training")


@pytest.mark.parametrize("text", ["", '{"state": "train'])
def test_half_a_file_hides_no_other_run(store, text):
    write_progress(store)
    store.progress.write_text(text)
    assert of_baseline().state == "not started"


def test_a_lost_slice_is_waited_for_until_its_launcher_ends(store):
    write_progress(store, age=100.0, state="stopped")
    write_launcher(store, at_work=True)
    assert of_baseline().state == "waiting"
    write_launcher(store, at_work=False)
    assert of_baseline().state == "stopped"


def test_a_finished_run(store):
    write_progress(store, age=1e6)
    store.finished.mkdir(parents=True)
    (store.finished / "run.json").write_text("{}")
    told = of_baseline()
    assert (told.state, told.step, told.loss) == ("finished", 500, 3.25)


def test_a_run_whose_results_alone_are_there_is_finished(store):
    """As in a clone after `dvc pull`, or where the store was freed."""
    run = resolve(load_params(PARAMS, "smoke"), Layout("smoke"), "baseline", 0)
    record = {"made_from": run.job.fingerprint.as_json(), "sha256": {}}
    write_json(run.job.record, record | {"fingerprint": "of other parameters"})
    assert of_baseline().state == "not started"
    write_json(run.job.record, record | {"fingerprint": run.job.fingerprint.hash})
    assert (of_baseline().state, of_baseline().step) == ("finished", 500)


@pytest.mark.parametrize(("loss", "told"), [(6.45, "6.4500, as unigrams"), (6.3, "6.3000")])
def test_a_model_that_has_learned_no_more_than_unigrams_is_pointed_out(store, loss, told):
    write_progress(store, heldout_loss=loss, unigram_loss=6.5)
    (line,) = [
        line for line in status.as_lines([of_baseline()]) for line in line.splitlines()
        if line.startswith("baseline")
    ]  # fmt: skip
    assert f"{told}  " in line


def wait_for(terminal, text):
    shown, deadline = "", time.monotonic() + 60
    while text not in shown:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
        shown += os.read(terminal, 4096).decode()


def test_watched_in_a_terminal_it_follows_a_run_until_it_is_interrupted(store):
    write_progress(store)
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "relu_sparsity.cli", "status", "--watch", "--every", "1"],
        env=os.environ | {"COLUMNS": "200", "LINES": "40", "TERM": "xterm"},
        stdin=other_end, stdout=other_end, stderr=other_end,
        # What a shell starts in the background ignores Ctrl-C, and its children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(other_end)
    wait_for(terminal, "120 of 500")
    write_progress(store, step=130)
    wait_for(terminal, "130 of 500")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_watched_elsewhere_it_is_shown_once(store, options):
    write_progress(store)
    done = subprocess.run(
        [sys.executable, "-m", "relu_sparsity.cli", "status", "--watch", *options],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.startswith("--watch wants a terminal, and no --json: ")
    if options:
        assert json.loads(done.stdout)["runs"][0]["step"] == 120
    else:
        assert done.stdout.count("120 of 500") == 1


def test_results_of_a_run_that_is_gone_are_named(tmp_path):
    layout = Layout("smoke", root=tmp_path)
    for run, seed in (("baseline", 0), ("baseline", 9), ("no_longer", 0)):
        layout.run(run, seed).mkdir(parents=True)
    removed = removed_results(load_params(PARAMS, "smoke"), layout)
    assert removed == [layout.run("baseline", 9), layout.run("no_longer", 0)]
