rule tokenizer:
    input:
        LAYOUT.stamp("text"),
    output:
        LAYOUT.tokenizer,
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
        stamp=LAYOUT.stamp("text"),
        tokenizer=LAYOUT.tokenizer,
    output:
        LAYOUT.manifest,
    log:
        LAYOUT.log("data"),
    params:
        scale=SCALE,
    message:
        "describe the data set"
    shell:
        "relu-sparsity data --scale {params.scale} > {log} 2>&1"
