rule table:
    input:
        stamp=LAYOUT.stamp("table/{table}"),
        runs=runs_of_table,
    output:
        report(
            LAYOUT.results / "tables" / "{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels=labels_of_table,
        ),
        [path for path in LAYOUT.table("{table}") if path.suffix != ".csv"],
        LAYOUT.record(LAYOUT.table("{table}")[0]),
    log:
        LAYOUT.log("tables/{table}"),
    params:
        scale=SCALE,
    message:
        "write {wildcards.table}"
    shell:
        "relu-sparsity tables --table {wildcards.table} --scale {params.scale} > {log} 2>&1"


rule figure:
    input:
        stamp=LAYOUT.stamp("figure/{figure}"),
        runs=runs_of_figure,
    output:
        report(
            LAYOUT.figure("{figure}"),
            caption="../report/figure.rst",
            category=category_of_figure,
            labels=labels_of_figure,
        ),
        LAYOUT.record(LAYOUT.figure("{figure}")),
    log:
        LAYOUT.log("figures/{figure}"),
    params:
        caption=caption_of_figure,
        scale=SCALE,
    message:
        "draw {wildcards.figure}"
    shell:
        "relu-sparsity figures --figure {wildcards.figure} --scale {params.scale} > {log} 2>&1"


rule claims:
    input:
        stamp=LAYOUT.stamp("claims"),
        runs_and_masks=results_for("claims"),
    output:
        LAYOUT.claims,
        LAYOUT.record(LAYOUT.claims[0]),
    log:
        LAYOUT.log("claims"),
    params:
        scale=SCALE,
    message:
        "decide the claims"
    shell:
        "relu-sparsity claims --scale {params.scale} > {log} 2>&1"


rule summary:
    input:
        stamp=LAYOUT.stamp("summary"),
        claims_and_runs=results_for("summary"),
    output:
        LAYOUT.summary,
        LAYOUT.curves,
        LAYOUT.record(LAYOUT.summary),
    log:
        LAYOUT.log("summary"),
    params:
        scale=SCALE,
    message:
        "sum up losses, curves and verdicts"
    shell:
        "relu-sparsity summary --scale {params.scale} > {log} 2>&1"


rule sensitivity:
    input:
        stamp=LAYOUT.stamp("sensitivity"),
        runs=baseline_and_choices,
    output:
        LAYOUT.sensitivity,
        LAYOUT.record(LAYOUT.sensitivity[0]),
    log:
        LAYOUT.log("sensitivity"),
    params:
        scale=SCALE,
    message:
        "tell which claims hang on which choice"
    shell:
        "relu-sparsity sensitivity --scale {params.scale} > {log} 2>&1"


rule pruning:
    input:
        stamp=LAYOUT.stamp(PRUNING),
        runs=results_for(PRUNING),
    output:
        report(
            LAYOUT.results / "tables" / f"{PRUNING}.csv",
            caption="../report/pruning.rst",
            category="Tables",
            labels={"table": "pruning", "shows": "What leaving masked units out saves"},
        ),
        [path for path in LAYOUT.table(PRUNING) if path.suffix != ".csv"],
        LAYOUT.record(LAYOUT.table(PRUNING)[0]),
    log:
        LAYOUT.log("pruning"),
    params:
        scale=SCALE,
    message:
        "write what leaving masked units out saves"
    shell:
        "relu-sparsity pruning --scale {params.scale} > {log} 2>&1"


rule own:
    input:
        stamp=LAYOUT.stamp("own"),
        runs=results_for("own"),
    output:
        report(
            LAYOUT.results / "tables" / f"{OWN_RUNS}.csv",
            caption="../report/own_runs.rst",
            category="Your own runs",
            labels={"table": "own runs", "shows": "Loss, accuracy and use per layer"},
        ),
        [path for path in LAYOUT.table(OWN_RUNS) if path.suffix != ".csv"],
        LAYOUT.record(LAYOUT.table(OWN_RUNS)[0]),
    log:
        LAYOUT.log("own"),
    params:
        scale=SCALE,
    message:
        "write the table of your own runs"
    shell:
        "relu-sparsity own --scale {params.scale} > {log} 2>&1"


rule tables:
    input:
        LAYOUT.table(PRUNING),
        LAYOUT.table(OWN_RUNS) if "own" in JOBS else [],
        expand(LAYOUT.results / "tables" / "{table}.csv", table=TABLES),


rule figures:
    input:
        expand(LAYOUT.figure("{figure}"), figure=FIGURES),


rule report:
    input:
        stamp=LAYOUT.stamp("report"),
        claims_tables_figures=results_for("report"),
    output:
        LAYOUT.report,
        LAYOUT.record(LAYOUT.report),
    log:
        LAYOUT.log("report"),
    params:
        scale=SCALE,
    message:
        "write the report"
    shell:
        "relu-sparsity report --scale {params.scale} > {log} 2>&1"
