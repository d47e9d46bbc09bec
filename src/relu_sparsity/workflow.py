"""What the Snakefile needs beyond rules: what is stale, and locks."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from relu_sparsity import fingerprint, jobs
from relu_sparsity.files import write_text
from relu_sparsity.layout import RUN_FILES, Layout
from relu_sparsity.paper.catalog import FIGURES, TABLE_RUNS, TABLES
from relu_sparsity.params import MASKS, Params
from relu_sparsity.provenance import can_sign, signature

# Long ago: before any real result, after what archive formats can hold.
_SETTLED = 1_000_000_000
_PAPER_LEVEL = 1000


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
      name: Its stamp's name.
      fingerprint: What its results depend on.
      outputs: Its result files; those that can carry a fingerprint do.
      level: Its place in the workflow: higher than that of every job before it.
    """

    name: str
    fingerprint: str
    outputs: tuple[Path, ...]
    level: int

    def is_current(self) -> bool:
        """Whether all results are there and were made from what they depend on now."""
        return all(path.is_file() for path in self.outputs) and all(
            signature(path) == self.fingerprint for path in self.outputs if can_sign(path)
        )


def all_jobs(params: Params, layout: Layout) -> Iterator[Job]:
    """Every job of a scale, each after the jobs that it depends on."""
    text = (layout.tokenizer, layout.manifest)
    yield Job("text", fingerprint.text(params), text, 1)
    for run, seed in params.jobs():
        trained = fingerprint.run(params, run, seed)
        level = 10 * (1 + len(params.ancestors(run)))
        folder = layout.run(run, seed)
        intervention = params.runs[run].intervention
        if intervention in MASKS:
            mask = (layout.mask(run, seed),)
            yield Job(f"intervention/{run}/seed{seed}", trained, mask, level)
        elif intervention == "used_widths":
            widths = (layout.widths(run, seed),)
            yield Job(f"intervention/{run}/seed{seed}", trained, widths, level)
        files = tuple(folder / name for name in RUN_FILES)
        yield Job(f"train/{run}/seed{seed}", trained, files, level + 1)
        metrics = fingerprint.metrics(params, run, seed)
        yield Job(f"extract/{run}/seed{seed}", metrics, (folder / "metrics.json",), level + 2)
    for table in TABLES:
        filled = fingerprint.paper(params, "tables", TABLE_RUNS[table])
        yield Job(f"table/{table}", filled, tuple(layout.table(table)), _PAPER_LEVEL)
    for figure, row in FIGURES.items():
        drawn = fingerprint.paper(params, "figures", row.runs)
        yield Job(f"figure/{figure}", drawn, (layout.figure(figure),), _PAPER_LEVEL)
    decided = fingerprint.paper(params, "claims", params.runs)
    yield Job("claims", decided, tuple(layout.claims), _PAPER_LEVEL)
    yield Job("summary", decided, (layout.summary,), _PAPER_LEVEL + 1)
    yield Job("report", fingerprint.report(params), (layout.report,), _PAPER_LEVEL + 1)


def write_stamps(params: Params, layout: Layout) -> None:
    """Makes modification times tell what is stale, and nothing else.

    Snakemake compares modification times, which a clone or `dvc pull` sets at random. So every job
    has a stamp that holds its fingerprint. Where its results carry the same fingerprint, stamp and
    results get settled times, long ago and in the order of the workflow; where they do not, the
    stamp is newer than everything.
    """
    for job in all_jobs(params, layout):
        stamp = layout.stamp(job.name)
        if not stamp.is_file() or stamp.read_text().strip() != job.fingerprint:
            write_text(stamp, job.fingerprint + "\n")
        current = job.is_current()
        if job.name == "text":
            # Nothing in the tokenizer's file says what it was made from.
            current = jobs.text_is_current(params, layout)
        if not current:
            os.utime(stamp)
            continue
        os.utime(stamp, (_SETTLED, _SETTLED))
        for path in job.outputs:
            os.utime(path, (_SETTLED + job.level,) * 2)


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
    file = (folder / "relu-sparsity.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in folder.glob("locks/*"):
            leftover.unlink()
    except OSError:
        pass
    fcntl.flock(file, fcntl.LOCK_SH)
    return file
