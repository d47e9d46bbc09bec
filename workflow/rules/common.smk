import os
import signal
from pathlib import Path

from relu_sparsity.errors import UserError
from relu_sparsity.fingerprint import pruning_runs
from relu_sparsity.layout import RUN_FILES, Layout
from relu_sparsity.paper.catalog import FIGURES, PRUNING, TABLE_RUNS, TABLES
from relu_sparsity.params import MASKS, load_params
from relu_sparsity.processes import stop_with_parent, use_huge_pages
from relu_sparsity.tpu.launcher import require_setup
from relu_sparsity.tpu.slices import load_slice_params
from relu_sparsity.workflow import (
    call_this_environment,
    hold_workflow_lock,
    keep_trained_runs,
    record_in_dvc,
    write_stamps,
)

call_this_environment()
use_huge_pages()
if "DVC_ROOT" in os.environ:
    # A killed `dvc repro` leaves nothing running, so that the next one can go on.
    stop_with_parent(signal.SIGKILL)

SLICES = config.get("slices")
try:
    PARAMS = load_params(Path("params.yaml"), config.get("scale"))
    LAYOUT = Layout(PARAMS.scale)
    WORKFLOW_LOCK = hold_workflow_lock()
    write_stamps(PARAMS, LAYOUT)
    SLICE_PARAMS = load_slice_params(Path(SLICES)) if SLICES else None
except UserError as error:
    raise WorkflowError(str(error))

SCALE = PARAMS.scale
RUN = LAYOUT.run("{run}", "{seed}")


wildcard_constraints:
    run="|".join(PARAMS.runs),
    seed=r"\d+",
    figure=r"fig\d+",
    table=r"table\d+",


def training_command(wildcards, threads, resources):
    """What trains: this machine, several nodes of a cluster, or a slice of its own."""
    if SLICES:
        return f"relu-sparsity tpu run --slices {SLICES}"
    if resources.get("mpi"):
        # SLURM's own variables for these are gone in such a job.
        size = f"--nodes={resources.nodes} --ntasks={resources.tasks} --cpus-per-task={threads}"
        return f"{resources.mpi} {size} relu-sparsity"
    return "relu-sparsity"


def run_files(runs):
    """The result files of all seeds of some runs."""
    return [
        LAYOUT.run(run, seed) / name
        for run, seed in PARAMS.jobs()
        if run in runs
        for name in (*RUN_FILES, "metrics.json")
    ]


def mask_files(runs):
    """The masks of all seeds of those of some runs that have one."""
    return [
        LAYOUT.mask(run, seed)
        for run, seed in PARAMS.jobs()
        if run in runs and PARAMS.runs[run].intervention in MASKS
    ]


def intervention_of_run(wildcards):
    """The mask or the widths that a run is trained with, if it has any."""
    intervention = PARAMS.runs[wildcards.run].intervention
    if intervention in MASKS:
        return LAYOUT.mask(wildcards.run, wildcards.seed)
    if intervention == "used_widths":
        return LAYOUT.widths(wildcards.run, wildcards.seed)
    return []


def parent_of_run(wildcards):
    """The trained run that a run branches off."""
    return LAYOUT.run(PARAMS.runs[wildcards.run].parent, wildcards.seed) / "run.json"


def runs_of_table(wildcards):
    """The results that a table shows."""
    return run_files(TABLE_RUNS[wildcards.table])


def labels_of_table(wildcards):
    return {"table": wildcards.table.removeprefix("table"), "shows": TABLES[wildcards.table]}


def runs_of_figure(wildcards):
    """The results that a figure shows."""
    return run_files(FIGURES[wildcards.figure].runs)


def caption_of_figure(wildcards):
    return FIGURES[wildcards.figure].caption


def category_of_figure(wildcards):
    return FIGURES[wildcards.figure].category


def labels_of_figure(wildcards):
    row = FIGURES[wildcards.figure]
    return {"figure": row.number, "shows": row.title}
