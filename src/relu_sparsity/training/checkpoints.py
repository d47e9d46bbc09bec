"""Orbax checkpoints of everything a run needs to go on: state, data iterator and history."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

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

    def __init__(self, folder: Path, *, max_to_keep: int | None = 2) -> None:
        self.folder = folder
        self._max_to_keep = max_to_keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder.absolute(),
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
                data=ocp.args.JsonSave(checkpoint.data_state),
            ),
            force=True,
        )

    def restore(self, step: int, state: Any) -> Checkpoint:
        """Reads the checkpoint at `step` into the shapes and shardings of `state`.

        Raises:
          Exception: It is damaged; Orbax and TensorStore raise many kinds.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(state),
                history=ocp.args.StandardRestore(),
                data=ocp.args.JsonRestore(),
            ),
        )
        return Checkpoint(step, restored["state"], restored["data"], restored["history"])

    def restore_latest(self, state: Any) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole, or returns None where there is none.

        A damaged one is reported and moved aside, so that the run can save that step again.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step, state)
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0]
                aside = self._move_aside(step)
                log.warning(
                    "the checkpoint at step %d is damaged (%s: %s); moved it to %s and use the "
                    "one before",
                    step,
                    type(error).__name__,
                    reason,
                    aside,
                )
        return None

    def _move_aside(self, step: int) -> Path:
        self._manager.close()
        damaged = self.folder.parent / "damaged"
        damaged.mkdir(exist_ok=True)
        target = damaged / f"step{step}-{len(list(damaged.iterdir()))}"
        (self.folder / str(step)).rename(target)
        self._manager = self._open()
        return target

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()
