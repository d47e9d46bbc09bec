"""Orbax checkpoints of everything a run needs to go on: state, data iterator and history."""

import hashlib
import logging
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath, absolute

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A run after `step` updates.

    Attributes:
      step: Updates done; also the index of the next batch.
      state: The train state.
      data_state: The state of the data iterator, which gives batch `step` next.
      history: The history's arrays.
    """

    step: int
    state: Any
    data_state: dict[str, Any]
    history: dict[str, np.ndarray]


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
                    {"iterator": checkpoint.data_state, "sha256": _content(checkpoint)}
                ),
            ),
            force=True,
        )

    def restore(self, step: int, state: Any) -> Checkpoint:
        """Reads the checkpoint at `step` into the shapes and shardings of `state`.

        Raises:
          ValueError: Its content is not what was saved.
          Exception: It is damaged; Orbax and TensorStore raise many kinds.
        """
        self._manager.wait_until_finished()
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(state),
                history=ocp.args.StandardRestore(),
                data=ocp.args.JsonRestore(),
            ),
        )
        told = restored["data"]
        checkpoint = Checkpoint(step, restored["state"], told["iterator"], restored["history"])
        if _content(checkpoint) != told["sha256"]:
            raise ValueError("its SHA-256 is not that of what was saved")
        return checkpoint

    def restore_latest(self, state: Any) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole, or returns None where there is none.

        Damaged ones are reported and moved aside once an older one is read, so that the run can
        save those steps again.

        Raises:
          UserError: None of them can be read. They stay where they are: the reason may be another
            than damage.
        """
        failed: list[int] = []
        reason = ""
        for step in reversed(self.steps()):
            try:
                checkpoint = self.restore(step, state)
            except Exception as error:
                failed.append(step)
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                log.warning("the checkpoint at step %d cannot be read (%s)", step, reason)
                continue
            for damaged in failed:
                aside = self._move_aside(damaged)
                log.warning(
                    "the checkpoint at step %d is damaged; moved it to %s and use step %d",
                    damaged,
                    aside,
                    step,
                )
            return checkpoint
        if failed:
            raise UserError(
                f"{self.folder}: none of the checkpoints at steps {failed} can be read ({reason}); "
                "mend the cause, or delete the folder to start the run anew"
            )
        return None

    def _move_aside(self, step: int) -> epath.Path:
        self._manager.close()
        damaged = self.folder.parent / "damaged"
        damaged.mkdir(exist_ok=True)
        # A bucket has no empty folders to move something into.
        (damaged / "README").write_text("Checkpoints that could not be read.\n")
        target = damaged / f"step{step}-{len(list(damaged.iterdir()))}"
        (self.folder / str(step)).rename(target)
        self._manager = self._open()
        return target

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _content(checkpoint: Checkpoint) -> str:
    """The SHA-256 of a checkpoint's arrays, wherever they are and however they are stored."""
    digest = hashlib.sha256(str(checkpoint.step).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((checkpoint.state, checkpoint.history)):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
