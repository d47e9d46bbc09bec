"""What the workflow would run, why, and what it would cost. Nothing is deleted or started."""

import contextlib
import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from etils import epath

from relu_sparsity.counts import counted
from relu_sparsity.durations import duration
from relu_sparsity.files import read_json
from relu_sparsity.flops import described_flops_per_token, training_flops
from relu_sparsity.interventions import used_widths
from relu_sparsity.jobs import Job, job_table
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.paper.history import load_mask
from relu_sparsity.params import MASKS, Params, RunConfig
from relu_sparsity.provenance import Digests
from relu_sparsity.runs import Run, resolve_all
from relu_sparsity.workflow import reasons_to_run, remembered_digests


@dataclass(frozen=True)
class Cost:
    """What training takes.

    Attributes:
      steps: Updates.
      tokens: Tokens trained on.
      flops: Model FLOPs, those of the evaluations among them.
      device_hours: The estimated hours, summed over the devices.
    """

    steps: int
    tokens: int
    flops: float
    device_hours: float

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps, {self.tokens:.2g} tokens, {self.flops:.2g} FLOPs, about "
            f"{self.device_hours:.2g} device-hours"
        )


@dataclass(frozen=True)
class Speed:
    """How fast training is.

    Attributes:
      flops_per_device: Model FLOP/s of a device.
      num_devices: How many devices share a run.
      measured_runs: How many runs of the scale it was measured on; 0 where it is params.yaml's.
    """

    flops_per_device: float
    num_devices: int
    measured_runs: int

    def __str__(self) -> str:
        if not self.measured_runs:
            return "params.yaml's speed, not measured"
        return f"speed measured on {counted(self.measured_runs, 'run')} in the store"


@dataclass(frozen=True)
class PlannedJob:
    """A job that would run.

    Attributes:
      name: The rule, and what of: `train/baseline/seed0`.
      action: What it does.
      reasons: Why, one line each.
      cost: What its training takes; None where it trains nothing.
    """

    name: str
    action: str
    reasons: list[str] = field(default_factory=list)
    cost: Cost | None = None


@dataclass(frozen=True)
class Plan:
    """All that would run at a scale, in order."""

    scale: str
    speed: Speed
    jobs: list[PlannedJob]

    def total(self) -> Cost:
        """The cost of all jobs."""
        costs = [job.cost for job in self.jobs if job.cost is not None]
        return Cost(
            sum(cost.steps for cost in costs),
            sum(cost.tokens for cost in costs),
            sum(cost.flops for cost in costs),
            sum(cost.device_hours for cost in costs),
        )

    def lines(self) -> Iterator[str]:
        """The plan in words: first what is trained, then all else by its reasons."""
        if not self.jobs:
            yield f"Scale {self.scale}: everything is there, nothing would run."
            return
        yield f"Scale {self.scale}: {counted(len(self.jobs), 'job')} would run."
        by_reasons: dict[tuple[str, ...], list[PlannedJob]] = {}
        for job in self.jobs:
            if job.action == "make":
                by_reasons.setdefault(tuple(job.reasons), []).append(job)
                continue
            yield ""
            yield f"{job.name}: {job.action}" + (f", {job.cost}" if job.cost else "")
            yield from (f"  why: {reason}" for reason in job.reasons)
        for reasons, jobs in by_reasons.items():
            yield ""
            yield _by_rule(jobs)
            yield from (f"  why: {reason}" for reason in reasons)
        yield ""
        yield f"In all {self.total()}"
        yield (
            f"at {self.speed.flops_per_device:.2g} FLOP/s per device ({self.speed}), "
            f"{self.speed.num_devices} device(s) per run."
        )

    def summary(self) -> Iterator[str]:
        """How much it is, and how long it takes."""
        if not self.jobs:
            yield from self.lines()
            return
        training = sum(job.cost is not None for job in self.jobs)
        total = self.total()
        seconds = 3600 * total.device_hours / self.speed.num_devices
        yield (
            f"Scale {self.scale}: {counted(len(self.jobs), 'job')} would run; {training} of them "
            f"train, {total.steps:,} steps in all."
        )
        yield f"About {duration(seconds)} of training, one run after the other ({self.speed});"
        yield "starting, compiling and drawing come on top."

    def as_json(self) -> dict[str, Any]:
        """As values that JSON knows."""
        return asdict(self) | {"total": asdict(self.total())}


def make_plan(params: Params, layout: Layout, *, sensitivity: bool = False) -> Plan:
    """Finds out what would run, from what is there.

    Args:
      params: The scale.
      layout: Where its results are.
      sensitivity: Also what `snakemake sensitivity` would run.

    Raises:
      UserError: A file that the parameters name is missing.
    """
    speed = measured_speed(params)
    digests = remembered_digests(layout)
    runs = {run.job.name: run for run in resolve_all(params, layout)}
    planned: dict[str, PlannedJob] = {}
    jobs = {
        name: job
        for name, job in job_table(params, layout).items()
        if sensitivity or not job.on_request
    }
    for name, reasons in reasons_to_run(jobs, digests).items():
        of_run = runs.get(name.replace("mask/", "train/", 1))
        action, cost = _work(jobs[name], of_run, planned, speed, digests)
        planned[name] = PlannedJob(name, action, reasons, cost)
    return Plan(params.scale, speed, list(planned.values()))


def measured_speed(params: Params) -> Speed:
    """The median speed of the scale's runs in the store, or that of params.yaml."""
    speeds = []
    for path in (store_root() / "runs" / params.scale).glob("*/*/*/finished/run.json"):
        # For an estimate, what an older version or a power cut has left is passed over.
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
            speeds.append(_speed(path, path.parents[1] / "throughput.csv"))
    if speeds:
        flops, devices = zip(*speeds, strict=True)
        return Speed(statistics.median(flops), statistics.median_low(devices), len(speeds))
    return Speed(params.resources.flops_per_device, params.resources.num_devices, 0)


def _speed(description: epath.Path, throughput: epath.Path) -> tuple[float, int]:
    """FLOP/s of a device in a trained run, and how many devices it had."""
    described = read_json(description)
    rows = csv.DictReader(throughput.read_text().splitlines())
    tokens = statistics.median(float(row["tokens_per_second"]) for row in rows)
    per_token = described_flops_per_token(described["config"], described["trained_mlp_dims"])
    devices = described["environment"]["num_devices"]
    return 3 * tokens * per_token / devices, devices


def _by_rule(jobs: Sequence[PlannedJob]) -> str:
    """Names a few jobs of a rule, and counts many."""
    rules: dict[str, list[str]] = {}
    for job in jobs:
        rules.setdefault(job.name.partition("/")[0], []).append(job.name)
    parts = [
        ", ".join(names) if len(names) < 4 else f"{rule} ({len(names)})"
        for rule, names in rules.items()
    ]
    return ", ".join(parts)


def _work(
    job: Job, run: Run | None, planned: dict[str, PlannedJob], speed: Speed, digests: Digests
) -> tuple[str, Cost | None]:
    if run is None:
        return "make", None
    if job.rule == "mask":
        return _mask_work(run, planned, speed)
    if run.store.is_finished() or not job.problems(digests):
        return "export from the store", None
    first_step = run.store.last_checkpoint()
    action = f"resume at step {first_step}" if first_step else "train"
    if not first_step:
        first_step = run.config.mask.step if run.intervention in MASKS else 0
    num_steps = run.config.training.num_steps
    return action, _cost(run.config, _widths(run, digests), speed, first_step, num_steps)


def _mask_work(run: Run, planned: dict[str, PlannedJob], speed: Speed) -> tuple[str, Cost | None]:
    parent, step = run.parent, run.config.mask.step
    assert parent is not None
    trained = planned.get(parent.job.name)
    if parent.store.has_branch(step) or (trained and trained.cost):
        return "make", None
    cost = _cost(parent.config, parent.config.model.mlp_dims, speed, 0, step)
    return f"train {parent.name} to step {step} again, as the store has no checkpoint of it", cost


def _widths(run: Run, digests: Digests) -> Sequence[int]:
    """The widths that are trained, if they are known already; till then, at most the parent's."""
    decided_by = run.intervention_job
    if run.parent is None or decided_by is None:
        return run.config.model.mlp_dims
    if decided_by.problems(digests):
        return _widths(run.parent, digests)
    if run.intervention not in MASKS:
        return read_json(run.intervention_file)["mlp_dims"]
    if not run.config.mask.compact:
        return run.config.model.mlp_dims
    kept = load_mask(run.intervention_file, run.config.model.num_layers)
    return used_widths(kept, multiple_of=run.config.mask.width_multiple_of)


def _cost(
    config: RunConfig, mlp_dims: Sequence[int], speed: Speed, first_step: int, last_step: int
) -> Cost:
    steps = last_step - first_step
    tokens = steps * config.training.global_batch_size * config.training.seq_len
    flops = training_flops(config, mlp_dims, first_step=first_step, last_step=last_step)
    return Cost(steps, tokens, flops, flops / speed.flops_per_device / 3600)
