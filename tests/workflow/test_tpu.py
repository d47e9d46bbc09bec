"""`snakemake --profile tpu` against a stand-in for gcloud whose hosts really run the jobs."""

import json
import os
import re
import shutil
import signal
import time

import pytest
import yaml
from projects import simulated
from slices import LAUNCH, assert_same, tables

from relu_sparsity.errors import STOPPED_STATUS


def test_the_profile_trains_on_slices_and_leaves_none(controller, plain):
    """A run and its masked branch on four hosts, as the paper's; at first there is no capacity."""
    controller.settings(accelerator_type="v2-32")
    controller.cloud.fail_next(1)
    controller.run("snakemake", "--profile", "tpu", "run_masked")
    assert controller.cloud.slices() == {}
    log = (controller.project.folder / "logs/tpu/train/baseline.seed0.log").read_text()
    assert re.search(r"no slice now, asks again in 1 s, has waited \S+: There is no more", log), log
    assert "baseline seed 0: step 60 of 60" in log
    created = [call for call in controller.cloud.calls() if " create " in call]
    assert len(created) == 3
    assert all("--accelerator-type=v2-32" in call and "--spot" in call for call in created)
    for run in ("baseline", "masked"):
        assert_same(tables(controller.project, run), plain[run])
        told = controller.status(run)
        assert told["state"] == "finished"
        assert re.match(rf"relu-sparsity-tpu-{run}-seed0-\w+: 4 cpu on 4 hosts", told["where"])
        used = told["usage"]
        assert used["slices"] == (2 if run == "baseline" else 1)
        assert used["slice_hours"] > 0
        assert used["waiting_hours"] > 0
        assert used["cost"] == pytest.approx(used["slice_hours"] * 16 * 1.5)
    told = controller.run("relu_sparsity.cli", "status")
    assert re.search(r"Used so far: 3 slices, [\d.]+ slice-hours", told)
    assert "There are no slices" in controller.run("relu_sparsity.cli", "tpu", "list")


def test_a_refused_quota_ends_the_job_at_once_and_leaves_nothing(controller):
    quota = "RESOURCE_EXHAUSTED: Quota limit 'TPUV2sPod' has been exceeded. Limit: 0 in zone a-zone"
    controller.cloud.refuse(quota, "create")
    output = controller.run(*LAUNCH, status=1)
    assert "Quota limit 'TPUV2sPod' has been exceeded" in output
    created = [call for call in controller.cloud.calls() if " create " in call]
    assert len(created) == 1, "no waiting mends it"
    assert controller.cloud.slices() == {}


def test_a_job_without_a_slice_gives_up_after_max_wait_hours(controller):
    controller.settings(max_wait_hours=5 / 3600)
    controller.cloud.fail_next(1000)
    output = controller.run(*LAUNCH, status=1)
    assert re.search(r"has waited \S+: There is no more capacity", output)
    assert "there was no slice in" in output
    assert "allowed: max_wait_hours, 0.00" in output
    assert controller.cloud.slices() == {}


@pytest.fixture
def in_a_terminal():
    """What is started ends with its terminal, also where the tests run under `nohup`."""
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, inherited)


def test_when_the_terminal_is_closed_nothing_is_left(controller, in_a_terminal):
    controller.cloud.fail_next(1000)
    launcher = controller.start(*LAUNCH)
    controller.wait_for(lambda: any(" create " in call for call in controller.cloud.calls()))
    launcher.send_signal(signal.SIGHUP)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == STOPPED_STATUS, output
    assert "the slice is deleted" in output
    assert any(" delete " in call for call in controller.cloud.calls()[-2:])


def test_a_mask_that_needs_training_is_made_on_a_slice(controller, plain):
    """The store has no checkpoint at the mask step: the baseline is trained up to it."""
    masks = [
        controller.start("relu_sparsity.cli", "tpu", "run", "mask", "--run", run)
        for run in ("masked", "random_masked")
    ]
    # Both need the same steps of the same parent: one asks for the slice, the other follows it.
    output = ""
    for launcher in masks:
        told, _ = launcher.communicate(timeout=600)
        assert launcher.returncode == 0, told
        output += told
    assert "has no checkpoint at step 12 in the store: trains up to it" in output
    created = [call for call in controller.cloud.calls() if " create " in call]
    assert len(created) in (1, 2)
    assert controller.cloud.slices() == {}
    # Whoever followed a slice has not asked for another.
    [usage] = [
        json.loads(controller.bucket.read(name))
        for name in controller.bucket.names(f"{controller.prefix}/jobs/")
        if name.endswith("/usage.json")
    ]
    assert list(usage) == ["1"]
    assert usage["1"]["active"]
    assert usage["1"]["gone"]
    random = controller.project.folder / "results/tpu/runs/random_masked/seed0/mask.npz"
    assert random.is_file()
    made = controller.project.folder / "results/tpu/runs/masked/seed0/mask.npz"
    assert made.read_bytes() == plain["mask"]
    assert not controller.progress(), "the run itself has not been trained"


def test_a_preempted_slice_is_replaced_and_the_run_goes_on(controller, plain):
    launcher = controller.start(*LAUNCH)
    controller.wait_for(lambda: controller.progress())
    [name] = controller.cloud.slices()
    listed = json.loads(controller.run("relu_sparsity.cli", "tpu", "list", "--json"))
    assert [(each["name"], each["state"], each["spot"]) for each in listed] == [
        (name, "ACTIVE", True)
    ]
    # The log-in runs out for a while: the hosts do not need it.
    controller.cloud.refuse("There was a problem refreshing your current auth tokens")
    controller.wait_for_step(24)
    controller.cloud.refuse("")
    controller.cloud.preempt(name)
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output
    assert "does not know how the slice is: gcloud compute tpus" in output
    assert "the slice was preempted; makes a new slice" in output
    assert re.search(r"baseline seed 0: resumes at step [2-5]0 of 60", output)
    assert controller.cloud.slices() == {}
    assert_same(tables(controller.project), plain["baseline"])


def test_ctrl_c_saves_and_deletes_and_the_same_command_goes_on(controller, plain):
    command = ("snakemake", "--profile", "tpu", "run_baseline")
    log = controller.project.folder / "logs/tpu/train/baseline.seed0.log"
    workflow = controller.start(*command)
    controller.wait_for_step(12)
    os.killpg(workflow.pid, signal.SIGINT)  # As a terminal does: to all of the group.
    output, _ = workflow.communicate(timeout=300)
    assert workflow.returncode == 1, output
    controller.wait_for(lambda: not controller.cloud.slices(), patience=300)
    step = int(re.search(r"the same command goes on from step (\d+)", log.read_text())[1])
    assert step >= 12
    assert step % 10, "it was saved on request, not by the clock"
    assert controller.status()["state"] == "stopped"
    controller.run(*command)
    assert f"resumes at step {step} of 60" in log.read_text()
    assert controller.cloud.slices() == {}
    assert_same(tables(controller.project), plain["baseline"])


def test_hosts_that_die(controller, plain):
    """A process that dies is started again on its host; a dead host costs the whole slice.

    So does one that dies before its first word, while the others wait for it.
    """
    controller.cloud.shadow(
        "tar",
        'if [ "$JAX_PROCESS_ID" = 1 ] && mkdir "$GCLOUD_STAND_IN/dead"; then exit 1; fi\n'
        f'exec {shutil.which("tar")} "$@"',
    )
    slices = controller.project.folder / "workflow/profiles/tpu/slices.yaml"
    settings = yaml.safe_load(slices.read_text()) | {"host_timeout_seconds": 30}
    slices.write_text(yaml.safe_dump(settings))
    launcher = controller.start(*LAUNCH)
    controller.wait_for_step(12)
    [name] = controller.cloud.slices()
    os.kill(controller.cloud.trainer_of(name, 1), signal.SIGKILL)
    controller.wait_for_step(32)
    controller.cloud.kill_host(name, 1)
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output
    assert "host 1 was not heard of in 30 s; makes a new slice" in output
    assert "host 1 started its process again" in output
    assert re.search(r"host 1 has said nothing for \d+ s; makes a new slice", output)
    assert controller.cloud.slices() == {}
    assert_same(tables(controller.project), plain["baseline"])


def test_the_slice_of_a_killed_launcher_is_taken_over_or_cleaned_up(controller, plain):
    launcher = controller.start(*LAUNCH)
    controller.wait_for(lambda: any(each["state"] == "ACTIVE"
                                    for each in controller.cloud.slices().values()))  # fmt: skip
    launcher.kill()
    launcher.communicate()
    [name] = controller.cloud.slices()
    # It works on, also where the next launcher cannot ask for it.
    controller.cloud.refuse("UNAUTHENTICATED: Reauthentication is needed", "describe")
    assert "UNAUTHENTICATED" in controller.run(*LAUNCH, status=1)
    assert list(controller.cloud.slices()) == [name]
    controller.cloud.refuse("UNAVAILABLE: try again", "describe")
    launcher = controller.start(*LAUNCH)
    time.sleep(10)
    assert launcher.poll() is None
    controller.cloud.refuse("")
    output = launcher.communicate()[0]
    assert launcher.returncode == 0, output
    assert "the cloud does not answer, asks again: " in output
    assert "takes over the slice that is there, ACTIVE" in output
    assert controller.cloud.slices() == {}
    assert_same(tables(controller.project), plain["baseline"])
    assert sum(" create " in call for call in controller.cloud.calls()) == 1

    shutil.rmtree(controller.project.folder / "results/tpu/runs")
    for stored in controller.bucket.names(f"{controller.prefix}/runs/"):
        controller.bucket.remove(stored)
    launcher = controller.start(*LAUNCH)
    controller.wait_for(controller.cloud.slices)
    launcher.kill()
    launcher.communicate()
    controller.variables["RELU_SPARSITY_STORE"] += "_of_someone_else"
    assert "There are no slices" in controller.run("relu_sparsity.cli", "tpu", "cleanup", "--yes")
    controller.variables["RELU_SPARSITY_STORE"] = controller.variables[
        "RELU_SPARSITY_STORE"
    ].removesuffix("_of_someone_else")
    refused = controller.run("relu_sparsity.cli", "tpu", "cleanup", status=1)
    assert "there is nobody to ask; say --yes" in refused
    assert name in controller.cloud.slices()
    assert f"deleted {name}" in controller.run("relu_sparsity.cli", "tpu", "cleanup", "--yes")
    assert controller.cloud.slices() == {}


def test_a_job_that_cannot_go_well_is_not_tried_again(controller):
    """Every host finds that four devices cannot share the batch."""
    controller.project.edit(
        lambda document: document["scales"]["tpu"]["training"].update(
            global_batch_size=2, per_device_batch_size=2
        )
    )
    output = controller.run(*LAUNCH, status=1)
    assert re.search(r"error: .*: host \d failed:\n(.*\n)*.*evenly by 4 devices; allowed", output)
    assert controller.cloud.slices() == {}
    assert sum(" create " in call for call in controller.cloud.calls()) == 1


def test_a_request_that_is_refused_ends_with_the_clouds_words(controller):
    controller.cloud.fail_next(1, "Quota limit TPUV2 has been exceeded. Limit: 0")
    output = controller.run(*LAUNCH, status=1)
    assert "the cloud refuses the slice: Quota limit TPUV2 has been exceeded" in output
    assert controller.cloud.slices() == {}


def test_one_message_tells_all_that_has_to_be_set_up(controller, fresh, tmp_path):
    """In a fresh clone: nothing for a dry run, and one message before anything is started."""
    project = fresh.copy(tmp_path / "clone")
    empty = tmp_path / "bin"
    empty.mkdir()
    for command in ("bash", "sh", "env", "git", "dirname", "which"):
        (empty / command).symlink_to(shutil.which(command))
    bare = {"PATH": str(empty), "RELU_SPARSITY_STORE": "store"}
    planned = project.run("snakemake", "--profile", "tpu", "-n", **bare)
    names = set(re.findall(r"^Job \d+: train (\w+), seed \d+$", planned, re.MULTILINE))
    assert len(names) == 12
    output = project.run("snakemake", "--profile", "tpu", status=1, **bare)
    assert output.count("the slices cannot be launched") == 1
    assert "the command `gcloud` is not found" in output
    assert "export RELU_SPARSITY_STORE=gs://BUCKET" in output
    assert "set scales.tpu.data.data_dir in params.yaml" in output
    assert "Traceback" not in output
    assert not (project.folder / "results/tpu").exists()

    controller.cloud.configure(account="me")
    output = project.run(
        "snakemake", "--profile", "tpu", status=1, **controller.cloud.environment(str(empty))
    )
    assert "a project: gcloud config set project PROJECT" in output
    assert "a zone: gcloud config set compute/zone ZONE" in output


def test_a_bucket_is_a_store_as_any_other(controller, plain):
    """One process that is stopped, and finds its newest checkpoint damaged."""
    controller.variables["XLA_FLAGS"] = simulated(4)
    command = ("relu_sparsity.cli", "train", "--run", "baseline")
    first = controller.start(*command)
    controller.wait_for_step(12)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 143, output
    step = controller.progress()["step"]
    [newest] = {name.partition(f"/checkpoints/{step}/")[0]
                for name in controller.bucket.names(f"{controller.prefix}/runs/")
                if f"/checkpoints/{step}/" in name}  # fmt: skip
    # All of its data: a process's own part is not read any more once it is in the merged one.
    for part in controller.bucket.names(f"{newest}/checkpoints/{step}/state/"):
        if "/d/" in part:
            whole = controller.bucket.read(part)
            controller.bucket.write(part, whole[: len(whole) // 2])
    output = controller.run(*command)
    assert f"the checkpoint at step {step} is damaged" in output
    assert "resumes at step 10 of 60" in output
    assert controller.bucket.names(f"{newest}/damaged/step{step}-")
    assert_same(tables(controller.project), plain["baseline"])
    output = controller.run(*command)
    assert "is in the store: exports it" in output


# A host's disk that does not answer: nothing raises, and the host says that it lives. Python
# imports a module of this name when it starts; it travels in the bundle and is not of the package.
SITECUSTOMIZE = """
import os
import sys
import time
from pathlib import Path

if "train" in sys.orig_argv and os.environ.get("JAX_PROCESS_ID") == "1":
    from relu_sparsity.data.sources import Documents
    from relu_sparsity.training import watchdog

    if Path(os.environ["STUCK"]).exists():
        # There will be no first step: it is not given more time than any other.
        watchdog._START_FACTOR = 1

    read = Documents.__getitem__

    def read_from_a_stuck_disk(documents, index):
        stuck = Path(os.environ["STUCK"])
        if stuck.exists():
            if stuck.read_text() == "once":
                stuck.unlink()
            time.sleep(10_000)
        return read(documents, index)

    Documents.__getitem__ = read_from_a_stuck_disk
"""


@pytest.fixture
def stuck(controller, tmp_path):
    """A file; while it is there, a read by host 1 never returns."""
    (controller.project.folder / "src/sitecustomize.py").write_text(SITECUSTOMIZE)
    controller.settings(hang_timeout_seconds=20, max_restarts=1, max_failures=1)
    controller.variables["STUCK"] = str(tmp_path / "stuck")
    return tmp_path / "stuck"


def test_a_job_that_hangs_is_started_again_on_its_slice(controller, plain, stuck):
    launcher = controller.start(*LAUNCH)
    controller.wait_for_step(12)
    stuck.write_text("once")
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output
    assert "host 1 started its process again" in output
    assert re.search(r"baseline seed 0: resumes at step [1-5]0 of 60", output)
    assert sum(" create " in call for call in controller.cloud.calls()) == 1
    assert controller.cloud.slices() == {}
    assert_same(tables(controller.project), plain["baseline"])
    [log] = [name for name in controller.bucket.names(f"{controller.prefix}/jobs/")
             if name.endswith("attempt1/host1.0000.log")]  # fmt: skip
    told = controller.bucket.read(log).decode()
    assert controller.status()["usage"]["lost_hours"] > 0
    assert "the process hangs and ends itself" in told
    assert "in read_from_a_stuck_disk" in told


def test_a_job_that_hangs_on_every_slice_fails(controller, stuck):
    launcher = controller.start(*LAUNCH)
    controller.wait_for_step(12)
    stuck.write_text("always")
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 1, output
    assert "started again 1 time without a new checkpoint, and ended again" in output
    assert "lost 1 slice in a row without a new checkpoint" in output
    assert sum(" create " in call for call in controller.cloud.calls()) == 2
    assert controller.cloud.slices() == {}


def test_a_host_that_the_lock_is_not_for_says_so(controller):
    """The hosts' own start-up script finds it, before it installs anything."""
    controller.settings(python=None)
    controller.cloud.shadow("uname", "echo aarch64")
    output = controller.run(*LAUNCH, status=1)
    assert re.search(r"host \d failed:\n\s*this host is aarch64 with glibc 2", output), output
    assert "allowed: x86_64 with glibc 2.31 or newer" in output
    assert controller.cloud.slices() == {}
    assert sum(" create " in call for call in controller.cloud.calls()) == 1


def test_a_host_that_cannot_install_the_lock_says_so(controller):
    controller.settings(python=None)
    # Of uv's messages the last bytes are shown, which may begin in the middle of a character.
    told = r"printf '\224\200 no matching distribution for flax \342\225\260\n' >&2; exit 1"
    controller.cloud.shadow("python3", told)
    controller.cloud.shadow("sleep", "exit 0")
    output = controller.run(*LAUNCH, status=1)
    assert re.search(r"packages cannot be installed: +no matching distribution for flax", output)
    assert controller.cloud.slices() == {}
