rule mask:
    input:
        stamp=LAYOUT.stamp("mask/{run}/seed{seed}"),
        parent=parent_of_masked,
    output:
        LAYOUT.mask("{run}", "{seed}"),
        LAYOUT.record(LAYOUT.mask("{run}", "{seed}")),
    log:
        LAYOUT.log("mask/{run}.seed{seed}"),
    priority: priority_of_run
    threads: PARAMS.resources.threads
    resources:
        mem_mb=PARAMS.resources.mem_mb,
    params:
        command=training_command,
        scale=SCALE,
    message:
        "make the mask of {wildcards.run}, seed {wildcards.seed}"
    shell:
        "exec {params.command} mask --run {wildcards.run} --seed {wildcards.seed} --scale {params.scale}"
        " --stop-with-parent > {log} 2>&1"


rule widths:
    input:
        stamp=LAYOUT.stamp("widths/{run}/seed{seed}"),
        parent=parent_of_round2,
    output:
        LAYOUT.widths("{run}", "{seed}"),
        LAYOUT.record(LAYOUT.widths("{run}", "{seed}")),
    log:
        LAYOUT.log("widths/{run}.seed{seed}"),
    priority: priority_of_run
    params:
        scale=SCALE,
    message:
        "make the widths of {wildcards.run}, seed {wildcards.seed}"
    shell:
        "relu-sparsity widths --run {wildcards.run} --seed {wildcards.seed} --scale {params.scale}"
        " > {log} 2>&1"
