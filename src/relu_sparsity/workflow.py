"""What the Snakefile needs beyond rules: what is stale, and locks."""

import fcntl
import os
import sys
from pathlib import Path
from typing import IO

from relu_sparsity import fingerprint, jobs
from relu_sparsity.files import write_text
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params
from relu_sparsity.store import exported_fingerprint

# Long ago: before any real result, after what archive formats can hold.
_SETTLED = 1_000_000_000


def write_stamps(params: Params, layout: Layout) -> None:
    """Makes modification times tell what is stale, and nothing else.

    Snakemake compares modification times, which a clone or `dvc pull` sets at random. So every job
    up to training has a stamp that holds its fingerprint. Where the job's result carries the same
    fingerprint, stamp and result get settled times, long ago and in the order of the workflow;
    where it does not, the stamp is newer than everything.
    """
    text = jobs.text_fingerprint(params)
    text_is_current = jobs.json_fingerprint(layout.manifest) == text
    results = [layout.tokenizer, layout.manifest]
    _settle(layout.stamp("text"), text, results if text_is_current else None, level=1)
    for run, seed in params.jobs():
        wanted = fingerprint.run(params, run, seed)
        level = 4 + 2 * len(params.ancestors(run))
        found = exported_fingerprint(layout.run(run, seed))
        results = [layout.run(run, seed) / "run.json"]
        stamp = layout.stamp(f"train/{run}/seed{seed}")
        _settle(stamp, wanted, results if found == wanted else None, level=level)
        if params.runs[run].intervention is None:
            continue
        if params.runs[run].intervention == "used_widths":
            path = layout.widths(run, seed)
            found = jobs.json_fingerprint(path)
        else:
            path = layout.mask(run, seed)
            found = jobs.mask_fingerprint(path)
        stamp = layout.stamp(f"intervention/{run}/seed{seed}")
        _settle(stamp, wanted, [path] if found == wanted else None, level=level - 1)
    extract = fingerprint.code(fingerprint.EXTRACT_MODULES)
    for name, run_params in params.runs.items():
        window = run_params.config.metrics.convergence_window
        _keep_stamp(layout.stamp(f"extract/{name}"), fingerprint.digest([extract, window]))
    analysis = {
        "claims": params.claims.model_dump(mode="json"),
        "metrics": params.metrics.model_dump(mode="json"),
        "runs": {name: list(run.seeds) for name, run in params.runs.items()},
    }
    for name, modules in fingerprint.PAPER_MODULES.items():
        wanted = fingerprint.digest([fingerprint.code(modules), analysis])
        _keep_stamp(layout.stamp(name), wanted)


def _settle(stamp: Path, wanted: str, results: list[Path] | None, *, level: int) -> None:
    """Writes a stamp; sets times by level where `results` are current, else the stamp's to now."""
    _keep_stamp(stamp, wanted)
    if results is None:
        os.utime(stamp)
        return
    os.utime(stamp, (_SETTLED, _SETTLED))
    for offset, path in enumerate(results):
        if path.is_file():
            os.utime(path, (_SETTLED + level + offset,) * 2)


def _keep_stamp(path: Path, wanted: str) -> None:
    """Writes a stamp only where its content changes."""
    if not path.is_file() or path.read_text().strip() != wanted:
        write_text(path, wanted + "\n")


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
