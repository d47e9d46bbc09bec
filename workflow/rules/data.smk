rule tokenizer:
    input:
        LAYOUT.stamp("tokenizer"),
    output:
        LAYOUT.tokenizer,
        LAYOUT.record(LAYOUT.tokenizer),
    log:
        LAYOUT.log("tokenizer"),
    benchmark:
        LAYOUT.benchmark("tokenizer")
    params:
        scale=SCALE,
    message:
        "build the data set and the tokenizer"
    shell:
        "relu-sparsity tokenizer --scale {params.scale} > {log} 2>&1"


rule data:
    input:
        stamp=LAYOUT.stamp("data"),
        tokenizer=results_for("data"),
    output:
        LAYOUT.manifest,
        LAYOUT.record(LAYOUT.manifest),
    log:
        LAYOUT.log("data"),
    params:
        scale=SCALE,
    message:
        "describe the data set"
    shell:
        "relu-sparsity data --scale {params.scale} > {log} 2>&1"
