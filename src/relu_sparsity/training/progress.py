"""How far a run is: a bar on a terminal, lines in a log, the speed in a file.

Nothing here changes a result, so a change of it makes no run stale.
"""

import csv
import logging
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from relu_sparsity.params import TrainingParams

log = logging.getLogger(__name__)


class Progress:
    """A progress bar on a terminal, plain lines in a log, and the speed in a file."""

    def __init__(
        self, name: str, training: TrainingParams, throughput: Path, first_step: int
    ) -> None:
        self._name = name
        self._training = training
        self._throughput = throughput
        self._num_steps = training.num_steps
        self._tokens_per_step = training.global_batch_size * training.seq_len
        self._first_step = self._last_step = first_step
        self._last_time: float | None = None
        self._tokens_per_second = math.nan
        self._heldout = ""
        self._bar: Any = None
        if sys.stderr.isatty() and jax.process_index() == 0:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[numbers]}"),
                progress.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(
                name, total=self._num_steps, completed=first_step, numbers=""
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        training = self._training
        log.info(
            "%s: %d steps of %d x %d tokens (global batch; %d per process, %d per device) on "
            "%d %s device(s)",
            self._name,
            self._num_steps - self._first_step,
            training.global_batch_size,
            training.seq_len,
            training.global_batch_size // jax.process_count(),
            training.global_batch_size // jax.device_count(),
            jax.device_count(),
            jax.default_backend(),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show_evaluation(self, loss: float, accuracy: float) -> None:
        """Takes the newest held-out numbers; the time of an evaluation is not the steps'."""
        self._heldout = f", held-out loss {loss:.4f}, accuracy {accuracy:.2%}"
        self._last_time = None

    def advance(self, step: int, loss: float) -> None:
        """Counts a step; `loss` is the newest that is known, in nats."""
        done = step + 1
        if self._last_time is None:
            # The first step after a start compiles: the speed is measured from its end on.
            self._last_time, self._last_step = time.monotonic(), done
        numbers = "" if math.isnan(loss) else f"loss {loss:.4f}"
        if done % self._training.log_every_steps == 0 or done == self._num_steps:
            elapsed = time.monotonic() - self._last_time
            if done > self._last_step and elapsed > 0:
                rate = (done - self._last_step) / elapsed
                self._tokens_per_second = rate * self._tokens_per_step
                self._write_throughput(done)
                left = (self._num_steps - done) / rate
                numbers += f", {self._tokens_per_second:,.0f} tokens/s, {_duration(left)} left"
            if self._bar is None:
                log.info(
                    "%s: step %d of %d, %s%s",
                    self._name,
                    done,
                    self._num_steps,
                    numbers,
                    self._heldout,
                )
            self._last_time, self._last_step = time.monotonic(), done
        if self._bar is not None:
            if not math.isnan(self._tokens_per_second):
                numbers = f"loss {loss:.4f}, {self._tokens_per_second:,.0f} tokens/s"
            self._bar.update(self._task, completed=done, numbers=numbers)

    def _write_throughput(self, step: int) -> None:
        if jax.process_index() != 0:
            return
        path = self._throughput
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(("step", "tokens_per_second"))
            writer.writerow((step, f"{self._tokens_per_second:.0f}"))
            file.flush()
            os.fsync(file.fileno())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
