"""How far a run is: a bar on a terminal, lines in a log, two small files, TensorBoard's events.

Nothing here changes a result, so a change of it makes no run stale.
"""

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Float

from relu_sparsity.durations import duration
from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath, is_remote, read_if_whole, write_json, write_text
from relu_sparsity.flops import forward_flops_per_token
from relu_sparsity.hardware import HARDWARE
from relu_sparsity.metrics import METRICS
from relu_sparsity.params import RunConfig

log = logging.getLogger(__name__)

_OF_THE_MODEL = ("loss", "heldout_loss", "heldout_accuracy", "unit_use")


class InputTimer:
    """Takes batches, and tells how long the devices have waited for them.

    Attributes:
      seconds: So long since the start.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def next(self, batches: Iterator[np.ndarray], pending: Any) -> np.ndarray:
        """Takes the next batch.

        Args:
          batches: The batches.
          pending: What the devices were last asked for. A batch that comes before it is done
            keeps nothing waiting.
        """
        start = time.monotonic()
        rows = next(batches)
        arrays = (each for each in jax.tree.leaves(pending) if isinstance(each, jax.Array))
        if all(each.is_ready() for each in arrays):  # type: ignore[attr-defined]
            self.seconds += time.monotonic() - start
        return rows


class Progress:
    """Tells how far a run is.

    Args:
      name: How messages call the run.
      config: Its parameters; the widths are those of the units that are trained.
      throughput: The file of the speed over the steps.
      state: The file of what is known now, for `relu-sparsity status`. TensorBoard's events, where
        they are asked for, lie beside it.
      first_step: Updates done before.
      ngram_losses: The held-out losses of n-grams.

    Raises:
      UserError: TensorBoard's events are asked for and cannot be written.
    """

    def __init__(
        self,
        name: str,
        config: RunConfig,
        *,
        throughput: AnyPath,
        state: AnyPath,
        first_step: int,
        ngram_losses: Mapping[str, float],
    ) -> None:
        self._name = name
        self._training = config.training
        self._throughput = throughput
        self._state_file = state
        self._num_steps = config.training.num_steps
        self._tokens_per_step = config.training.global_batch_size * config.training.seq_len
        self._flops_per_token = 3 * forward_flops_per_token(
            emb_dim=config.model.emb_dim,
            mlp_dims=config.model.mlp_dims,
            seq_len=config.training.seq_len,
            vocab_size=config.tokenizer.vocab_size,
        )
        self._first_step = self._last_step = first_step
        self._last_time: float | None = None
        self._last_input = 0.0
        self._tokens_per_second = math.nan
        self._heldout = ""
        self._ngram_losses = dict(ngram_losses)
        # What was known of its model when it was stopped holds until the next line or evaluation.
        before = read_if_whole(state) if first_step else {}
        self._known: dict[str, Any] = {
            **{key: before[key] for key in _OF_THE_MODEL if key in before},
            "step": first_step,
            "num_steps": self._num_steps,
            "started": time.time(),
            "process": os.getpid(),
            **_where(),
        }
        self._bar: Any = None
        self._writes = jax.process_index() == 0
        self._events: Any = None
        if config.training.tensorboard and self._writes:
            self._events = _event_writer(state.parent / "tensorboard", first_step)
        if sys.stderr.isatty() and self._writes:
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
        self._write_state("training")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()
        at_end = self._known["step"] >= self._num_steps
        self._write_state("finished" if error is None and at_end else "stopped")

    def show_evaluation(self, loss: float, accuracy: float) -> None:
        """Takes the newest held-out numbers; the time of an evaluation is not the steps'."""
        self._heldout = f", held-out loss {loss:.4f}, accuracy {accuracy:.2%}"
        if self._ngram_losses:
            unigrams, bigrams = (
                self._ngram_losses[f"{each}_loss"] for each in ("unigram", "bigram")
            )
            self._heldout += f" (unigrams {unigrams:.4f}, bigrams {bigrams:.4f})"
        self._known |= {"heldout_loss": loss, "heldout_accuracy": accuracy, **self._ngram_losses}
        self._write_events({"heldout/loss": loss, "heldout/accuracy": accuracy})
        self._last_time = None

    def advance(
        self,
        step: int,
        loss: float,
        input_seconds: float,
        unit_use: Float[np.ndarray, "layers metrics"] | None = None,
    ) -> None:
        """Counts a step.

        Args:
          step: The step.
          loss: The newest that is known, in nats.
          input_seconds: How long the devices have waited for input since the start.
          unit_use: The newest that is known of `METRICS`, fractions 0 to 1.
        """
        done = step + 1
        self._known["step"] = done
        if self._last_time is None or done <= self._first_step + 2:
            # The first steps after a start, with metrics and without, compile: the speed is
            # measured from their end on.
            self._last_time, self._last_step = time.monotonic(), done
            self._last_input = input_seconds
        numbers = "" if math.isnan(loss) else f"loss {loss:.4f}"
        if done % self._training.log_every_steps == 0 or done == self._num_steps:
            elapsed = time.monotonic() - self._last_time
            if done > self._last_step and elapsed > 0:
                rate = (done - self._last_step) / elapsed
                left = (self._num_steps - done) / rate
                self._take_speed(done, rate * self._tokens_per_step, left)
                waiting = (input_seconds - self._last_input) / elapsed
                self._known["input_share"] = waiting
                numbers += (
                    f", {self._tokens_per_second:,.0f} tokens/s, {waiting:.0%} waiting for input, "
                    f"{duration(left)} left"
                )
            if not math.isnan(loss):
                self._known["loss"] = loss
            use: dict[str, list[float]] = {}
            if unit_use is not None:
                use = {
                    metric: list(map(float, by_layer))
                    for metric, by_layer in zip(METRICS, unit_use.T, strict=True)
                }
                self._known["unit_use"] = use
            self._write_state("training")
            speed = self._tokens_per_second
            self._write_events(
                {"training/loss": loss, "training/tokens_per_second": speed}
                | {
                    f"{metric}/layer{layer}": value
                    for metric, by_layer in use.items()
                    for layer, value in enumerate(by_layer)
                }
            )
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
            self._last_input = input_seconds
        if self._bar is not None:
            if not math.isnan(self._tokens_per_second):
                numbers = f"loss {loss:.4f}, {self._tokens_per_second:,.0f} tokens/s"
            self._bar.update(self._task, completed=done, numbers=numbers)

    def _take_speed(self, step: int, tokens_per_second: float, seconds_left: float) -> None:
        self._tokens_per_second = tokens_per_second
        hardware = HARDWARE.get(self._known["device_kind"])
        self._known |= {
            "tokens_per_second": tokens_per_second,
            "seconds_left": seconds_left,
            "seconds_between_lines": self._training.log_every_steps
            * self._tokens_per_step
            / tokens_per_second,
            "mfu": None
            if hardware is None
            else tokens_per_second
            * self._flops_per_token
            / (hardware.peak_flops * jax.device_count()),
        }
        if not self._writes:
            return
        # Written anew, as objects in a bucket cannot grow.
        is_new = not self._throughput.exists()
        before = "step,tokens_per_second\n" if is_new else self._throughput.read_text()
        write_text(self._throughput, f"{before}{step},{tokens_per_second:.0f}\n")

    def _write_events(self, values: Mapping[str, float]) -> None:
        """Writes what is known after so many updates; what is not yet is no number."""
        if self._events is not None:
            for tag, value in values.items():
                if not math.isnan(value):
                    self._events.add_scalar(tag, value, self._known["step"])
            self._events.flush()

    def _write_state(self, state: str) -> None:
        if self._writes:
            write_json(self._state_file, self._known | {"state": state, "updated": time.time()})


def _event_writer(folder: AnyPath, first_step: int) -> Any:
    if is_remote(folder):
        raise UserError(
            f"training.tensorboard: true: events are not written to a bucket ({folder}); allowed: "
            "false, or a store on a disk"
        )
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "training.tensorboard: true: tensorboardX is not installed; allowed: false, or install "
            "it: pip install -e '.[tensorboard]'"
        ) from None
    # What a killed training wrote after its last checkpoint comes again: TensorBoard hides it.
    purge_step = first_step and first_step + 1
    # Of two files that it opens in a second it would write the second over the first.
    suffix = f".{time.time_ns()}"
    return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)


def _where() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "tpu_slice": os.environ.get("RELU_SPARSITY_SLICE"),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
    }
