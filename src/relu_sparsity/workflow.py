"""What the Snakefile needs beyond rules: stamps, which decide what is stale, and locks."""

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import IO

from relu_sparsity import fingerprint, jobs
from relu_sparsity.files import write_text
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params
from relu_sparsity.store import exported_fingerprint


def write_stamps(params: Params, layout: Layout) -> None:
    """Writes the stamp of every job, so that modification times tell what is stale.

    A stamp holds its job's fingerprint. Snakemake compares modification times, which a clone or
    `dvc pull` sets at random; so a stamp is older than everything where the results carry its
    fingerprint, and newer than everything where they do not.
    """
    text = jobs.text_fingerprint(params)
    text_made_for = jobs.json_fingerprint(layout.manifest)
    _write_stamp(layout.stamp("text"), text, text_made_for)
    for run, seed in params.jobs():
        wanted = fingerprint.run(params, run, seed)
        made_for = exported_fingerprint(layout.run(run, seed))
        _write_stamp(layout.stamp(f"train/{run}/seed{seed}"), wanted, made_for)
        match params.runs[run].intervention:
            case "used_widths":
                made_for = jobs.json_fingerprint(layout.widths(run, seed))
            case "mask_unused" | "mask_random":
                made_for = jobs.mask_fingerprint(layout.mask(run, seed))
            case None:
                continue
        _write_stamp(layout.stamp(f"intervention/{run}/seed{seed}"), wanted, made_for)
    metrics = {name: run.config.metrics.convergence_window for name, run in params.runs.items()}
    for run, window in metrics.items():
        wanted = fingerprint.digest([fingerprint.code(fingerprint.EXTRACT_MODULES), window])
        _keep_stamp(layout.stamp(f"extract/{run}"), wanted)
    analysis = {
        "claims": params.claims.model_dump(mode="json"),
        "metrics": params.metrics.model_dump(mode="json"),
        "runs": {name: list(run.seeds) for name, run in params.runs.items()},
    }
    for name, modules in fingerprint.PAPER_MODULES.items():
        wanted = fingerprint.digest([fingerprint.code(modules), analysis])
        _keep_stamp(layout.stamp(name), wanted)


def _write_stamp(path: Path, wanted: str, made_for: str | None) -> None:
    _keep_stamp(path, wanted)
    modified = 0.0 if made_for == wanted else time.time()
    os.utime(path, (modified, modified))


def _keep_stamp(path: Path, wanted: str) -> None:
    """Writes a stamp only where its content changes."""
    if not path.is_file() or path.read_text().strip() != wanted:
        write_text(path, wanted + "\n")


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
        shutil.rmtree(folder / "locks", ignore_errors=True)
    except OSError:
        pass
    fcntl.flock(file, fcntl.LOCK_SH)
    return file
