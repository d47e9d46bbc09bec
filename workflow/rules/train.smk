rule train:
    input:
        stamp=LAYOUT.stamp("train/{run}/seed{seed}"),
        text_and_intervention=results_for_training,
    output:
        [RUN / name for name in RUN_FILES],
    log:
        LAYOUT.log("train/{run}.seed{seed}"),
    priority: priority_of_run
    threads: PARAMS.resources.threads
    resources:
        mem_mb=PARAMS.resources.mem_mb,
    params:
        command=training_command,
        scale=SCALE,
    message:
        "train {wildcards.run}, seed {wildcards.seed}"
    shell:
        "exec {params.command} train --run {wildcards.run} --seed {wildcards.seed} --scale {params.scale}"
        " --stop-with-parent > {log} 2>&1"


rule extract:
    input:
        stamp=LAYOUT.stamp("extract/{run}/seed{seed}"),
        run=trained_run,
    output:
        RUN / "metrics.json",
        LAYOUT.record(RUN / "metrics.json"),
    log:
        LAYOUT.log("extract/{run}.seed{seed}"),
    params:
        scale=SCALE,
    message:
        "extract the metrics of {wildcards.run}, seed {wildcards.seed}"
    shell:
        "relu-sparsity extract --run {wildcards.run} --seed {wildcards.seed} --scale {params.scale}"
        " > {log} 2>&1"


for name in PARAMS.runs:

    rule:
        name:
            f"run_{name}"
        input:
            metrics_of_run(name),
