"""Where trained runs live, by run, seed and fingerprint.

The store holds what no workflow tool declares: checkpoints and finished exports. A run that is
there is never trained again, whatever happened to the result files. It is a folder on a disk, or in
a bucket that all hosts of a slice write to.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath, atomic_write, is_remote, read_json, sha256
from relu_sparsity.layout import RUN_FILES


def newest_step(checkpoints: AnyPath) -> int | None:
    """The step of the newest checkpoint of a folder; None where there is none."""
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]
    return max(steps, default=None)


class RunStore:
    """The store's folder of one run, seed and fingerprint.

    Attributes:
      name: How messages call the run.
      folder: All that is kept of it.
      checkpoints: The checkpoints of the training under way.
      finished: The result files, once the run is finished.
      throughput: Tokens per second over the steps: of this machine, so it is no result.
      progress: How far the training is, for `relu-sparsity status`.
    """

    def __init__(self, root: AnyPath, scale: str, run: str, seed: int, fingerprint: str) -> None:
        self.name = f"{run} seed {seed}"
        self.folder = epath.Path(root) / "runs" / scale / run / f"seed{seed}" / fingerprint
        self.checkpoints = self.folder / "checkpoints"
        self.finished = self.folder / "finished"
        self.throughput = self.folder / "throughput.csv"
        self.progress = self.folder / "progress.json"

    def branch(self, step: int) -> epath.Path:
        """The checkpoint and the used units at a step where other runs branch off."""
        return self.folder / "branches" / str(step)

    def is_finished(self) -> bool:
        """Whether the run's results are in the store."""
        # On a disk the whole folder comes at once; in a bucket this file comes last.
        return (self.finished / "run.json").exists()

    def has_branch(self, step: int) -> bool:
        """Whether another run can branch off at `step`."""
        return (self.branch(step) / "units.npz").exists()

    def replay(self, step: int) -> epath.Path:
        """Where the run is trained again up to a branch that the store does not have."""
        return self.folder / f"replay{step}"

    def last_checkpoint(self) -> int | None:
        """The step of the newest checkpoint of a training under way; None where there is none."""
        return newest_step(self.checkpoints)

    def finish(self, folder: Path) -> None:
        """Takes the result files of the finished run out of `folder`, all of them or none."""
        if is_remote(self.folder):
            for name in RUN_FILES:
                epath.Path(folder / name).copy(self.finished / name, overwrite=True)
            return
        partial = Path(self.folder / f"finished.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in RUN_FILES:
            shutil.copyfile(folder / name, partial / name)
        try:
            partial.rename(self.finished)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process was faster.
            shutil.rmtree(partial)

    def adopt(self, folder: Path) -> bool:
        """Takes over the result files of a finished run: of another machine, of other parameters.

        Returns:
          Whether it did: what the store has already stays.

        Raises:
          UserError: A file is missing or is not the one that the run wrote.
        """
        if self.is_finished():
            return False
        described = read_json(folder / "run.json")
        for name in RUN_FILES:
            path, told = folder / name, described.get("sha256", {}).get(name)
            if name != "run.json" and (not path.is_file() or sha256(path) != told):
                raise UserError(f"{path}: is missing, or not the file that run.json tells of")
        self.finish(folder)
        return True

    def export(self, target: Path) -> None:
        """Copies the finished result files to `target`, `run.json` last.

        Raises:
          UserError: A file in the store is not the one that the run wrote.
        """
        try:
            told = read_json(self.finished / "run.json")["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.finished / 'run.json'}: is damaged ({error!r}); delete {self.finished} to "
                "train the run again"
            ) from None
        for name in RUN_FILES:
            path = self.finished / name
            if name != "run.json" and sha256(path) != told[name]:
                raise UserError(
                    f"{path}: was changed after it was written (its SHA-256 is another one); "
                    f"delete {self.finished} to train the run again"
                )
            with atomic_write(target / name) as temporary:
                (self.finished / name).copy(temporary)

    @contextlib.contextmanager
    def lock(self, patience: float = 10.0) -> Iterator[None]:
        """Keeps a second trainer away; the system frees the lock when the process ends.

        A bucket has no locks. There the run's slice is one: no second one can have its name.

        Args:
          patience: Seconds to wait for a trainer that is just saving and about to exit.

        Raises:
          UserError: Another process trains this run, or the file system has no locks.
        """
        if is_remote(self.folder):
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = Path(self.folder / "lock")
        with path.open("a+") as file:
            deadline = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    # What flock says where another process has the lock, by flock(2) and fcntl(2).
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise UserError(
                            f"{path}: cannot be locked ({error.strerror}), so nothing would keep "
                            "two processes from training the same run; set RELU_SPARSITY_STORE to "
                            "a folder on a file system with locks"
                        ) from error
                    if time.monotonic() > deadline:
                        file.seek(0)
                        raise UserError(
                            f"{self.name} is being trained by another process "
                            f"({file.read().strip() or 'unknown'}; lock {path}); wait for it, or "
                            "stop it: it saves a checkpoint when it gets SIGTERM"
                        ) from None
                    time.sleep(0.2)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
