"""Trains one run, from nothing, from its own checkpoint or from its parent's, to the end."""

import logging
import math
from functools import cached_property

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int32

from relu_sparsity import distributed
from relu_sparsity.data.pipeline import heldout_batches, merge_states, train_batches
from relu_sparsity.errors import GOES_ON, Interrupted, UserError
from relu_sparsity.files import AnyPath
from relu_sparsity.metrics import METRICS
from relu_sparsity.model import KeptUnits, masks_by_stack
from relu_sparsity.sparsity import UnitUse, mean_use
from relu_sparsity.training import watchdog
from relu_sparsity.training.checkpoints import Checkpoint, Checkpoints
from relu_sparsity.training.compaction import Compaction
from relu_sparsity.training.history import History, write_units
from relu_sparsity.training.job import TrainingJob
from relu_sparsity.training.progress import InputTimer, Progress
from relu_sparsity.training.step import (
    StepOutput,
    TrainState,
    learning_rates,
    make_mesh,
    make_steps,
)

log = logging.getLogger(__name__)

# Of so few steps every one runs the program that measures: to compile one that does not takes
# longer than it would save.
_STEPS_OF_ONE_PROGRAM = 1000


def train(job: TrainingJob, *, until: int | None = None, num_devices: int | None = None) -> History:
    """Trains to the end and returns the history.

    Args:
      job: The run.
      until: Stop once the branch at this step is written; None trains to the end.
      num_devices: How many of the devices share a batch; None takes all.

    Raises:
      UserError: The loss or a gradient is not finite, or the devices do not fit the batch.
      Interrupted: SIGTERM or SIGINT came; a checkpoint is saved.
    """
    training = job.config.training
    num_steps = training.num_steps
    watchdog.begin()
    run = _Training(job, num_devices)
    first_step = run.restore()
    # Dispatch a step, then read the one before: the host reads numbers while the device is at the
    # next step. Whatever needs the whole past first reads what is still out.
    with run.show_progress(first_step) as progress, distributed.stop_signals() as stop_requested:
        for step in range(first_step, num_steps + 1):
            at_end = step == num_steps
            eval_due = at_end or step % training.eval_every_steps == 0
            save_due = at_end or step % training.checkpoint_every_steps == 0
            branch = job.branches.get(step)
            stop = stop_requested(step)
            if eval_due or save_due or stop or branch is not None:
                run.reader.read_pending()
            if stop:
                if step > first_step:
                    run.save(run.checkpoints, step)
                run.checkpoints.close()
                raise Interrupted(f"{job.name}: stopped at step {step} of {num_steps}; {GOES_ON}")
            if eval_due and step not in run.history.eval_steps:
                progress.show_evaluation(*run.evaluate(step))
            if save_due and step > first_step:
                run.save(run.checkpoints, step)
            if at_end:
                break
            if branch is not None:
                run.write_branch(branch, step)
                if step == until:
                    break
            run.take(step)
            newest_use = run.history.unit_use[-1] if run.history.unit_use else None
            progress.advance(step, run.reader.loss, run.input.seconds, newest_use)
            watchdog.take_step()
    run.checkpoints.close()
    watchdog.end()
    return run.history


def compaction(job: TrainingJob) -> Compaction | None:
    """The part of a masked model that a run trains; None where it trains the whole model."""
    mask = job.config.mask
    if job.unit_masks is None or not mask.compact:
        return None
    return Compaction(job.unit_masks, multiple_of=mask.width_multiple_of)


def device_kind_of(branch: AnyPath) -> str | None:
    """The kind of device that made a branch; None where it does not tell."""
    path = branch / "device_kind.txt"
    return path.read_text().strip() if path.exists() else None


class _Training:
    """A run under way: its compiled steps, its data, its state and its history."""

    def __init__(self, job: TrainingJob, num_devices: int | None) -> None:
        config, training = job.config, job.config.training
        self._job = job
        mesh = make_mesh(num_devices)
        self._by_data = NamedSharding(mesh, PartitionSpec("data"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        # A masked model may be trained without its masked units; a checkpoint holds all of them.
        self._part = compaction(job)
        self._trained = config.with_mlp_dims(self._part.mlp_dims) if self._part else config
        if self._part is not None:
            log.info("%s: trains only the units that are left, %s", job.name, self._part.mlp_dims)
        vocab_size = job.tokenizer.vocab_size
        self._steps = make_steps(self._trained, vocab_size=vocab_size, mesh=mesh)
        self._whole_state = (
            make_steps(config, vocab_size=vocab_size, mesh=mesh).state
            if self._part
            else self._steps.state
        )
        self._rates = learning_rates(config.optimizer, training.num_steps)
        self._batches = train_batches(
            job.train_documents,
            job.tokenizer,
            seq_len=training.seq_len,
            global_batch_size=training.global_batch_size,
            num_shards=config.data.num_shards,
            seed=job.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            read_threads=config.data.read_threads,
        )
        self._kept_units = jax.device_put(self._masks(), self._replicated)
        every = config.metrics.metrics_every_steps
        self._measured = {*range(0, training.num_steps, every), training.num_steps - 1}
        self._one_program = training.num_steps <= _STEPS_OF_ONE_PROGRAM
        self.input = InputTimer()
        self.checkpoints = Checkpoints(job.checkpoints)
        self._state: TrainState | None = None
        self._untrained: TrainState | None = None
        self._set_history(History(config.model.mlp_dims))

    @cached_property
    def _heldout(self) -> list[Int32[np.ndarray, "batch seq"]]:
        training = self._job.config.training
        return heldout_batches(
            self._job.heldout_documents,
            self._job.tokenizer,
            seq_len=training.seq_len,
            num_sequences=training.eval_sequences,
            batch_size=training.global_batch_size,
            read_threads=self._job.config.data.read_threads,
        )

    def _masks(self) -> list[KeptUnits] | None:
        """The masks, stack by stack."""
        if self._job.unit_masks is None:
            return None
        if self._part is not None:
            return self._part.kept_units()
        return masks_by_stack(self._job.unit_masks, self._job.config.model.mlp_dims)

    def _set_history(self, history: History) -> None:
        self.history = history
        self.reader = _Reader(self._job, history, self._rates, self._measured)

    @property
    def state(self) -> TrainState:
        """What is trained, after the newest step."""
        assert self._state is not None
        return self._state

    def show_progress(self, first_step: int) -> Progress:
        """Tells how far the run is."""
        return Progress(
            self._job.name,
            self._trained,
            throughput=self._job.throughput,
            state=self._job.progress,
            first_step=first_step,
            ngram_losses=self._job.ngram_losses,
        )

    def restore(self) -> int:
        """Starts from its own checkpoint, its parent's or from nothing; returns the first step."""
        job, num_steps = self._job, self._job.config.training.num_steps
        restored = self.checkpoints.restore_latest(self._whole_state)
        if restored is not None:
            log.info("%s: resumes at step %d of %d", job.name, restored.step, num_steps)
        elif job.start is not None:
            restored = self._restore_parent(*job.start)
            log.info("%s: branches off at step %d of %d", job.name, restored.step, num_steps)
        if restored is None:
            self._state = self._steps.init(job.seed)
            return 0
        self._take_over(restored)
        return restored.step

    def _restore_parent(self, folder: AnyPath, step: int) -> Checkpoint:
        made_on, here = device_kind_of(folder), jax.devices()[0].device_kind
        if made_on is not None and made_on != here:
            log.warning(
                "%s: goes on at step %d, on %s, from what its parent has become on %s: numbers "
                "differ between devices, so this is not the run that one device would give; "
                "run.json records both",
                self._job.name, step, here, made_on,
            )  # fmt: skip
        parents = Checkpoints(folder / "checkpoint")
        restored = parents.restore_latest(self._whole_state)
        parents.close()
        if restored is None:
            raise UserError(f"{folder}: has no checkpoint; delete the folder to make it again")
        return restored

    def _take_over(self, checkpoint: Checkpoint) -> None:
        history = History.from_arrays(self._job.config.model.mlp_dims, checkpoint.history)
        self._set_history(history)
        self._batches.set_state(checkpoint.data_state)
        self._take_state(checkpoint.state)

    def _take_state(self, whole: TrainState) -> None:
        if self._part is None:
            self._state = whole
            return
        self._untrained = jax.device_get(whole)
        part = self._part.take(self._untrained, self._steps.state)
        self._state = jax.device_put(part, self._replicated)

    def save(self, to: Checkpoints, step: int) -> None:
        """Saves all that the run needs to go on at `step`."""
        saved = self.state
        if self._part is not None:
            saved = self._part.put_back(jax.device_get(saved), self._untrained)
        # Any number of processes can go on from the positions of all of them.
        positions = merge_states(distributed.gather(self._batches.get_state()))
        to.save(Checkpoint(step, saved, positions, self.history.to_arrays()))

    def take(self, step: int) -> None:
        """Dispatches a step, and reads the one before."""
        at_start = self._job.start is not None and step == self._job.start[1]
        output = self._update(step, measure=step in self._measured or at_start)
        self.reader.read_pending()
        self.reader.pend(step, output)

    def _update(self, step: int, *, measure: bool) -> StepOutput:
        tokens = self._put(self.input.next(self._batches, self.reader.pending))
        measures = measure or self._one_program
        run_step = self._steps.train_and_measure if measures else self._steps.train
        self._state, output = run_step(self.state, tokens, self._rates[step], self._kept_units)
        return output

    def write_branch(self, folder: AnyPath, step: int) -> None:
        """Writes what another run needs to branch off: a checkpoint, and the units used at `step`.

        The units are of a step that is taken on trial and then taken back, so that the run itself
        goes on with the same programs, and to the same bits, whether others branch off or not.
        """
        branch = Checkpoints(folder / "checkpoint", max_to_keep=None)
        if step not in distributed.ask_leader(branch.steps):
            self.save(branch, step)
        output = self._update(step, measure=True)
        units = self.reader.units(output)
        # It also waits for a save that goes on beside: the units say that the branch is whole.
        restored = branch.restore(step, self._whole_state)
        branch.close()
        if distributed.is_leader():
            (folder / "device_kind.txt").write_text(jax.devices()[0].device_kind + "\n")
            write_units(folder / "units.npz", {step: units})
        self._batches.set_state(restored.data_state)
        self._take_state(restored.state)

    def evaluate(self, step: int) -> tuple[float, float]:
        """Evaluates all held-out sequences; returns the mean loss (nats) and accuracy.

        Each process feeds its part of a batch.
        """
        batch_size = self._job.config.training.global_batch_size
        local = batch_size // jax.process_count()
        own = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
        outputs = []
        for rows in self._heldout:
            # Every batch has one shape, so there is one program; the padding is cut off again.
            padding = [(0, batch_size - len(rows)), (0, 0)]
            tokens = self._put(np.pad(rows, padding)[own])
            output = self._steps.evaluate(self.state.params, tokens, self._kept_units)
            outputs.append([np.asarray(values)[: len(rows)] for values in output])
        loss, accuracy = (np.concatenate(values) for values in zip(*outputs, strict=True))
        if not np.isfinite(loss).all():
            raise _not_finite(self._job, f"the held-out loss is {loss.mean()} after {step} steps")
        self.history.eval_steps.append(step)
        self.history.eval_loss.append(loss)
        self.history.eval_accuracy.append(accuracy)
        return float(loss.mean()), float(accuracy.mean())

    def _put(self, rows: Int32[np.ndarray, "batch seq"]) -> jax.Array:
        return jax.make_array_from_process_local_data(self._by_data, rows)


class _Reader:
    """Brings a step's numbers to the host, checks them and puts them into the history."""

    def __init__(
        self,
        job: TrainingJob,
        history: History,
        rates: Float[np.ndarray, " steps"],
        recorded: set[int],
    ) -> None:
        self._job = job
        self._history = history
        self._rates = rates
        self._recorded = recorded
        self._unit_steps = {0, job.config.training.num_steps - 1}
        if job.start is not None:
            self._unit_steps.add(job.start[1])
        self.pending: tuple[int, StepOutput] | None = None
        self.loss = math.nan

    def pend(self, step: int, output: StepOutput) -> None:
        """Takes a step's output, to be read later."""
        self.pending = (step, output)

    def read_pending(self) -> None:
        """Reads what is pending."""
        if self.pending is None:
            return
        step, output = self.pending
        self.pending = None
        loss, accuracy, grad_norm = (
            np.asarray(value)
            for value in jax.device_get((output.loss, output.accuracy, output.grad_norm))
        )
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            found = f"the loss is {loss} and the gradients' norm {grad_norm} at step {step}"
            raise _not_finite(self._job, found)
        self.loss = float(loss)
        if step in self._unit_steps:
            self._history.units[step] = self.units(output)
        if step in self._recorded:
            seq_len = self._job.config.training.seq_len
            self._history.steps.append(step)
            self._history.unit_use.append(
                np.concatenate([_metric_columns(use, seq_len) for use in _uses(output)])
            )
            self._history.training.append(
                np.asarray([loss, accuracy, self._rates[step], grad_norm], np.float64)
            )

    @staticmethod
    def units(output: StepOutput) -> list[Bool[np.ndarray, " _mlp"]]:
        """The units of each layer that the first group of a measured step has used."""
        return [np.asarray(layer, bool) for use in _uses(output) for layer in use.used]


def _not_finite(job: TrainingJob, found: str) -> UserError:
    return UserError(
        f"{job.name}: {found}; allowed: finite numbers. The last good checkpoint is kept in "
        f"{job.checkpoints}. Lower optimizer.peak_lr ({job.config.optimizer.peak_lr:g}) or set "
        "optimizer.grad_clip_norm."
    )


def _uses(output: StepOutput) -> list[UnitUse]:
    assert output.unit_use is not None
    return jax.device_get(output.unit_use)


def _metric_columns(use: UnitUse, seq_len: int) -> Float[np.ndarray, "layers metrics"]:
    exact = jax.tree.map(lambda values: np.asarray(values, np.float64), use)
    means = mean_use(exact, seq_len=seq_len)
    return np.stack([means[metric] for metric in METRICS], axis=-1)
