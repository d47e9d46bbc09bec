"""Trains one run, from nothing, from its own checkpoint or from its parent's, to the end."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int32

from relu_sparsity import distributed
from relu_sparsity.data.pipeline import heldout_batches, merge_states, train_batches
from relu_sparsity.data.tokenizer import Tokenizer
from relu_sparsity.errors import Interrupted, UserError
from relu_sparsity.files import AnyPath
from relu_sparsity.model import KeptUnits, masks_by_stack
from relu_sparsity.params import RunConfig
from relu_sparsity.sparsity import METRICS, UnitUse, mean_use
from relu_sparsity.training.checkpoints import Checkpoint, Checkpoints
from relu_sparsity.training.compaction import Compaction
from relu_sparsity.training.history import History, write_units
from relu_sparsity.training.progress import Progress
from relu_sparsity.training.step import StepOutput, learning_rates, make_mesh, make_steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """One run to train.

    Attributes:
      name: How messages call it.
      config: Its parameters.
      seed: Decides the initial parameters and the order of the batches.
      mlp_dims: The width of each layer.
      train_documents: Training text, by index.
      heldout_documents: Held-out text, by index.
      tokenizer: The tokenizer.
      checkpoints: Folder of its checkpoints.
      throughput: Where the speed is written to.
      progress: Where it is written how far the run is.
      branches: Steps at which other runs branch off, and the folder of each.
      start: The branch folder of the parent's that the run starts from, and the step.
      unit_masks: The units that each layer keeps; None keeps all.
    """

    name: str
    config: RunConfig
    seed: int
    mlp_dims: Sequence[int]
    train_documents: Sequence[str]
    heldout_documents: Sequence[str]
    tokenizer: Tokenizer
    checkpoints: AnyPath
    throughput: AnyPath
    progress: AnyPath
    branches: dict[int, AnyPath] = field(default_factory=dict)
    start: tuple[AnyPath, int] | None = None
    unit_masks: list[Bool[np.ndarray, " _mlp"]] | None = None


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
    config, training = job.config, job.config.training
    num_steps = training.num_steps

    # --- Devices, compiled steps, data ---------------------------------------------------------
    mesh = make_mesh(num_devices)
    by_data = NamedSharding(mesh, PartitionSpec("data"))
    part = compaction(job)
    if part is not None:
        log.info("%s: trains only the units that are left, %s", job.name, part.mlp_dims)
    steps = make_steps(
        config,
        vocab_size=job.tokenizer.vocab_size,
        mlp_dims=part.mlp_dims if part else job.mlp_dims,
        mesh=mesh,
    )
    rates = learning_rates(config.optimizer, num_steps)
    batches = train_batches(
        job.train_documents,
        job.tokenizer,
        seq_len=training.seq_len,
        global_batch_size=training.global_batch_size,
        num_shards=config.data.num_shards,
        seed=job.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    heldout = heldout_batches(
        job.heldout_documents,
        job.tokenizer,
        seq_len=training.seq_len,
        num_sequences=training.eval_sequences,
        batch_size=training.global_batch_size,
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    kept_units = jax.device_put(_kept_units(job, part), replicated)

    def put(rows: Int32[np.ndarray, "batch seq"]) -> jax.Array:
        return jax.make_array_from_process_local_data(by_data, rows)

    # --- Where to start: own checkpoint, parent's checkpoint, nothing --------------------------
    checkpoints = Checkpoints(job.checkpoints)
    whole_state = steps.state
    if part is not None:
        # A checkpoint holds the whole model, whatever part of it is trained.
        whole_state = make_steps(
            config, vocab_size=job.tokenizer.vocab_size, mlp_dims=job.mlp_dims, mesh=mesh
        ).state
    restored = checkpoints.restore_latest(whole_state)
    if restored is not None:
        log.info("%s: resumes at step %d of %d", job.name, restored.step, num_steps)
    elif job.start is not None:
        folder, step = job.start
        parents = Checkpoints(folder / "checkpoint")
        restored = parents.restore_latest(whole_state)
        parents.close()
        if restored is None:
            raise UserError(f"{folder}: has no checkpoint; delete the folder to make it again")
        log.info("%s: branches off at step %d of %d", job.name, step, num_steps)
    history = History(job.mlp_dims)
    first_step = 0
    untrained = None
    if restored is None:
        state = steps.init(job.seed)
    else:
        first_step, state = restored.step, restored.state
        history = History.from_arrays(job.mlp_dims, restored.history)
        batches.set_state(restored.data_state)
        if part is not None:
            untrained = jax.device_get(state)
            state = jax.device_put(part.take(untrained, steps.state), replicated)

    def save(to: Checkpoints, step: int) -> None:
        saved = state if part is None else part.put_back(jax.device_get(state), untrained)
        # Any number of processes can go on from the positions of all of them.
        positions = merge_states(distributed.gather(batches.get_state()))
        to.save(Checkpoint(step, saved, positions, history.to_arrays()))

    # --- The loop: dispatch a step, then read the one before -----------------------------------
    # The host reads a step's numbers while the device is at the next one. Whatever needs the
    # whole past (a checkpoint, an evaluation) first reads what is still out.
    measured = set(range(0, num_steps, config.metrics.metrics_every_steps)) | {num_steps - 1}
    reader = _Reader(job, history, rates, measured)
    with (
        Progress(
            job.name,
            config,
            part.mlp_dims if part else job.mlp_dims,
            throughput=job.throughput,
            state=job.progress,
            first_step=first_step,
        ) as progress,
        distributed.stop_signals() as stop_requested,
    ):
        for step in range(first_step, num_steps + 1):
            at_end = step == num_steps
            eval_due = at_end or step % training.eval_every_steps == 0
            save_due = step % training.checkpoint_every_steps == 0 or at_end
            branch = job.branches.get(step)
            stop = stop_requested(step)
            if eval_due or save_due or stop or branch is not None:
                reader.read_pending()
            if stop:
                if step > first_step:
                    save(checkpoints, step)
                checkpoints.close()
                raise Interrupted(
                    f"{job.name}: stopped at step {step} of {num_steps}; the same command goes on"
                )
            if eval_due and step not in history.eval_steps:
                loss, accuracy = _evaluate(steps, state.params, heldout, kept_units, job, put)
                history.eval_steps.append(step)
                history.eval_loss.append(loss)
                history.eval_accuracy.append(accuracy)
                progress.show_evaluation(float(loss.mean()), float(accuracy.mean()))
            if save_due and step > first_step:
                save(checkpoints, step)
            if at_end:
                break
            if branch is not None:
                _save_branch(branch, step, save)
            tokens = put(next(batches))
            at_start = job.start is not None and step == job.start[1]
            measure = step in measured or branch is not None or at_start
            run_step = steps.train_and_measure if measure else steps.train
            state, output = run_step(state, tokens, rates[step], kept_units)
            reader.read_pending()
            reader.pend(step, output)
            if branch is not None:
                units = reader.read_pending()
                assert units is not None
                if distributed.is_leader():
                    write_units(branch / "units.npz", {step: units})
                if step == until:
                    checkpoints.close()
                    return history
            progress.advance(step, reader.loss)
    checkpoints.close()
    return history


def compaction(job: TrainingJob) -> Compaction | None:
    """The part of a masked model that a run trains; None where it trains the whole model."""
    mask = job.config.mask
    if job.unit_masks is None or not mask.compact:
        return None
    return Compaction(job.unit_masks, multiple_of=mask.width_multiple_of)


def _kept_units(job: TrainingJob, part: Compaction | None) -> list[KeptUnits] | None:
    """The masks, stack by stack."""
    if job.unit_masks is None:
        return None
    return masks_by_stack(job.unit_masks, job.mlp_dims) if part is None else part.kept_units()


def _save_branch(folder: AnyPath, step: int, save: Any) -> None:
    branch = Checkpoints(folder / "checkpoint", max_to_keep=None)
    if step not in branch.steps():
        save(branch, step)
    branch.close()


def _evaluate(
    steps: Any,
    params: Any,
    heldout: Sequence[Int32[np.ndarray, "batch seq"]],
    kept_units: Any,
    job: TrainingJob,
    put: Any,
) -> tuple[Float[np.ndarray, " sequences"], Float[np.ndarray, " sequences"]]:
    """Loss and accuracy of every held-out sequence; each process feeds its part of a batch."""
    batch_size = job.config.training.global_batch_size
    local = batch_size // jax.process_count()
    own = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
    outputs = []
    for rows in heldout:
        # Every batch has one shape, so that there is one program; the padding is cut off again.
        padding = [(0, batch_size - len(rows)), (0, 0)]
        output = steps.evaluate(params, put(np.pad(rows, padding)[own]), kept_units)
        outputs.append([np.asarray(values)[: len(rows)] for values in output])
    loss, accuracy = (np.concatenate(values) for values in zip(*outputs, strict=True))
    return loss, accuracy


class _Reader:
    """Brings a step's numbers to the host, checks them and puts them into the history."""

    def __init__(
        self, job: TrainingJob, history: History, rates: np.ndarray, recorded: set[int]
    ) -> None:
        self._job = job
        self._history = history
        self._rates = rates
        self._recorded = recorded
        self._unit_steps = {0, job.config.training.num_steps - 1}
        if job.start is not None:
            self._unit_steps.add(job.start[1])
        self._pending: tuple[int, StepOutput] | None = None
        self.loss = math.nan

    def pend(self, step: int, output: StepOutput) -> None:
        """Takes a step's output, to be read later."""
        self._pending = (step, output)

    def read_pending(self) -> list[Bool[np.ndarray, " _mlp"]] | None:
        """Reads what is pending; returns the units of each layer used in the first group."""
        if self._pending is None:
            return None
        step, output = self._pending
        self._pending = None
        loss, accuracy, grad_norm = (
            np.asarray(value)
            for value in jax.device_get((output.loss, output.accuracy, output.grad_norm))
        )
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            raise UserError(
                f"{self._job.name}: the loss is {loss} and the gradients' norm {grad_norm} at "
                f"step {step}; allowed: finite numbers. The last good checkpoint is kept in "
                f"{self._job.checkpoints}. Lower optimizer.peak_lr "
                f"({self._job.config.optimizer.peak_lr:g}) or set optimizer.grad_clip_norm."
            )
        self.loss = float(loss)
        if output.unit_use is None:
            return None
        uses: list[UnitUse] = jax.device_get(output.unit_use)
        units = [np.asarray(layer, bool) for use in uses for layer in use.used]
        if step in self._unit_steps:
            self._history.units[step] = units
        if step in self._recorded:
            seq_len = self._job.config.training.seq_len
            self._history.steps.append(step)
            self._history.unit_use.append(
                np.concatenate([_metric_columns(use, seq_len) for use in uses])
            )
            self._history.training.append(
                np.asarray([loss, accuracy, self._rates[step], grad_norm], np.float64)
            )
        return units


def _metric_columns(use: UnitUse, seq_len: int) -> Float[np.ndarray, "layers metrics"]:
    exact = jax.tree.map(lambda values: np.asarray(values, np.float64), use)
    means = mean_use(exact, seq_len=seq_len)
    return np.stack([means[metric] for metric in METRICS], axis=-1)
