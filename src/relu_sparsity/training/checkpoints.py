"""Orbax checkpoints of everything a run needs to go on: state, data iterator and history."""

import hashlib
import logging
import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from relu_sparsity import distributed
from relu_sparsity.counts import counted
from relu_sparsity.errors import TryAgain, UserError, is_unreachable
from relu_sparsity.files import AnyPath, absolute

log = logging.getLogger(__name__)

# Seconds between attempts to read from a store that does not answer.
_PAUSES = (1.0, 5.0, 20.0)


class DamagedError(UserError):
    """A checkpoint is not what was saved.

    Attributes:
      reason: What is wrong with it.
    """

    def __init__(self, path: AnyPath, reason: str) -> None:
        super().__init__(f"{path}: cannot be read ({reason}); delete it, and it is made again")
        self.reason = reason


class Checkpoint(NamedTuple):
    """A run after `step` updates.

    Attributes:
      step: Updates done; also the index of the next batch.
      state: The train state.
      data_state: The state of the data iterator, which gives batch `step` next.
      history: The history's arrays.
      device: What it was trained on last; "" where that was not kept.
    """

    step: int
    state: Any
    data_state: dict[str, Any]
    history: dict[str, np.ndarray]
    device: str = ""


class Checkpoints:
    """The checkpoints of one folder."""

    def __init__(self, folder: AnyPath, *, max_to_keep: int | None = 2) -> None:
        self.folder = absolute(folder)
        self._max_to_keep = max_to_keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._max_to_keep,
                # On CPU the parameters that a step donates are the bytes that a save would read.
                enable_async_checkpointing=jax.default_backend() != "cpu",
            ),
        )

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves `checkpoint` under a temporary name, then renames it."""
        self._manager.save(
            checkpoint.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(checkpoint.state),
                history=ocp.args.StandardSave(checkpoint.history),
                data=ocp.args.JsonSave(
                    {
                        "iterator": checkpoint.data_state,
                        "sha256": _content(checkpoint),
                        "device": _device(),
                    }
                ),
            ),
            force=True,
        )

    def restore(self, step: int, state: Any) -> Checkpoint:
        """Reads the checkpoint at `step` into the shapes and shardings of `state`.

        The first process reads it, and all others get it from there: none can have another one.

        Raises:
          DamagedError: Its content is not what was saved, or cannot be made out.
          TryAgain: The store does not answer, or the processes do not have the same content.
        """
        self._manager.wait_until_finished()
        read: list[Checkpoint] = []

        def told_by_leader() -> dict[str, Any]:
            try:
                read.append(self._read_patiently(step, state))
            except DamagedError as error:
                return {"damaged": error.reason}
            shapes = {key: (each.shape, each.dtype.str) for key, each in read[0].history.items()}
            return {"data": read[0].data_state, "history": shapes, "device": read[0].device}

        told = distributed.ask_leader(told_by_leader)
        if "damaged" in told:
            raise DamagedError(self.folder / str(step), told["damaged"])
        values: list[Any] = [None] * len(jax.tree.leaves(state))
        history: dict[str, Any] = dict.fromkeys(told["history"])
        if read:
            values, history = jax.tree.leaves(read[0].state), read[0].history
        shared = [
            distributed.share(value, leaf.shape, leaf.dtype)
            for value, leaf in zip(values, jax.tree.leaves(state), strict=True)
        ]
        checkpoint = Checkpoint(
            step,
            jax.tree.unflatten(jax.tree.structure(state), shared),
            told["data"],
            {
                key: distributed.share(history[key], shape, np.dtype(dtype))
                for key, (shape, dtype) in told["history"].items()
            },
            told["device"],
        )
        contents = distributed.gather(_content(checkpoint)[:16])
        if len(set(contents)) > 1:
            raise TryAgain(
                f"{self.folder / str(step)}: the processes have restored other contents: "
                f"{', '.join(contents)}"
            )
        placed = jax.tree.map(
            lambda leaf, value: jax.make_array_from_process_local_data(leaf.sharding, value),
            state,
            checkpoint.state,
        )
        return checkpoint._replace(state=placed)

    def _read_patiently(self, step: int, state: Any) -> Checkpoint:
        """Reads a checkpoint to this process alone; a store that does not answer is asked again."""
        for pause in (*_PAUSES, None):
            try:
                return self._read(step, state)
            except DamagedError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                if not is_unreachable(error):
                    raise DamagedError(self.folder / str(step), reason) from error
                if pause is None:
                    raise TryAgain(
                        f"{self.folder / str(step)}: the store does not answer ({reason})"
                    ) from error
                log.warning("step %d: %s; reads it again in %.0f s", step, reason, pause)
                time.sleep(pause)
        raise AssertionError

    def _read(self, step: int, state: Any) -> Checkpoint:
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix="leader",
        )
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        )
        arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            restored = reader.restore(
                self.folder / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(arrays),
                    history=ocp.args.StandardRestore(),
                    data=ocp.args.JsonRestore(),
                ),
            )
        told = restored["data"]
        checkpoint = Checkpoint(
            step,
            restored["state"],
            told["iterator"],
            jax.tree.map(np.asarray, restored["history"]),
            told.get("device", ""),
        )
        # The step is part of the content: this is the checkpoint that was asked for.
        if _content(checkpoint) != told["sha256"]:
            reason = "its SHA-256 is not that of what was saved"
            raise DamagedError(self.folder / str(step), reason)
        return checkpoint

    def restore_latest(self, state: Any) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole, or returns None where there is none.

        Damaged ones are reported and moved aside once an older one is read, so that the run can
        save those steps again. All processes restore the same one.

        Raises:
          UserError: None of them can be read. They stay where they are: the reason may be another
            than damage.
          TryAgain: The store does not answer, which is no damage.
        """
        failed: list[int] = []
        reason = ""
        for step in reversed(distributed.ask_leader(self.steps)):
            try:
                checkpoint = self.restore(step, state)
            except DamagedError as error:
                failed.append(step)
                reason = error.reason
                log.warning("the checkpoint at step %d cannot be read (%s)", step, reason)
                continue
            if failed:
                self._move_aside(failed, step)
            if checkpoint.device not in ("", _device()):
                log.warning(
                    "the checkpoint at step %d was trained on %s, and goes on on %s: the last bits "
                    "will not be those of a run without a stop",
                    step, checkpoint.device, _device(),
                )  # fmt: skip
            return checkpoint
        if failed:
            raise UserError(
                f"{self.folder}: none of the checkpoints at steps {failed} can be read ({reason}); "
                "mend the cause, or delete the folder to start the run anew"
            )
        return None

    def _move_aside(self, steps: list[int], used: int) -> None:
        def move() -> list[str]:
            damaged = self.folder.parent / "damaged"
            damaged.mkdir(exist_ok=True)
            # A bucket has no empty folders to move something into.
            (damaged / "README").write_text("Checkpoints that could not be read.\n")
            targets = []
            for step in steps:
                targets.append(damaged / f"step{step}-{len(list(damaged.iterdir()))}")
                (self.folder / str(step)).rename(targets[-1])
            return list(map(str, targets))

        self._manager.close()
        for step, target in zip(steps, distributed.ask_leader(move), strict=True):
            log.warning(
                "the checkpoint at step %d is damaged; moved it to %s and use step %d",
                step,
                target,
                used,
            )
        self._manager = self._open()

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _device() -> str:
    """What decides last bits: the kind of device, and on a CPU the number of XLA's threads."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    return f"{kind} with {counted(int(os.environ.get('NPROC') or os.cpu_count() or 1), 'thread')}"


def _content(checkpoint: Checkpoint) -> str:
    """The SHA-256 of a checkpoint's arrays, wherever they are and however they are stored."""
    digest = hashlib.sha256(str(checkpoint.step).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((checkpoint.state, checkpoint.history)):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
