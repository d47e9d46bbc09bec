"""One run on several hosts: processes of their own, with collectives between them."""

import json
import signal

import pandas as pd
import pytest
from projects import simulated

RUN = "results/smoke/runs/baseline/seed0"
TRAIN = ("train", "--run", "baseline")


@pytest.fixture
def hosts(fresh, tmp_path):
    """A project whose run takes long enough to be stopped in the middle."""
    project = fresh.copy(tmp_path / "project")
    project.edit(
        lambda document: document["scales"]["smoke"]["training"].update(
            num_steps=60, global_batch_size=8, log_every_steps=4
        )
    )
    for command in ("tokenizer", "data"):
        project.run("relu_sparsity.cli", command)
    return project


def results(project):
    """The results of the baseline, taken away so that the next process has to make its own."""
    folder = project.folder / RUN
    tables = {
        name: pd.read_csv(folder / f"{name}.csv") for name in ("unit_use", "training", "evaluation")
    }
    units = (folder / "units.npz").read_bytes()
    described = json.loads((folder / "run.json").read_text())
    (project.folder / "results/smoke/runs").rename(
        project.folder / f"runs{len(list(project.folder.iterdir()))}"
    )
    return tables, units, described


def test_hosts_that_come_and_go_train_what_one_process_trains(hosts):
    """Two hosts, stopped by a signal to one of them; then four hosts."""
    hosts.run(
        "relu_sparsity.cli", *TRAIN, XLA_FLAGS=simulated(4), RELU_SPARSITY_STORE="store_of_one"
    )
    alone, units_alone, _ = results(hosts)

    pair = hosts.start_hosts(2, *TRAIN, devices=2)
    hosts.wait_for_step(12)
    pair[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [143, 143], outputs
    stopped = hosts.progress()
    assert stopped["state"] == "stopped"
    assert stopped["num_processes"] == 2
    assert 12 <= stopped["step"] < 60

    four = hosts.start_hosts(4, *TRAIN, devices=1)
    outputs = [process.communicate(timeout=600)[0] for process in four]
    assert [process.returncode for process in four] == [0] * 4, outputs
    assert f"resumes at step {stopped['step']} of 60" in outputs[0]
    assert hosts.progress()["state"] == "finished"
    together, units_together, described = results(hosts)
    assert described["environment"]["num_devices"] == 4

    # The order of the data and all counts, bit for bit; sums of floats but for their last digits.
    pd.testing.assert_frame_equal(together["unit_use"], alone["unit_use"], check_exact=True)
    assert units_together == units_alone
    for name in ("training", "evaluation"):
        pd.testing.assert_frame_equal(together[name], alone[name], rtol=1e-5, atol=1e-7)


def test_says_which_batch_the_hosts_cannot_share(hosts):
    three = hosts.start_hosts(3, *TRAIN)
    outputs = [process.communicate(timeout=300)[0] for process in three]
    assert all(process.returncode for process in three)
    assert (
        "error: training.global_batch_size: 8 sequences cannot be shared evenly by 3 devices; "
        "allowed: a multiple of 3"
    ) in outputs[0]


def test_a_host_that_dies_ends_the_others_and_the_run_goes_on(hosts):
    pair = hosts.start_hosts(2, *TRAIN)
    hosts.wait_for_step(12)
    pair[0].kill()
    output = pair[1].communicate(timeout=300)[0]
    assert pair[1].returncode, output
    pair[0].communicate()
    pair = hosts.start_hosts(2, *TRAIN)
    outputs = [process.communicate(timeout=600)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "resumes at step" in outputs[0]
