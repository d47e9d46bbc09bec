"""What the store and the results hold, what of it params.yaml no longer has, and freeing that."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec
from etils import epath
from rich.filesize import decimal

from relu_sparsity.counts import counted
from relu_sparsity.errors import UserError
from relu_sparsity.files import is_remote, read_json
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.params import Params
from relu_sparsity.provenance import read_record
from relu_sparsity.runs import Run, removed_results, resolve_all
from relu_sparsity.store import RunStore

State = Literal["current", "stale", "removed"]


@dataclass(frozen=True)
class Entry:
    """A folder of one run and seed.

    Attributes:
      run: The run.
      seed: Its seed, as the folder has it.
      state: `current` is what params.yaml, code and packages say now; `stale` was trained from
        other ones; `removed` is of a run or a seed that params.yaml does not have.
      size: Bytes.
      folder: Where it is.
      store: The run in the store; None for results.
    """

    run: str
    seed: str
    state: State
    size: int
    folder: epath.Path
    store: RunStore | None = None

    def as_json(self) -> dict[str, Any]:
        """As values that JSON knows."""
        told = {key: getattr(self, key) for key in ("run", "seed", "state", "size")}
        return told | {"folder": str(self.folder)}


def entries(params: Params, layout: Layout) -> list[Entry]:
    """Every run of a scale in the store, and results of runs that params.yaml does not have."""
    current = {folder for run in resolve_all(params, layout) for folder in _folders_of(run)}
    known = {(run, str(seed)) for run, seed in params.jobs()}
    found = []
    for folder in sorted((store_root() / "runs" / params.scale).glob("*/seed*/*")):
        run, seed = folder.parents[1].name, folder.parent.name.removeprefix("seed")
        if not seed.isdecimal():
            continue
        is_known = (run, seed) in known or run in params.same_as_baseline
        state: State = "stale" if is_known else "removed"
        store = RunStore(store_root(), params.scale, run, int(seed), folder.name)
        if folder in current:
            state = "current"
        found.append(Entry(run, seed, state, size(folder), folder, store))
    for path in map(epath.Path, removed_results(params, layout)):
        seed = path.name.removeprefix("seed")
        found.append(Entry(path.parent.name, seed, "removed", size(path), path))
    return found


def _folders_of(run: Run) -> Iterator[epath.Path]:
    """Where a run is in the store; its parameters may be where it was trained before `accept`."""
    yield run.store.folder
    record = read_record(run.job.record)
    if record is not None and record.fingerprint == run.job.fingerprint.hash:
        for told in read_json(run.job.record).get("accepted", []):
            yield run.store_of(told["fingerprint"]).folder


def others(scale: str) -> dict[str, int]:
    """What else is in the store, in bytes: other scales, data sets, compiled programs."""
    root = store_root()
    folders = [*(root / "runs").glob("*"), *root.glob("*")]
    return {
        str(folder): size(folder)
        for folder in sorted(folders)
        if folder.is_dir() and folder not in (root / "runs", root / "runs" / scale)
    }


def size(folder: epath.Path) -> int:
    """The bytes of all files of a folder."""
    system, path = fsspec.url_to_fs(os.fspath(folder))
    return sum(each["size"] for each in system.find(path, detail=True).values())


def free(chosen: Iterable[Entry]) -> Iterator[tuple[Entry, str]]:
    """Deletes folders of runs that are not current.

    Yields:
      Each entry, and why it was kept; nothing where it is gone.

    Raises:
      UserError: The store is a bucket, which has no locks.
    """
    for entry in chosen:
        if entry.state == "current":
            raise ValueError(f"{entry.folder} is current")
        if is_remote(entry.folder):
            raise UserError(
                f"{entry.folder}: a bucket has no locks that tell what is being trained; when "
                f"nothing is: gcloud storage rm -r {entry.folder}"
            )
        lock = entry.store.lock(patience=0) if entry.store else contextlib.nullcontext()
        try:
            with lock:
                shutil.rmtree(entry.folder)
        except UserError as error:
            yield entry, str(error)
            continue
        with contextlib.suppress(OSError):
            for parent in Path(entry.folder).parents[:2]:
                parent.rmdir()
        yield entry, ""


def as_lines(found: Iterable[Entry], other: dict[str, int]) -> Iterator[str]:
    """What there is, for people to read."""
    from tabulate import tabulate

    found = list(found)
    rows = [[each.run, each.seed, each.state, decimal(each.size), each.folder] for each in found]
    yield tabulate(rows, ["run", "seed", "state", "size", "folder"], disable_numparse=True)
    yield ""
    for state in ("current", "stale", "removed"):
        sizes = [each.size for each in found if each.state == state]
        yield f"{state}: {folders(sizes)}"
    yield from (f"besides, {folder}: {decimal(number)}" for folder, number in other.items())


def folders(sizes: Collection[int]) -> str:
    """Some folders in words: how many, and the bytes that they hold."""
    return f"{counted(len(sizes), 'folder')}, {decimal(sum(sizes))}"
