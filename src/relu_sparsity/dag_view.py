"""A workflow under way, for a person: a line for each running job, and how long the rest takes."""

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relu_sparsity.durations import duration
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params
from relu_sparsity.plan import make_plan
from relu_sparsity.runs import Run, resolve
from relu_sparsity.status import RunStatus, run_status

if TYPE_CHECKING:
    from rich.console import RenderableType

# A job that took less leaves no line of its own.
_LONG_SECONDS = 5.0
# What a training job takes beside its steps, and a job that does not train, until one has ended.
_STARTING_SECONDS, _SHORT_SECONDS = 6.0, 1.0


@dataclass
class TimeLeft:
    """How long the jobs take that are not done.

    Attributes:
      training: The seconds that the steps of training jobs are planned to take, by job.
      counts: How many jobs each rule has.
      slots: How many of them run at a time.
    """

    training: Mapping[str, float]
    counts: Mapping[str, int]
    slots: int
    _spent: dict[str, float] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)

    def finish(self, name: str, seconds: float) -> None:
        """Takes note of a job that is done."""
        self._spent[name] = seconds
        self._failed.discard(name)

    def fail(self, name: str) -> None:
        """Takes note of a job that has failed: nobody waits for it, unless it is tried again."""
        self._failed.add(name)

    def seconds(self, running: Mapping[str, tuple[float, float | None]]) -> float:
        """Until the last job ends.

        Args:
          running: For each running job the seconds since its start, and those until its end if it
            tells.
        """
        left = 0.0
        given_up = self._failed - running.keys()
        for name, planned in self.training.items():
            if name in self._spent or name in given_up:
                continue
            so_far, told = running.get(name, (0.0, None))
            expected = _STARTING_SECONDS + self._pace() * planned
            left += max(expected - so_far, 0.0) if told is None else told
        for rule, count in self.counts.items():
            planned = sum(_rule(name) == rule for name in self.training)
            spent = [
                seconds
                for name, seconds in self._spent.items()
                if _rule(name) == rule and name not in self.training
            ]
            mean = sum(spent) / len(spent) if spent else _SHORT_SECONDS
            failed = sum(_rule(name) == rule for name in given_up - self.training.keys())
            left += mean * max(count - planned - len(spent) - failed, 0)
        return left / self.slots

    def _pace(self) -> float:
        """How much longer steps take than they were planned to."""
        done = [name for name in self.training if name in self._spent]
        planned = sum(self.training[name] for name in done)
        spent = sum(max(self._spent[name] - _STARTING_SECONDS, 0.0) for name in done)
        return spent / planned if planned and spent else 1.0


def _rule(job: str) -> str:
    return job.partition("/")[0]


def _name(rule: str, wildcards: Mapping[str, str]) -> str:
    """As the table of jobs calls it."""
    parts = [f"seed{value}" if key == "seed" else value for key, value in wildcards.items()]
    return "/".join([rule, *parts])


@dataclass(frozen=True)
class Expected:
    """What a view needs to know of the workflow.

    Attributes:
      params: The scale.
      slots: How many training jobs run at a time.
      jobs: The jobs to run, of all that the scale has.
    """

    params: Params
    slots: int
    jobs: Collection[str]

    def time_left(self, counts: Mapping[str, int]) -> TimeLeft:
        """From the plan of what is stale now."""
        plan = make_plan(self.params, Layout(self.params.scale), sensitivity=True)
        training = {
            job.name: 3600 * job.cost.device_hours / plan.speed.num_devices
            for job in plan.jobs
            if job.cost is not None and job.name in self.jobs
        }
        return TimeLeft(training, counts, self.slots)

    def run(self, rule: str, wildcards: Mapping[str, str]) -> Run | None:
        """The run that a job trains; None of one that does not."""
        if rule != "train":
            return None
        layout = Layout(self.params.scale)
        return resolve(self.params, layout, wildcards["run"], int(wildcards["seed"]))


_expected: Expected | None = None


def expect(params: Params, slots: int, jobs: Iterable[tuple[str, Mapping[str, str]]]) -> None:
    """Tells the view of this process what the workflow is about.

    Args:
      params: The scale.
      slots: How many training jobs run at a time.
      jobs: The rule and the wildcards of each job to run.
    """
    global _expected
    _expected = Expected(params, max(1, slots), {_name(*job) for job in jobs})


@dataclass(frozen=True)
class _Running:
    name: str
    message: str
    since: float
    run: Run | None

    def status(self) -> RunStatus | None:
        """How far its training is; None where it does not train, or not yet."""
        told = None if self.run is None else run_status(self.run, {})
        return told if told is not None and told.state == "training" else None


class DagView:
    """Shows it on standard error: live in a terminal, else a line for each job that takes long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live

        self._clock = clock
        self._console = Console(file=sys.stderr, highlight=False)
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}
        self._began = 0.0
        self._counts: Mapping[str, int] = {}
        self._num_jobs, self._num_done = 0, 0
        self._time_left: TimeLeft | None = None
        self._live = Live(
            console=self._console,
            get_renderable=self._picture,
            refresh_per_second=1,
            transient=True,
        )

    def say(self, text: str) -> None:
        """Shows a text above all that is live."""
        if text:
            self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, counts: Mapping[str, int]) -> None:
        """Begins with so many jobs of each rule to do."""
        self._counts, self._num_jobs = counts, sum(counts.values())
        self._began = self._clock()
        if self._console.is_terminal:
            self._live.start()

    def start(self, job: int, rule: str, wildcards: Mapping[str, str], message: str | None) -> None:
        """A job starts."""
        with self._lock:
            if self._time_left is None and _expected is not None:
                self._time_left = _expected.time_left(self._counts)
            run = None if _expected is None else _expected.run(rule, wildcards)
            name = _name(rule, wildcards)
            self._running[job] = _Running(name, message or rule, self._clock(), run)

    def finish(self, job: int) -> None:
        """A job is done."""
        with self._lock:
            done = self._running.pop(job, None)
            if done is None:
                return
            self._num_done += 1
            seconds = self._clock() - done.since
            if self._time_left is not None:
                self._time_left.finish(done.name, seconds)
            line = f"{done.message}: done in {duration(seconds)}"
            shown = seconds >= _LONG_SECONDS
            if not self._console.is_terminal:
                line += f"; {self._over_all()}"
                # In a terminal the last line tells.
                shown = shown or self._num_done == self._num_jobs
        # What is live is drawn with the lock held.
        if shown:
            self.say(line)

    def fail(self, job: int) -> None:
        """A job has failed. If it is tried again, it starts anew."""
        with self._lock:
            failed = self._running.pop(job, None)
            if failed is not None and self._time_left is not None:
                self._time_left.fail(failed.name)

    def close(self) -> None:
        """Leaves what was said, and a last line."""
        self._live.stop()
        if self._num_jobs and self._console.is_terminal:
            self.say(self._over_all())
        self._num_jobs = 0

    def _picture(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            table = Table.grid(padding=(0, 3))
            for job in self._running.values():
                table.add_row(*(Text(cell, no_wrap=True) for cell in self._cells(job)))
            return Group(table, Text(self._over_all(), style="bold", no_wrap=True))

    def _cells(self, job: _Running) -> Iterator[str]:
        yield f"  {job.message}"
        yield duration(self._clock() - job.since)
        told = job.status()
        if told is not None:
            yield f"step {told.step:,} of {told.num_steps:,}"
            yield "" if told.loss is None else f"loss {told.loss:.3f}"
            yield "" if told.seconds_left is None else f"{duration(told.seconds_left)} left"

    def _over_all(self) -> str:
        took = duration(self._clock() - self._began)
        counted = f"{self._num_done} of {self._num_jobs} jobs done in {took}"
        if self._time_left is None or self._num_done == self._num_jobs:
            return counted
        now = self._clock()
        running = {}
        for job in self._running.values():
            told = job.status()
            running[job.name] = (now - job.since, None if told is None else told.seconds_left)
        return f"{counted}, about {duration(self._time_left.seconds(running))} left"
