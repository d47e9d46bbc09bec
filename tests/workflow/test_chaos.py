"""One run and its masked branch, on slices, through whatever goes wrong in a cloud.

`make chaos FAULTS=30 SEED=1` has more of it than a test run has time for, on slices of four hosts.
"""

import os
import random
import signal
import subprocess
import threading
import time

import pytest
from gcloud_stand_in import num_hosts
from slices import LAUNCH, assert_same, tables, train_in_one_process

FAULTS = int(os.environ.get("CHAOS_FAULTS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
ACCELERATOR_TYPE = os.environ.get("CHAOS_ACCELERATOR_TYPE", "v2-16")
HOSTS = range(num_hosts(ACCELERATOR_TYPE))
# So many that all faults come before the end: each takes a run back to its last checkpoint.
NUM_STEPS = max(60, 7 * FAULTS)
# Each process has a clock of its own, and reads its text slowly enough to be met at work.
SITECUSTOMIZE = """
import os
import sys
import time
from pathlib import Path

_real_time = time.time
_clock = Path(os.environ["CLOCKS"]) / os.environ.get("JAX_PROCESS_ID", "controller")


def _own_time():
    return _real_time() + (float(_clock.read_text()) if _clock.exists() else 0.0)


time.time = _own_time

if "train" in sys.orig_argv and "JAX_PROCESS_ID" in os.environ:
    from relu_sparsity.data.sources import Documents

    _read = Documents.__getitem__

    def _read_slowly(documents, index):
        time.sleep(0.5)
        return _read(documents, index)

    Documents.__getitem__ = _read_slowly
"""


@pytest.fixture(scope="session")
def expected(request, with_data, build_once):
    """The tables of the runs of one process that nothing happens to."""
    if NUM_STEPS == 60:
        return request.getfixturevalue("plain")
    project = build_once(f"chaos{NUM_STEPS}", with_data, _train_long)
    return {run: tables(project, run) for run in ("baseline", "masked")}


def _train_long(project):
    _make_long(project)
    train_in_one_process(project)


def _make_long(project):
    project.edit(lambda document: document["scales"]["tpu"]["training"].update(num_steps=NUM_STEPS))


class Chaos:
    """A command that is started again until it ends well, and what happens meanwhile."""

    def __init__(self, controller, folder):
        self.controller = controller
        self.random = random.Random(SEED)
        self.clocks = folder
        self.launcher = None
        self.output = ""
        kinds = (
            self.kill_a_host, self.kill_a_process, self.preempt, self.jump_a_clock,
            self.kill_the_launcher, self.read_errors, self.no_capacity,
            self.failing_describe, self.failing_create, self.failing_delete, self.failing_copy,
        )  # fmt: skip
        self.faults = []
        while len(self.faults) < FAULTS:
            self.faults += self.random.sample(kinds, len(kinds))
        self.faults = self.faults[:FAULTS]

    @property
    def slice(self):
        """The slice that works; an error where there is none now."""
        [(name, about)] = self.controller.cloud.slices().items()
        assert about["state"] == "ACTIVE"
        return name

    def kill_a_host(self):
        self.controller.cloud.kill_host(self.slice, self.random.choice(HOSTS))

    def kill_a_process(self):
        trainer = self.controller.cloud.trainer_of(self.slice, self.random.choice(HOSTS))
        os.kill(trainer, signal.SIGKILL)

    def preempt(self):
        self.controller.cloud.preempt(self.slice)

    def jump_a_clock(self):
        clock = self.random.choice([*map(str, HOSTS), "controller"])
        (self.clocks / clock).write_text(str(self.random.uniform(-7200, 7200)))

    def kill_the_launcher(self):
        self.launcher.kill()

    def read_errors(self):
        self.controller.bucket.failing = 0.05
        time.sleep(8)
        self.controller.bucket.failing = 0.0

    def no_capacity(self):
        self.controller.cloud.fail_next(2)
        self.preempt()

    def failing_describe(self):
        self._fail("describe", "UNAVAILABLE: The service is currently unavailable.")

    def failing_create(self):
        self._fail("create", "INTERNAL: an internal error has occurred", self.preempt)

    def failing_delete(self):
        self._fail("delete", "DEADLINE_EXCEEDED: Deadline expired", self.preempt)

    def failing_copy(self):
        self._fail("cp", "HTTPError 503: backend error", self.preempt)

    def _fail(self, verb, message, then=lambda: None):
        self.controller.cloud.refuse(message, verb)
        then()
        time.sleep(5)
        self.controller.cloud.refuse("")

    def survive(self, run, *command):
        """Starts the command until it ends well; faults come while it trains `run`."""
        deadline = time.monotonic() + 300 + 120 * FAULTS
        self._start(command)
        before = None
        while self.launcher.poll() != 0:
            assert time.monotonic() < deadline, f"it does not end:\n{self.output[-5000:]}"
            if self.launcher.poll() is not None:
                self._start(command)
            now = self.controller.progress(run)
            if self.faults and now != before and now.get("state") == "training" and "loss" in now:
                time.sleep(self.random.uniform(0, 2))
                before = self.controller.progress(run)
                try:
                    self.faults[0]()
                except (AssertionError, LookupError, ValueError, OSError):
                    continue  # There is no slice, or no such process now: it comes later.
                print(f"{self.faults.pop(0).__name__} at step {before['step']} of {run}")
            time.sleep(0.2)

    def _start(self, command):
        self.launcher = self.controller.start(*command)
        threading.Thread(target=self._read, args=(self.launcher,), daemon=True).start()

    def _read(self, launcher: subprocess.Popen):
        for line in launcher.stdout:
            self.output += line


def test_faults_change_no_number(controller, expected, tmp_path):
    _make_long(controller.project)
    controller.settings(
        accelerator_type=ACCELERATOR_TYPE,
        host_timeout_seconds=25,
        max_failures=100,
        max_restarts=100,
    )
    (controller.project.folder / "src/sitecustomize.py").write_text(SITECUSTOMIZE)
    (tmp_path / "clocks").mkdir()
    controller.variables["CLOCKS"] = str(tmp_path / "clocks")
    chaos = Chaos(controller, tmp_path / "clocks")
    train = LAUNCH[:-1]
    chaos.survive("baseline", *train, "baseline")
    chaos.survive("masked", *(word.replace("train", "mask") for word in train), "masked")
    chaos.survive("masked", *train, "masked")
    assert not chaos.faults, "the runs were over too soon"
    assert controller.cloud.slices() == {}
    for run in ("baseline", "masked"):
        assert_same(tables(controller.project, run), expected[run])
        told = controller.status(run)
        assert told["state"] == "finished"
        assert told["usage"]["slice_hours"] >= 0 <= told["usage"]["waiting_hours"]
        print(run, told["usage"])
