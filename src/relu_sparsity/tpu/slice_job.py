"""What the controller and the hosts of a slice tell each other, in a folder of the store.

<store>/jobs/<slice>/
job.json                  what to run, and the file whose existence means that it is done
usage.json                when its slices were asked for, there and gone
bundle.tar.gz             code, lock, parameters and inputs
attempt<k>/stop           the controller asks the hosts to save and stop
attempt<k>/host<i>.json   a host's word, renewed while it lives
attempt<k>/host<i>.<n>.log  what its process printed, in pieces, as objects cannot grow
"""

import io
import itertools
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from etils import epath

from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath, atomic_write, read_json, write_json, write_text
from relu_sparsity.tpu.usage import SliceUse

# In the bundle: what the run that the controller wants is made from, as results carry it.
EXPECTED = "expected.json"
# Bytes of a piece of a host's log, which is written anew until it is full.
LOG_PIECE = 2**20

HostState = Literal["starting", "running", "restarting", "done", "stopped", "failed"]


@dataclass(frozen=True)
class HostReport:
    """What a host says of itself.

    Attributes:
      worker: The host, from 0.
      num_hosts: With how many hosts, itself among them, it shares the slice.
      state: What it does.
      time: When it said so, in seconds since 1970, by its own clock.
      restarts: How often its process had to be started again.
      message: Why it failed.
    """

    worker: int
    num_hosts: int
    state: HostState
    time: float
    restarts: int
    message: str = ""


@dataclass(frozen=True)
class JobDescription:
    """What a slice is to do.

    Attributes:
      command: Arguments of `relu-sparsity`.
      done_file: The file in the store that is there when the job is done.
      run: The run whose fingerprint the hosts have to find as the controller did.
      seed: Its seed.
      scale: The scale.
      poll_seconds: How often a host reports.
    """

    command: Sequence[str]
    done_file: str
    run: str
    seed: int
    scale: str
    poll_seconds: float


class SliceJob:
    """The folder of one slice's job.

    Attributes:
      folder: In the store.
      name: The slice's name.
      bundle: The archive that every host unpacks.
      launcher_state: What the controller knows, for `relu-sparsity status`.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.folder = epath.Path(folder)
        self.name = self.folder.name
        self.bundle = self.folder / "bundle.tar.gz"
        self.launcher_state = self.folder / "launcher.json"

    def write_usage(self, uses: Mapping[int, SliceUse]) -> None:
        """Writes what each slice, by its attempt, was used for."""
        write_json(self.folder / "usage.json", {key: asdict(use) for key, use in uses.items()})

    def usage(self) -> dict[int, SliceUse]:
        """What each slice that worked on the job was used for."""
        path = self.folder / "usage.json"
        told = read_json(path) if path.exists() else {}
        return {int(attempt): SliceUse(**use) for attempt, use in told.items()}

    def describe(self, description: JobDescription) -> None:
        """Writes what is to be done."""
        write_json(self.folder / "job.json", asdict(description))

    def description(self) -> JobDescription:
        """Reads what is to be done."""
        return JobDescription(**read_json(self.folder / "job.json"))

    def ask_to_stop(self, attempt: int) -> None:
        """Asks the hosts to save a checkpoint and stop."""
        write_text(self._attempt(attempt) / "stop", "stop\n")

    def is_asked_to_stop(self, attempt: int) -> bool:
        """Whether the controller asks the hosts to stop."""
        return (self._attempt(attempt) / "stop").exists()

    def report(self, attempt: int, report: HostReport) -> None:
        """Says what a host does."""
        write_json(self._attempt(attempt) / f"host{report.worker}.json", asdict(report))

    def reports(self, attempt: int) -> list[HostReport]:
        """What all hosts that have been heard of say, in their order."""
        folder = self._attempt(attempt)
        found = [HostReport(**read_json(path)) for path in folder.glob("host*.json")]
        return sorted(found, key=lambda report: report.worker)

    def write_log(self, attempt: int, worker: int, printed: IO[bytes], *, start: int) -> int:
        """Publishes what a host's process printed, from byte `start` on; returns how far."""
        size = os.fstat(printed.fileno()).st_size
        if size == start:
            return size
        for piece in range(start // LOG_PIECE, -(-size // LOG_PIECE)):
            # By its own descriptor: the process writes at the end of the shared one.
            content = os.pread(printed.fileno(), LOG_PIECE, piece * LOG_PIECE)
            with atomic_write(self._log_piece(attempt, worker, piece)) as temporary:
                temporary.write_bytes(content)
        return size

    def read_log(self, attempt: int, worker: int, *, start: int = 0) -> bytes:
        """What a host's process printed, from byte `start` on."""
        first = start // LOG_PIECE
        found = []
        for piece in itertools.count(first):
            path = self._log_piece(attempt, worker, piece)
            if not path.exists():
                break
            found.append(path.read_bytes())
        return b"".join(found)[start - first * LOG_PIECE :]

    def _log_piece(self, attempt: int, worker: int, piece: int) -> epath.Path:
        return self._attempt(attempt) / f"host{worker}.{piece:04d}.log"

    def last_attempt(self) -> int:
        """The number of the newest slice that worked on the job; 0 where there was none."""
        if not self.folder.exists():
            return 0
        names = [path.name.removeprefix("attempt") for path in self.folder.glob("attempt*")]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _attempt(self, attempt: int) -> epath.Path:
        return self.folder / f"attempt{attempt}"


def write_bundle(paths: Iterable[Path], extra: Mapping[str, bytes], target: AnyPath) -> None:
    """Packs files and folders of the working folder.

    Args:
      paths: What to pack. Compiled modules are left out.
      extra: More files, by name.
      target: The archive, in the store.

    Raises:
      UserError: One of them is not there.
    """
    contents = dict(extra)
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: is missing; the hosts of the slice need it")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                contents[str(file)] = file.read_bytes()
    with atomic_write(target) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
