rule tokenizer:
    input:
        LAYOUT.stamp("text"),
    output:
        LAYOUT.tokenizer,
    log:
        LAYOUT.log("tokenizer"),
    benchmark:
        LAYOUT.benchmark("tokenizer")
    shell:
        "relu-sparsity tokenizer --scale {SCALE} > {log} 2>&1"


rule data:
    input:
        stamp=LAYOUT.stamp("text"),
        tokenizer=LAYOUT.tokenizer,
    output:
        LAYOUT.manifest,
    log:
        LAYOUT.log("data"),
    shell:
        "relu-sparsity data --scale {SCALE} > {log} 2>&1"
