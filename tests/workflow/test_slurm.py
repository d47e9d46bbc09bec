"""One run over two nodes of a real SLURM, which the test starts on this machine."""

import time

import pandas as pd
import pytest
from projects import simulated
from slurm_cluster import missing, slurm_cluster

RUN = "results/smoke/runs/baseline/seed0"
SNAKEMAKE = (
    "snakemake",
    *("--profile", "workflow/profiles/smoke", "--profile", "workflow/profiles/slurm"),
    # As the profile's comments tell for two nodes.
    *("--set-resources", "train:mpi=srun", "train:nodes=2", "train:tasks=2", "train:mem_mb=500"),
    *("--slurm-init-seconds-before-status-checks", "1", "--retries", "0", "--latency-wait", "20"),
    f"{RUN}/run.json",
)

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no SLURM here: {missing()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def wait_for(holds, patience=300):
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def tables(project):
    return {
        name: pd.read_csv(project.folder / RUN / f"{name}.csv")
        for name in ("unit_use", "training", "evaluation")
    }


def test_two_nodes_train_what_one_process_trains(fresh, cluster, tmp_path):
    project = fresh.copy(tmp_path / "project")
    project.edit(
        lambda document: document["scales"]["smoke"]["training"].update(
            num_steps=160, global_batch_size=8, log_every_steps=4
        )
    )
    project.edit(lambda document: document["scales"]["smoke"]["model"].update(num_layers=2))
    for command in ("tokenizer", "data"):
        project.run("relu_sparsity.cli", command)
    alone = project.copy(tmp_path / "alone")
    alone.run("relu_sparsity.cli", "train", "--run", "baseline", XLA_FLAGS=simulated(2))

    variables = {**cluster.environment, "XLA_FLAGS": simulated(1)}
    first = project.start(*SNAKEMAKE, **variables)
    project.wait_for_step(12)
    job = project.progress()["slurm_job"]
    assert project.progress()["num_processes"] == project.progress()["num_devices"] == 2

    # As after preemption: SLURM itself starts the job again.
    cluster.run("scontrol", "requeue", job)
    wait_for(lambda: project.progress()["state"] == "stopped")
    requeued = project.progress()["step"]
    wait_for(lambda: project.progress()["state"] == "training")
    project.wait_for_step(requeued + 8)
    assert project.progress()["slurm_job"] == job
    cluster.run("scancel", job)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 1, output
    stopped = project.progress()
    assert stopped["state"] == "stopped"
    assert 12 <= requeued < stopped["step"] < 160

    output = project.run(*SNAKEMAKE, **variables)
    assert project.progress()["slurm_job"] not in (None, job), output
    log = (project.folder / "logs/smoke/train/baseline.seed0.log").read_text()
    assert f"resumes at step {stopped['step']} of 160" in log
    found, expected = tables(project), tables(alone)
    # The order of the data and all counts, bit for bit; sums of floats but for their last digits.
    pd.testing.assert_frame_equal(found["unit_use"], expected["unit_use"], check_exact=True)
    for name in ("training", "evaluation"):
        pd.testing.assert_frame_equal(found[name], expected[name], rtol=1e-5, atol=1e-7)
    units = [(each.folder / RUN / "units.npz").read_bytes() for each in (project, alone)]
    assert units[0] == units[1]
