"""Runs a job on a slice of its own: asks for one, watches it, replaces a lost one, deletes it.

The launcher is the only one that keeps a slice alive. However it ends, but for a kill that leaves
it no time, the slice is gone afterwards; after such a kill the next launcher of the same job takes
the slice over, and `relu-sparsity tpu cleanup` deletes it.
"""

import contextlib
import logging
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from relu_sparsity.counts import counted
from relu_sparsity.durations import duration
from relu_sparsity.errors import GOES_ON, Interrupted, UserError
from relu_sparsity.files import write_json, write_text
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.params import Params
from relu_sparsity.perform import perform
from relu_sparsity.tpu.setup import delete_left_over, require_setup
from relu_sparsity.tpu.slice_job import HostReport
from relu_sparsity.tpu.slices import (
    ATTEMPT_LABEL,
    LOST,
    OWNER_LABEL,
    WAITING,
    AlreadyExists,
    Gcloud,
    PassingTrouble,
    Slice,
    SliceParams,
    owner_of,
)
from relu_sparsity.tpu.usage import SliceUse, now
from relu_sparsity.tpu.work import Work

log = logging.getLogger(__name__)
_T = TypeVar("_T")


def launch(
    params: Params, layout: Layout, settings: SliceParams, command: str, run: str, seed: int
) -> None:
    """Runs `train` or `mask` of a run on a slice, and brings its small results here.

    Args:
      params: The scale.
      layout: Where its results go.
      settings: The slices.
      command: `train` or `mask`.
      run: The run.
      seed: Its seed.

    Raises:
      UserError: Something has to be set up, or the job failed in a way that would come again.
      Interrupted: It was asked to stop; the slice is deleted.
    """
    job = Work(params, layout, settings, command, run, seed)
    if job.is_done():
        delete_left_over(job.slice_job, settings)
    else:
        _Launcher(job, settings, require_setup(settings, params)).run()
    # What is left needs no accelerator.
    perform(params, layout, f"{command}/{run}/seed{seed}")


class _NoCapacity(Exception):
    """The cloud has no slice now."""


class _SliceLost(Exception):
    """The slice is there no more, or does nothing any more."""


class _Launcher:
    def __init__(self, job: Work, settings: SliceParams, gcloud: Gcloud) -> None:
        self._job = job
        self._name = job.slice_job.name
        self._settings = settings
        self._gcloud = gcloud
        self._attempt = 0
        self._signals_seen = 0
        self._asked_to_stop = threading.Event()
        self._state = ""
        self._shown = 0
        self._restarts: dict[int, int] = {}
        self._heard: dict[int, tuple[float, float]] = {}
        self._newest, self._restarts_until_newest = 0, 0
        self._without_slice_since = time.monotonic()
        self._uses: dict[int, SliceUse] = {}

    def run(self) -> None:
        """Keeps slices working on the job until it is done.

        A slice of a launcher that was killed works on, whatever fails before it is found.
        """
        has_looked = False
        try:
            with self._signals():
                self._job.prepare()
                self._uses = self._ask_store(self._job.slice_job.usage, {})
                found = self._describe()
                has_looked = True
                self._work(self._adopt(found))
        finally:
            if has_looked:
                self._tell("deletes the slice")
                self._delete()
                self._tell("the slice is deleted", at_work=False)

    def _work(self, is_there: bool) -> None:
        failures, best = 0, self._newest_step()
        pause = self._settings.poll_seconds
        while True:
            try:
                if not is_there:
                    self._create()
                is_there = False
                self._follow()
                return
            except _NoCapacity as trouble:
                waited = self._require_patience()
                self._tell(
                    f"no slice now, asks again in {pause:.0f} s, has waited {waited}: {trouble}"
                )
                self._delete()
                self._wait(pause)
                pause = min(2 * pause, 600)
            except _SliceLost as lost:
                self._count_lost_work()
                self._tell(f"{lost}; makes a new slice")
                self._delete()
                pause, newest = self._settings.poll_seconds, self._newest_step()
                failures = 0 if newest > best else failures + 1
                best = max(best, newest)
                if failures >= self._settings.max_failures:
                    raise UserError(
                        f"{self._name}: lost {counted(failures, 'slice')} in a row without a new "
                        f"checkpoint (the last one: {lost}); allowed: max_failures, "
                        f"{self._settings.max_failures}. Its logs are in "
                        f"{os.fspath(self._job.slice_job.folder)}"
                    ) from None

    def _delete(self) -> None:
        self._gcloud.delete(self._name)
        self._mark("gone")

    def _mark(self, event: Literal["active", "gone"]) -> None:
        """Keeps when the slice was there, and when no more."""
        if self._attempt in self._uses:
            self._keep_use(self._uses[self._attempt].marked(event))

    def _count_lost_work(self) -> None:
        """Keeps how much work since the newest checkpoint has to be done again."""
        lost = self._ask_store(self._job.seconds_since_checkpoint, 0.0)
        if use := self._uses.get(self._attempt):
            self._keep_use(replace(use, lost_seconds=use.lost_seconds + lost))

    def _keep_use(self, use: SliceUse) -> None:
        self._uses[self._attempt] = use
        self._ask_store(lambda: self._job.slice_job.write_usage(self._uses), None)

    def _describe(self) -> Slice | None:
        """The slice that is there, once the cloud answers."""
        while True:
            try:
                return self._gcloud.describe(self._name)
            except PassingTrouble as trouble:
                self._tell(f"the cloud does not answer, asks again: {trouble}")
            self._require_patience()
            self._wait(self._settings.poll_seconds)

    def _adopt(self, found: Slice | None) -> bool:
        """Whether the slice of a launcher that was killed still works on the job."""
        # One whose hosts never said anything is known by its use alone.
        self._attempt = max(self._job.slice_job.last_attempt(), *self._uses, 0)
        if found is None:
            self._mark("gone")
            return False
        if found.state in (*WAITING, "ACTIVE"):
            self._attempt = int(found.labels.get(ATTEMPT_LABEL, 1))
            self._tell(f"takes over the slice that is there, {found.state}")
            return True
        self._delete()
        return False

    def _create(self) -> None:
        """Asks for a slice."""
        self._attempt += 1
        self._shown, self._restarts, self._heard = 0, {}, {}
        self._newest, self._restarts_until_newest = self._newest_step(), 0
        labels = {OWNER_LABEL: owner_of(store_root()), ATTEMPT_LABEL: str(self._attempt)}
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "startup.sh"
            write_text(script, self._job.startup_script(self._attempt))
            self._tell(
                f"asks for a {'spot ' if self._settings.spot else ''}slice "
                f"{self._settings.accelerator_type} in {self._gcloud.zone}"
            )
            settings = self._settings
            self._keep_use(SliceUse(settings.accelerator_type, settings.hourly_price, asked=now()))
            try:
                self._gcloud.create(
                    self._name, self._settings, startup_script=script, labels=labels
                )
            except PassingTrouble as trouble:
                raise _NoCapacity(str(trouble)) from None
            except AlreadyExists as trouble:
                # Two masks of one parent need the same steps, and the other was faster.
                self._tell("another launcher has asked for the same slice: follows it")
                del self._uses[self._attempt]
                if not self._adopt(self._describe()):
                    raise _NoCapacity(str(trouble)) from None

    def _follow(self) -> None:
        """Watches the slice until the job is done."""
        asked_at, active_since = time.monotonic(), None
        self._state = ""
        while True:
            self._wait(self._settings.poll_seconds)
            try:
                found = self._gcloud.describe(self._name)
            except (PassingTrouble, UserError) as trouble:
                # The hosts need neither the cloud's word nor a valid log-in of the user's.
                self._tell(f"does not know how the slice is: {trouble}")
                if self._is_done():
                    return
                continue
            if found is None:
                if self._is_done():
                    return
                raise UserError(
                    f"{self._name}: someone else deleted the slice; the job goes on from its last "
                    "checkpoint when it is started again"
                )
            if found.state != self._state:
                self._state = found.state
                self._tell(f"{found.state}, {duration(time.monotonic() - asked_at)} after asking")
            if found.state == "FAILED":
                if found.is_refused():
                    raise UserError(f"{self._name}: the cloud refuses the slice: {found.message}")
                raise _NoCapacity(found.message)
            if found.state in LOST:
                raise _SliceLost("the slice was preempted")
            if found.state != "ACTIVE":
                self._require_patience()
                continue
            self._without_slice_since = time.monotonic()
            if active_since is None:
                self._mark("active")
            active_since = active_since or time.monotonic()
            reports = self._reports()
            self._show(reports)
            # Asked last: the file may come while the rest is looked at.
            if self._is_done():
                self._let_hosts_end(reports)
                return
            for report in reports:
                if report.state == "failed":
                    raise UserError(
                        f"{self._name}: host {report.worker} failed:\n{report.message.rstrip()}"
                    )
            self._require_word_of_hosts(reports, active_since)
            self._require_headway(reports)

    def _require_patience(self) -> str:
        """How long the job has been without a slice, in words."""
        waited = time.monotonic() - self._without_slice_since
        if waited > 3600 * self._settings.max_wait_hours:
            raise UserError(
                f"{self._name}: there was no slice in {duration(waited)}; allowed: max_wait_hours, "
                f"{self._settings.max_wait_hours:g}. Started again, the job goes on from its last "
                "checkpoint; another zone, or one that is not spot, may have slices"
            )
        return duration(waited)

    def _is_done(self) -> bool:
        return self._ask_store(self._job.is_done, False)

    def _newest_step(self) -> int:
        return self._ask_store(self._job.newest_step, 0)

    def _reports(self) -> list[HostReport]:
        return self._ask_store(lambda: self._job.slice_job.reports(self._attempt), [])

    def _ask_store(self, question: Callable[[], _T], unknown: _T) -> _T:
        """Asks a store that may not answer now, which is no reason to give a slice up."""
        try:
            return question()
        except Exception as trouble:
            self._tell(f"the store does not answer: {trouble}")
            return unknown

    def _require_word_of_hosts(self, reports: list[HostReport], active_since: float) -> None:
        """Finds the slice dead whose hosts say nothing, though the cloud says that it is active."""
        limit, now = self._settings.host_timeout_seconds, time.monotonic()
        num_hosts = max((report.num_hosts for report in reports), default=1)
        unheard = set(range(num_hosts)) - {report.worker for report in reports}
        if unheard and now - active_since > limit:
            who = f"host {min(unheard)} was not" if reports else "no host was"
            raise _SliceLost(f"{who} heard of in {limit:.0f} s")
        for report in reports:
            # By when a new word came, as this clock saw it: a host's own may jump.
            said_at, heard_at = self._heard.get(report.worker, (math.nan, now))
            if report.time != said_at:
                self._heard[report.worker] = (report.time, now)
            elif report.state != "done" and now - heard_at > limit:
                raise _SliceLost(
                    f"host {report.worker} has said nothing for {now - heard_at:.0f} s"
                )

    def _require_headway(self, reports: list[HostReport]) -> None:
        """Finds a slice useless whose processes are started again and again and get no further."""
        restarts = max((report.restarts for report in reports), default=0)
        if restarts - self._restarts_until_newest <= self._settings.max_restarts:
            return
        newest = self._newest_step()
        if newest <= self._newest:
            raise _SliceLost(
                f"its processes were started again {counted(self._settings.max_restarts, 'time')} "
                f"without a new checkpoint, and ended again (allowed: max_restarts)"
            )
        self._newest, self._restarts_until_newest = newest, restarts

    def _show(self, reports: list[HostReport]) -> None:
        """Passes on what is new in the first host's log, and which hosts had to start again."""
        for report in reports:
            if report.restarts > self._restarts.get(report.worker, 0):
                if report.restarts > max(self._restarts.values(), default=0):
                    self._count_lost_work()
                self._restarts[report.worker] = report.restarts
                self._tell(f"host {report.worker} started its process again")
        try:
            new = self._job.slice_job.read_log(self._attempt, 0, start=self._shown)
        except Exception:
            return
        # The last line may not be whole yet.
        lines = new[: new.rfind(b"\n") + 1]
        for line in lines.decode(errors="replace").splitlines():
            log.info("  %s", line)
        self._shown += len(lines)

    def _wait(self, seconds: float) -> None:
        """Waits, and stops the slice when the launcher is asked to stop meanwhile."""
        if self._asked_to_stop.wait(seconds):
            self._stop()

    def _stop(self) -> NoReturn:
        reports = self._reports()
        if any(report.state in ("running", "restarting") for report in reports):
            self._tell("asks the hosts to save a checkpoint")
            self._job.slice_job.ask_to_stop(self._attempt)
            self._let_hosts_end(reports)
        raise Interrupted(f"{self._name}: stopped; {GOES_ON} from step {self._newest_step()}")

    def _let_hosts_end(self, reports: list[HostReport]) -> None:
        """Waits until the hosts have saved, or tidied up; a second signal ends the wait."""
        deadline = time.monotonic() + self._settings.stop_seconds
        while not all(report.state in ("done", "stopped", "failed") for report in reports):
            if time.monotonic() > deadline or self._signals_seen >= 2:
                return
            time.sleep(min(2.0, self._settings.poll_seconds))
            reports = self._reports()
        self._show(reports)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(number: int, frame: Any) -> None:
            # A second signal waits for no checkpoint. The slice is deleted all the same.
            self._signals_seen += 1
            self._asked_to_stop.set()

        # A terminal that is closed sends SIGHUP, which `nohup` lets a process ignore.
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, ask)
        try:
            yield
        finally:
            # While the slice is deleted, nothing may interrupt.
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)

    def _tell(self, what: str, *, at_work: bool = True) -> None:
        log.info("%s: %s", self._name, what)
        with contextlib.suppress(Exception):
            state = {"attempt": self._attempt, "at_work": at_work, "message": what}
            write_json(self._job.slice_job.launcher_state, state | {"updated": time.time()})
