# Held-out losses, attention maps and pages of finished runs.


rule evaluate:
    input:
        unpack(STUDY.evaluation_inputs),
    output:
        f"{R}/evaluation/{{run}}.csv",
    log:
        f"{R}/logs/evaluate/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: min(1, RUNS[w.run].operation.gpus),
        gpu_model=STUDY.resources.gpu_model,
        constraint=STUDY.resources.gpu_constraint,
    params:
        samples=STUDY.settings.evaluation.samples,
    shell:
        STUDY.command("evaluate {wildcards.run} --out {output:q} 2> {log:q}")


rule attention:
    input:
        unpack(STUDY.evaluation_inputs),
    output:
        f"{R}/attention/{{run}}.npz",
    log:
        f"{R}/logs/attention/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: min(1, RUNS[w.run].operation.gpus),
        gpu_model=STUDY.resources.gpu_model,
        constraint=STUDY.resources.gpu_constraint,
    params:
        videos=STUDY.settings.evaluation.attention_videos,
    shell:
        STUDY.command("attention {wildcards.run} --out {output:q} 2> {log:q}")


# A page that shows where a run looks in the fixed evaluation videos; that of the baseline has other runs beside it.
rule look:
    input:
        STUDY.looks.inputs,
    output:
        report(
            f"{R}/look/{{run}}.html",
            caption="../workflow/report/look.rst",
            category="Attention",
            labels={"what": "Where {run} looks, frame by frame", "form": "page"},
        ),
    log:
        f"{R}/logs/look/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: min(1, RUNS[w.run].operation.gpus),
        gpu_model=STUDY.resources.gpu_model,
        constraint=STUDY.resources.gpu_constraint,
    params:
        videos=STUDY.settings.evaluation.attention_videos,
        runs=STUDY.looks.options,
    shell:
        STUDY.command("look {params.runs} --out {output:q} 2> {log:q}")


# Answers are kept beside the scores, question by question: a killed job goes on from them.
rule benchmark:
    input:
        STUDY.benchmarks.inputs,
    output:
        f"{R}/benchmarks/{{run}}/{{benchmark}}.csv",
    log:
        f"{R}/logs/benchmark/{{run}}_{{benchmark}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: min(1, RUNS[w.run].operation.gpus),
        gpu_model=STUDY.resources.gpu_model,
        constraint=STUDY.resources.gpu_constraint,
    params:
        crop=lambda w: STUDY.settings.benchmark_source(w.benchmark).crop,
    shell:
        STUDY.command(
            "benchmark {wildcards.run} {wildcards.benchmark} --out {output:q} 2> {log:q}"
        )
