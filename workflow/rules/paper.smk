rule tables:
    input:
        stamp=LAYOUT.stamp("tables"),
        runs=run_files(PARAMS.runs),
    output:
        [
            report(
                LAYOUT.results / "tables" / f"{table}.csv",
                caption="../report/table.rst",
                category="Tables",
                labels={"table": table.removeprefix("table"), "shows": title},
            )
            for table, title in TABLES.items()
        ],
        [
            LAYOUT.results / "tables" / f"{table}.{suffix}"
            for table in TABLES
            for suffix in TABLE_FORMATS
            if suffix != "csv"
        ],
    log:
        LAYOUT.log("tables"),
    params:
        scale=SCALE,
    message:
        "write Tables 1-5"
    shell:
        "relu-sparsity tables --scale {params.scale} > {log} 2>&1"


rule figure:
    input:
        stamp=LAYOUT.stamp("figures"),
        runs=runs_of_figure,
    output:
        report(
            LAYOUT.results / "figures" / "{figure}.svg",
            caption="../report/figure.rst",
            category=category_of_figure,
            labels=labels_of_figure,
        ),
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
        runs=run_files(PARAMS.runs),
        masks=mask_files(PARAMS.runs),
    output:
        [LAYOUT.results / f"claims.{suffix}" for suffix in CLAIM_FORMATS],
    log:
        LAYOUT.log("claims"),
    params:
        scale=SCALE,
    message:
        "decide the claims"
    shell:
        "relu-sparsity claims --scale {params.scale} > {log} 2>&1"


rule report:
    input:
        stamp=LAYOUT.stamp("report"),
        claims=rules.claims.output,
        tables=rules.tables.output,
        figures=expand(LAYOUT.results / "figures" / "{figure}.svg", figure=FIGURES),
    output:
        LAYOUT.report,
    log:
        LAYOUT.log("report"),
    params:
        scale=SCALE,
    message:
        "write the report"
    shell:
        "relu-sparsity report --scale {params.scale} > {log} 2>&1"
