"""What runs on every host of a slice: starts its part of the job, again and again until it is done.

A host whose process dies takes the others' processes with it, as they wait for each other in every
step. Each host then starts its own again, and together they go on from the checkpoint.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from relu_sparsity.errors import USER_ERROR_STATUS, UserError
from relu_sparsity.files import read_json
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.params_file import load_params
from relu_sparsity.provenance import differences
from relu_sparsity.runs import resolve
from relu_sparsity.tpu.slice_job import EXPECTED, HostReport, HostState, JobDescription, SliceJob

log = logging.getLogger(__name__)

# Of a log, what a message about a failure shows.
_TAIL_BYTES = 4000


def serve(
    job: SliceJob, *, attempt: int, worker: int, num_hosts: int, max_restarts: int = 100
) -> HostState:
    """Runs this host's part of a job to its end.

    Args:
      job: The job.
      attempt: Which slice this is, among those that worked on the job.
      worker: This host, from 0.
      num_hosts: The hosts of the slice.
      max_restarts: How often to start the process again.

    Returns:
      `done`; `stopped`, because the controller asked for it; or `failed`, where another try would
      fail too.
    """
    host = _Host(job, attempt, worker, num_hosts)
    host.report("starting")
    try:
        _check(job.description())
    except UserError as error:
        host.report("failed", str(error))
        return "failed"
    return host.run(max_restarts)


def _check(description: JobDescription) -> None:
    """Checks that this host's code and packages make the run that the controller asked for."""
    params = load_params(scale=description.scale)
    run = resolve(params, Layout(params.scale), description.run, description.seed)
    here = run.job.fingerprint
    told = read_json(Path(EXPECTED))
    if here.as_json() == told:
        return
    raise UserError(
        "this host would train another run than the controller asked for:\n  "
        + "\n  ".join(differences(told, here))
    )


class _Host:
    def __init__(self, job: SliceJob, attempt: int, worker: int, num_hosts: int) -> None:
        self._job = job
        self._description = job.description()
        self._attempt = attempt
        self._worker = worker
        self._num_hosts = num_hosts
        self._restarts = 0
        self._published = 0

    def report(self, state: HostState, message: str = "") -> None:
        """Says what this host does; a store that does not answer is tried again next time."""
        report = HostReport(
            self._worker, self._num_hosts, state, time.time(), self._restarts, message
        )
        try:
            self._job.report(self._attempt, report)
        except Exception as error:
            log.warning("the store does not take this host's word: %s", error)

    def run(self, max_restarts: int) -> HostState:
        command = [sys.executable, "-m", "relu_sparsity.cli", *self._description.command]
        # Kept, and gone on with, where the host boots again.
        with open(f"attempt{self._attempt}.log", "a+b") as printed:
            while True:
                process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
                stopped = self._watch(process, printed)
                self._publish(printed)
                if self._is_done():
                    self.report("done")
                    return "done"
                if stopped:
                    self.report("stopped")
                    return "stopped"
                if process.returncode == USER_ERROR_STATUS or self._restarts >= max_restarts:
                    self.report("failed", _last(printed, _TAIL_BYTES))
                    return "failed"
                self._restarts += 1
                log.warning("ended with status %d: starts again", process.returncode)
                self.report("restarting")
                time.sleep(min(self._description.poll_seconds, 2 ** min(self._restarts, 5)))

    def _watch(self, process: subprocess.Popen[bytes], printed: IO[bytes]) -> bool:
        """Reports until the process ends; returns whether it was asked to stop."""
        asked = False
        while process.poll() is None:
            self.report("running")
            self._publish(printed)
            if not asked and self._is_asked_to_stop():
                asked = True
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._description.poll_seconds)
            except subprocess.TimeoutExpired:
                continue
        return asked or self._is_asked_to_stop()

    def _is_asked_to_stop(self) -> bool:
        try:
            return self._job.is_asked_to_stop(self._attempt)
        except Exception:
            return False

    def _is_done(self) -> bool:
        try:
            return (store_root() / self._description.done_file).exists()
        except Exception:
            return False

    def _publish(self, printed: IO[bytes]) -> None:
        try:
            self._published = self._job.write_log(
                self._attempt, self._worker, printed, start=self._published
            )
        except Exception as error:
            log.warning("the store does not take this host's log: %s", error)


def _last(printed: IO[bytes], limit: int) -> str:
    # By its own descriptor: the process writes at the end of the shared one.
    size = os.fstat(printed.fileno()).st_size
    content = os.pread(printed.fileno(), limit, max(0, size - limit))
    return content.decode(errors="replace")
