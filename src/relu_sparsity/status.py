"""How far every run of a scale is, and where it runs. Nothing is changed."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil

from relu_sparsity.counts import counted
from relu_sparsity.durations import duration
from relu_sparsity.files import read_if_whole
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.params import Params
from relu_sparsity.provenance import read_record
from relu_sparsity.runs import Run, resolve_all
from relu_sparsity.store import RunStore
from relu_sparsity.tpu.slice_job import SliceJob
from relu_sparsity.tpu.usage import Usage

State = Literal["finished", "training", "silent", "stopped", "waiting", "not started"]

# A run that has not said anything for so long has probably been killed.
_SILENT_SECONDS = 600.0
# So close to the loss of unigrams (nats) a model has learned no more than which tokens are common.
UNIGRAM_LEVEL = 0.1


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
      run: Its name.
      seed: Its seed.
      state: `silent` has been training, and was killed or has not said anything for ten minutes;
        `waiting` waits for a slice, or for its hosts.
      step: Updates done.
      num_steps: Updates in all.
      loss: The newest training loss, in nats.
      heldout_loss: The newest held-out loss, in nats.
      unigram_loss: The held-out loss of how often each token occurs, in nats.
      unit_use: The newest of a batch by metric, layer by layer: fractions from 0 to 1.
      tokens_per_second: Over the last steps, by all devices together.
      input_share: The share of the last steps' time in which the first host's devices waited for
        input.
      mfu: Model FLOP/s as a fraction of the devices' peak; None where the peak is not known.
      seconds_left: Until the end, at this speed.
      where: Host, SLURM job or slice, and devices.
      seconds_since: Since it last said something.
      message: What its launcher says.
      usage: What its slices have used so far; None where it ran on none.
    """

    run: str
    seed: int
    state: State
    step: int
    num_steps: int
    loss: float | None = None
    heldout_loss: float | None = None
    unigram_loss: float | None = None
    unit_use: dict[str, list[float]] | None = None
    tokens_per_second: float | None = None
    input_share: float | None = None
    mfu: float | None = None
    seconds_left: float | None = None
    where: str = ""
    seconds_since: float | None = None
    message: str = ""
    usage: Usage | None = None


def all_status(params: Params) -> list[RunStatus]:
    """The status of every run of a scale, as the parameters describe it now.

    Of those that are only made when asked for, those that have begun.
    """
    jobs = _slice_jobs()
    states = {name: read_if_whole(job.launcher_state) for name, job in jobs.items()}
    launchers = {name: state for name, state in states.items() if state}
    told = (
        replace(run_status(run, launchers), usage=_usage(run.store, jobs))
        for run in resolve_all(params, Layout(params.scale))
    )
    return [
        each
        for each in told
        if each.state != "not started" or not params.runs[each.run].sensitivity
    ]


def watch(params: Params, every: float, *, use: bool = False) -> None:
    """Shows the status in the terminal until Ctrl-C.

    Args:
      params: The scale.
      every: Seconds between two looks.
      use: What each layer uses, in the place of speed and machine.
    """
    from rich.live import Live
    from rich.text import Text

    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False) as live:
        while True:
            lines = "\n".join(as_lines(all_status(params), use=use))
            live.update(Text(lines, no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(every)


def _slice_jobs() -> dict[str, SliceJob]:
    """The jobs on slices, by the slice's name."""
    folder = store_root() / "jobs"
    return {path.name: SliceJob(path) for path in folder.iterdir()} if folder.exists() else {}


def _usage(store: RunStore, jobs: dict[str, SliceJob]) -> Usage | None:
    """What a run has used, its masks' replays included."""
    suffix = store.folder.name[:8]
    uses = [Usage.of(use) for name, job in jobs.items() if name.endswith(suffix)
            for use in job.usage().values()]  # fmt: skip
    return Usage.sum(uses) if uses else None


def run_status(resolved: Run, launchers: dict[str, dict[str, Any]]) -> RunStatus:
    """The status of one run, as its own process tells it, and what launchers say, by slice."""
    run, seed, store = resolved.name, resolved.seed, resolved.store
    num_steps = resolved.config.training.num_steps
    known = read_if_whole(store.progress)
    shown = (
        "loss", "heldout_loss", "unigram_loss", "unit_use", "tokens_per_second", "input_share",
        "mfu",
    )  # fmt: skip
    told: dict[str, Any] = {key: known.get(key) for key in shown}
    where = _where(known)
    record = read_record(resolved.job.record)
    # After `dvc pull` in a clone, or where the store was freed, the results alone tell.
    has_results = record is not None and record.fingerprint == resolved.job.fingerprint.hash
    if has_results or store.is_finished():
        return RunStatus(run, seed, "finished", num_steps, num_steps, where=where, **told)
    launcher = _newest_launcher(store, launchers)
    step = store.last_checkpoint() or 0
    if not known:
        state: State = "waiting" if launcher else "stopped" if step else "not started"
        return RunStatus(
            run, seed, state, step, num_steps, message=launcher.get("message", ""),
            seconds_since=_age(launcher),
        )  # fmt: skip
    age = _age(known)
    assert age is not None
    state = "stopped" if known["state"] == "stopped" else "training"
    # The lines of a slow run come seldom: it may be silent for a few of them.
    usual = known.get("seconds_between_lines", 0.0)
    if state == "training" and (age > max(_SILENT_SECONDS, 3 * usual) or _was_killed(known)):
        state = "silent"
    if state != "training" and (_age(launcher) or age) < age:
        state = "waiting"
    left = known.get("seconds_left")
    return RunStatus(
        run,
        seed,
        state,
        step if state in ("stopped", "waiting") else known["step"],
        num_steps,
        seconds_left=left if state == "training" else None,
        where=where,
        seconds_since=age,
        message=launcher.get("message", "") if state == "waiting" else "",
        **told,
    )


def _was_killed(known: dict[str, Any]) -> bool:
    """Whether the training process was one of this machine, and is there no more."""
    return known["host"] == socket.gethostname() and not psutil.pid_exists(known["process"])


def _newest_launcher(store: RunStore, launchers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    suffix = store.folder.name[:8]
    found = [told for name, told in launchers.items() if name.endswith(suffix) and told["at_work"]]
    return max(found, key=lambda told: told["updated"], default={})


def _age(told: dict[str, Any]) -> float | None:
    return max(0.0, time.time() - told["updated"]) if told else None


def _where(known: dict[str, Any]) -> str:
    if not known:
        return ""
    place = known["tpu_slice"] or known["host"]
    if known["slurm_job"]:
        place = f"SLURM job {known['slurm_job']}, {place}"
    hosts = f" on {known['num_processes']} hosts" if known["num_processes"] > 1 else ""
    return f"{place}: {known['num_devices']} {known['device_kind']}{hosts}"


def as_lines(statuses: Sequence[RunStatus], *, use: bool = False) -> Iterator[str]:
    """A table for people to read.

    Args:
      statuses: The runs.
      use: What each layer uses, in the place of speed and machine.
    """
    from tabulate import tabulate

    columns = _USE_COLUMNS if use else _COLUMNS
    rows = [[column(each) for column in columns.values()] for each in statuses]
    yield tabulate(rows, list(columns), tablefmt="plain", disable_numparse=True)
    states = [each.state for each in statuses]
    by_state = (f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    yield f"\n{counted(len(states), 'run')}: {', '.join(by_state)}"
    used = [each.usage for each in statuses if each.usage is not None]
    if used:
        yield f"Used so far: {Usage.sum(used)}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _heldout(told: RunStatus) -> str:
    if told.heldout_loss is None:
        return ""
    loss = f"{told.heldout_loss:.4f}"
    if told.unigram_loss is not None and told.heldout_loss > told.unigram_loss - UNIGRAM_LEVEL:
        return f"{loss}, as unigrams"
    return loss


def _use(told: RunStatus, metric: str) -> str:
    by_layer = (told.unit_use or {}).get(metric, [])
    return " ".join(f"{100 * share:.0f}" for share in by_layer)


_Columns = dict[str, Callable[[RunStatus], str]]
_FIRST_COLUMNS: _Columns = {
    "run": lambda told: told.run,
    "seed": lambda told: str(told.seed),
    "state": lambda told: told.state,
    "step": lambda told: f"{told.step:,} of {told.num_steps:,}",
    "loss": lambda told: _number(told.loss, ".4f"),
    "held-out": _heldout,
}
_COLUMNS: _Columns = _FIRST_COLUMNS | {
    "tokens/s": lambda told: _number(told.tokens_per_second, ",.0f"),
    "waits for input": lambda told: _number(told.input_share, ".0%"),
    "MFU": lambda told: _number(told.mfu, ".1%"),
    "left": lambda told: "" if told.seconds_left is None else duration(told.seconds_left),
    "heard": lambda told: (
        "" if told.seconds_since is None else f"{duration(told.seconds_since)} ago"
    ),
    "where": lambda told: told.message or told.where,
}
_USE_COLUMNS: _Columns = _FIRST_COLUMNS | {
    "token use by layer (%)": lambda told: _use(told, "token_use"),
    "batch use by layer (%)": lambda told: _use(told, "batch_use"),
}
