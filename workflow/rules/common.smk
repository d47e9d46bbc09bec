import os
import signal
import sys
from pathlib import Path

from snakemake.settings.enums import RerunTrigger

from relu_sparsity import dag_view, forkserver
from relu_sparsity.errors import UserError
from relu_sparsity.jobs import job_table
from relu_sparsity.layout import RUN_FILES, Layout
from relu_sparsity.paper.catalog import OWN_RUNS, PRUNING, TABLES, figures
from relu_sparsity.params_file import load_params
from relu_sparsity.processes import stop_with_parent, use_huge_pages
from relu_sparsity.tpu.setup import require_setup
from relu_sparsity.tpu.slices import load_slice_params
from relu_sparsity.workflow import (
    call_this_environment,
    can_write,
    check_config,
    critical_paths,
    hold_workflow_lock,
    is_dry_run,
    keep_trained_runs,
    look_only,
    note_jobs_that_ended_unseen,
    record_in_dvc_now,
    training_slots,
    write_stamps,
)

call_this_environment()
use_huge_pages()
# As `--rerun-triggers mtime`, which a Snakefile cannot say: stamps tell what is stale. A job that ran
# because a rule's text changed would hide from Snakemake that later ones are stale by their stamps.
type(workflow).rerun_triggers = property(lambda _: {RerunTrigger.MTIME})
if is_dry_run(sys.argv) and not can_write(Path(".snakemake")):
    look_only()
if "DVC_ROOT" in os.environ:
    # A killed `dvc repro` leaves nothing running, so that the next one can go on.
    stop_with_parent(signal.SIGKILL)

SLICES = config.get("slices")
try:
    check_config(config)
    PARAMS = load_params(Path("params.yaml"), config.get("scale"))
    LAYOUT = Layout(PARAMS.scale)
    # A dry run changes nothing but stamps.
    WORKFLOW_LOCK = None if is_dry_run(sys.argv) else hold_workflow_lock()
    JOBS = job_table(PARAMS, LAYOUT)
    LAYOUT, TO_RUN = write_stamps(JOBS, LAYOUT, is_dry=is_dry_run(sys.argv))
    if "--report" in sys.argv:
        from relu_sparsity.report import overview

        # Its graph of rules is the same, whatever is stale.
        TO_RUN = set()
        # A report's first page knows of `config` alone.
        config["overview"] = overview(PARAMS, LAYOUT)
    SLICE_PARAMS = load_slice_params(Path(SLICES)) if SLICES else None
except UserError as error:
    raise WorkflowError(str(error))

SCALE = PARAMS.scale
FIGURES = figures(PARAMS.paper_runs)
RUN = LAYOUT.run("{run}", "{seed}")
CRITICAL_PATHS = critical_paths(PARAMS)


wildcard_constraints:
    run="|".join(PARAMS.runs),
    seed=r"\d+",
    figure=r"fig\d+|run_\w+",
    table=r"table\d+",


def training_command(wildcards, threads, resources):
    """What trains: this machine, several nodes of a cluster, or a slice of its own."""
    if SLICES:
        return f"relu-sparsity tpu run --slices {SLICES}"
    if resources.get("tpu_slices"):
        raise WorkflowError(
            "--config took the place of the profile's, which names the slices; allowed: --config "
            f"scale={SCALE} slices=workflow/profiles/tpu/slices.yaml"
        )
    if resources.get("mpi"):
        # SLURM's own variables for these are gone in such a job.
        size = f"--nodes={resources.nodes} --ntasks={resources.tasks} --cpus-per-task={threads}"
        return f"{resources.mpi} {size} relu-sparsity"
    return "relu-sparsity"


def priority_of_run(wildcards):
    """The longest chain of training first; what is drawn fills the gaps."""
    return CRITICAL_PATHS[wildcards.run]


def results_for(name):
    """The records of the results that a job reads, written after them.

    The times of those that are current say nothing: the job's stamp tells whether it is stale.
    """
    return [
        JOBS[before].record if before in TO_RUN else ancient(JOBS[before].record)
        for before in (JOBS[name].after if name in JOBS else ())
    ]


def results_for_training(wildcards):
    """The text, and the mask or the widths of a run that has them."""
    return results_for(f"train/{wildcards.run}/seed{wildcards.seed}")


def parent_of_masked(wildcards):
    """The trained run that a mask is taken of."""
    return results_for(f"mask/{wildcards.run}/seed{wildcards.seed}")


def parent_of_round2(wildcards):
    """The trained run that decides a run's widths."""
    return results_for(f"widths/{wildcards.run}/seed{wildcards.seed}")


def trained_run(wildcards):
    """The results of a run."""
    return results_for(f"extract/{wildcards.run}/seed{wildcards.seed}")


def runs_of_table(wildcards):
    """The metrics of the runs that a table shows."""
    return results_for(f"table/{wildcards.table}")


def runs_of_figure(wildcards):
    """The metrics of the runs that a figure shows."""
    return results_for(f"figure/{wildcards.figure}")


def baseline_and_choices(wildcards):
    """The metrics of the baseline under each choice."""
    if "sensitivity" not in JOBS:
        raise WorkflowError(f"sensitivity: params.yaml has nothing for it at the scale {SCALE}")
    return results_for("sensitivity")


def metrics_of_run(name):
    """The metrics of all seeds of a run."""
    return [LAYOUT.run(name, seed) / "metrics.json" for seed in PARAMS.runs[name].seeds]


def labels_of_table(wildcards):
    return {"table": wildcards.table.removeprefix("table"), "shows": TABLES[wildcards.table]}


def caption_of_figure(wildcards):
    return FIGURES[wildcards.figure].caption


def category_of_figure(wildcards):
    return FIGURES[wildcards.figure].category


def labels_of_figure(wildcards):
    row = FIGURES[wildcards.figure]
    return {"figure": row.number, "shows": row.title}
