# The paper "Uncovering Layer-Dependent Activation Sparsity Patterns in ReLU Transformers".
#
#   snakemake --cores 2                        the scale of params.yaml
#   snakemake --cores 2 --config scale=mini    another scale
#   snakemake --cores 2 run_baseline           one run
#   snakemake --cores 2 sensitivity            what the paper leaves open, choice by choice
from snakemake.utils import min_version

min_version("9.14")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/interventions.smk"
include: "workflow/rules/paper.smk"


# Seconds each: on a cluster they do not wait in its queue.
localrules:
    widths,
    extract,
    table,
    figure,
    claims,
    summary,
    pruning,
    own,
    report,
    sensitivity,


report: "workflow/report/overview.rst"


onstart:
    dag_view.expect(
        PARAMS,
        training_slots(workflow),
        [(job.rule.name, job.wildcards_dict) for job in workflow.dag.needrun_jobs()],
    )
    if SLICE_PARAMS:
        require_setup(SLICE_PARAMS, PARAMS)
    keep_trained_runs(PARAMS, LAYOUT)
    note_jobs_that_ended_unseen(workflow)
    if sum(job.is_local for job in workflow.dag.needrun_jobs()) >= forkserver.ENOUGH_JOBS:
        # It imports in the time that it takes to build the data, or to train.
        forkserver.start()


onsuccess:
    record_in_dvc_now()


onerror:
    record_in_dvc_now()


rule all:
    default_target: True
    input:
        LAYOUT.report,
        LAYOUT.summary,
