"""What the Snakefile needs beyond rules: what is stale, and locks."""

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from relu_sparsity import fingerprint, jobs
from relu_sparsity.files import write_text
from relu_sparsity.fingerprint import Fingerprint
from relu_sparsity.layout import RUN_FILES, Layout
from relu_sparsity.paper.catalog import FIGURES, PRUNING, TABLE_RUNS
from relu_sparsity.params import MASKS, Params
from relu_sparsity.provenance import can_sign, differences, made_from, signature

# Long ago: before any real result, after what archive formats can hold.
_SETTLED = 1_000_000_000


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
      name: Its stamp's name: the rule, and what of.
      fingerprint: What its results depend on.
      outputs: Its result files; those that can carry a fingerprint do.
      after: The jobs whose results it reads.
    """

    name: str
    fingerprint: Fingerprint
    outputs: tuple[Path, ...]
    after: tuple[str, ...] = ()

    def is_current(self) -> bool:
        """Whether all results are there and were made from what they depend on now."""
        return all(path.is_file() for path in self.outputs) and not self.outdated()

    def outdated(self) -> list[Path]:
        """Results that are there, and were made from something else or do not tell."""
        return [
            path
            for path in self.outputs
            if can_sign(path) and path.is_file() and signature(path) != self.fingerprint.hash
        ]


def all_jobs(params: Params, layout: Layout) -> Iterator[Job]:
    """Every job of a scale, each after the jobs that it depends on."""
    yield Job("text", fingerprint.text(params), (layout.tokenizer, layout.manifest))
    for run, seed in params.jobs():
        trained = fingerprint.run(params, run, seed)
        folder = layout.run(run, seed)
        chosen = params.runs[run]
        before = ["text"]
        if chosen.intervention is not None:
            before.append(f"intervention/{run}/seed{seed}")
            masked = chosen.intervention in MASKS
            made = layout.mask(run, seed) if masked else layout.widths(run, seed)
            yield Job(before[-1], trained, (made,), (f"train/{chosen.parent}/seed{seed}",))
        files = tuple(folder / name for name in RUN_FILES)
        train = Job(f"train/{run}/seed{seed}", trained, files, tuple(before))
        yield train
        metrics = fingerprint.metrics(params, run, seed)
        extracted = (folder / "metrics.json",)
        yield Job(f"extract/{run}/seed{seed}", metrics, extracted, (train.name,))
    for table, runs in TABLE_RUNS.items():
        filled, files = fingerprint.table(params, table), tuple(layout.table(table))
        yield Job(f"table/{table}", filled, files, _extracted(params, runs))
    compared = _extracted(params, fingerprint.pruning_runs(params))
    yield Job(PRUNING, fingerprint.pruning(params), tuple(layout.pruning), compared)
    for figure, row in FIGURES.items():
        drawn, files = fingerprint.figure(params, figure), (layout.figure(figure),)
        yield Job(f"figure/{figure}", drawn, files, _extracted(params, row.runs))
    decided = fingerprint.claims(params)
    yield Job("claims", decided, tuple(layout.claims), _extracted(params, params.runs))
    yield Job("summary", decided, (layout.summary,), ("claims",))
    shown = [f"table/{table}" for table in TABLE_RUNS] + [f"figure/{figure}" for figure in FIGURES]
    yield Job("report", fingerprint.report(params), (layout.report,), ("claims", PRUNING, *shown))


def _extracted(params: Params, runs: Collection[str]) -> tuple[str, ...]:
    return tuple(f"extract/{run}/seed{seed}" for run, seed in params.jobs() if run in runs)


def write_stamps(params: Params, layout: Layout) -> None:
    """Makes modification times tell what is stale, and nothing else.

    Snakemake compares modification times, which a clone or `dvc pull` sets at random. So every job
    has a stamp that holds its fingerprint. Where its results carry the same fingerprint, stamp and
    results get settled times, long ago and in the order of the workflow; where they do not, the
    stamp is newer than everything.
    """
    settled: dict[str, int] = {}
    for job in all_jobs(params, layout):
        settled[job.name] = 1 + max((settled[name] for name in job.after), default=_SETTLED)
        stamp = layout.stamp(job.name)
        if not stamp.is_file() or stamp.read_text().strip() != job.fingerprint.hash:
            write_text(stamp, job.fingerprint.hash + "\n")
        if not is_current(job, params, layout):
            os.utime(stamp)
            continue
        os.utime(stamp, (_SETTLED, _SETTLED))
        for path in job.outputs:
            os.utime(path, (settled[job.name],) * 2)


def is_current(job: Job, params: Params, layout: Layout) -> bool:
    """Whether a job's results are those of the parameters."""
    # Nothing in the tokenizer's file says what it was made from.
    return job.is_current() and (job.name != "text" or jobs.text_is_current(params, layout))


def keep_trained_runs(params: Params, layout: Layout) -> None:
    """Keeps all trained runs among the results in the store, before Snakemake removes stale ones.

    Tells on standard error which of them are not those of the parameters, and why.
    """
    for run, seed in params.jobs():
        jobs.keep_results(params, layout, run, seed)
    for job in all_jobs(params, layout):
        for path in job.outdated() if job.name.startswith("train/") else ():
            print(f"{path.parent}: {'; '.join(why_outdated(path, job))}", file=sys.stderr)


def why_outdated(path: Path, job: Job) -> list[str]:
    """What has changed since a result of a job was made, in words."""
    before = made_from(path)
    return differences(before, job.fingerprint) if before else ["does not tell what made it"]


def record_in_dvc() -> None:
    """Tells DVC what is there now, so that `dvc status` is clean after a run of Snakemake.

    Does nothing when DVC itself called Snakemake, or outside a Git repository with DVC.
    """
    if "DVC_ROOT" in os.environ or not (Path(".dvc").is_dir() and Path(".git").exists()):
        return
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Part of the results is missing after a run of a part of the workflow.
        print(f"not recorded in DVC: {done.stderr.strip()}", file=sys.stderr)


def call_this_environment() -> None:
    """Lets rules find the command line of the environment that Snakemake itself runs in."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    os.environ["PATH"] = os.pathsep.join(folders)


def hold_workflow_lock(folder: Path = Path(".snakemake")) -> IO[str]:
    """Removes the locks that a killed Snakemake left behind.

    Every Snakemake process of this folder holds a shared lock, which the system frees however it
    ends. Whoever gets the exclusive lock is alone, so Snakemake's own lock files are left-overs.

    Returns:
      The open lock file: keep it as long as the process lives.
    """
    folder.mkdir(exist_ok=True)
    file = (folder / "relu-sparsity.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in folder.glob("locks/*"):
            leftover.unlink()
    except OSError:
        pass
    # Some file systems of clusters have no locks: there left-overs are removed by hand.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)
    return file
