"""What the hosts of a slice are to make, and what they need for it."""

import json
import os
import shlex
from pathlib import Path

from relu_sparsity.errors import UserError
from relu_sparsity.files import absolute, read_json
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.params import MASKS, Params
from relu_sparsity.runs import resolve
from relu_sparsity.store import newest_step
from relu_sparsity.tpu.slice_job import EXPECTED, JobDescription, SliceJob, write_bundle
from relu_sparsity.tpu.slices import SliceParams, owner_of, slice_name

_CODE = (Path("src"), Path("params.yaml"), Path("requirements-tpu.txt"))
_STARTUP = Path(__file__).with_name("startup.sh")


class Work:
    """What has to be in the store at the end, and how the hosts make it."""

    def __init__(
        self,
        params: Params,
        layout: Layout,
        settings: SliceParams,
        command: str,
        run: str,
        seed: int,
    ) -> None:
        self.run = resolve(params, layout, run, seed)
        self._command, self._settings = command, settings
        # The run that hosts train: of a mask the parent, which is the same for all masks of it.
        self._trained = self.run
        self.store = self.run.store
        self._done_file = self.store.finished / "run.json"
        self._checkpoints = self.store.checkpoints
        if command == "mask":
            if self.run.intervention not in MASKS or self.run.parent is None:
                raise UserError(f"runs.{run}: has no mask; allowed: a run with one")
            self._trained, step = self.run.parent, self.run.config.mask.step
            self.store = self._trained.store
            self._done_file = self.store.branch(step) / "units.npz"
            self._checkpoints = self.store.replay(step) / "checkpoints"
        # Somebody else's slice in the same project may be for the same run, and another store.
        which = owner_of(store_root())[:6] + self.store.folder.name[:8]
        if command == "mask":
            # Not in a part that may be cut: two masks may be of other steps of one parent.
            which = f"step{self.run.config.mask.step}-{which}"
        name = slice_name(params.scale, self._trained.name, f"seed{seed}", which)
        self.slice_job = SliceJob(store_root() / "jobs" / name)

    def is_done(self) -> bool:
        return self._done_file.exists()

    def newest_step(self) -> int:
        """The last step that the store has, so that a lost slice has not lost it."""
        return newest_step(self._checkpoints) or 0

    def seconds_since_checkpoint(self) -> float:
        """How long the work took that the newest checkpoint does not have, at the last speed."""
        progress = self._checkpoints.parent / "progress.json"
        known = read_json(progress) if progress.exists() else {}
        speed, training = known.get("tokens_per_second"), self.run.config.training
        steps = known.get("step", 0) - self.newest_step()
        if not speed or steps < 0:
            return 0.0
        return steps * training.global_batch_size * training.seq_len / speed

    def prepare(self) -> None:
        """Puts everything that the hosts need into the store."""
        run, trained = self.run, self._trained
        needed = (*trained.text_jobs, trained.intervention_job)
        inputs = [path for job in needed if job is not None for path in job.files_written]
        expected = json.dumps(trained.job.fingerprint.as_json())
        write_bundle([*_CODE, *inputs], {EXPECTED: expected.encode()}, self.slice_job.bundle)
        self.slice_job.describe(
            JobDescription(
                command=(
                    self._command, "--run", run.name, "--seed", str(run.seed),
                    "--scale", run.scale, "--distributed",
                    "--hang-timeout", str(self._settings.hang_timeout_seconds),
                ),
                done_file=str(self._done_file.relative_to(store_root())),
                run=trained.name,
                seed=run.seed,
                scale=run.scale,
                poll_seconds=self._settings.poll_seconds,
            )
        )  # fmt: skip

    def startup_script(self, attempt: int) -> str:
        """What every host runs when it boots."""
        values = {
            "STORE": os.fspath(absolute(store_root())),
            "NAME": self.slice_job.name,
            "ATTEMPT": str(attempt),
            "PYTHON": self._settings.python or "",
        }
        text = _STARTUP.read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", shlex.quote(value))
        return text
