# Held-out losses and attention maps of finished runs.


rule evaluate:
    input:
        unpack(evaluation_inputs),
    output:
        f"{R}/evaluation/{{run}}.csv",
    log:
        f"{R}/logs/evaluate/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: min(1, RUNS[w.run].operation.gpus),
        gpu_model=lambda w: gpu_kind(RUNS[w.run], "gpu_models"),
        constraint=lambda w: gpu_kind(RUNS[w.run], "gpu_constraints"),
    params:
        samples=STUDY.evaluation.samples,
    shell:
        "python -m fvlm evaluate {wildcards.run} --out {output:q} 2> {log:q}"


rule attention:
    input:
        unpack(evaluation_inputs),
    output:
        f"{R}/attention/{{run}}.npz",
    log:
        f"{R}/logs/attention/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: min(1, RUNS[w.run].operation.gpus),
        gpu_model=lambda w: gpu_kind(RUNS[w.run], "gpu_models"),
        constraint=lambda w: gpu_kind(RUNS[w.run], "gpu_constraints"),
    params:
        videos=STUDY.evaluation.attention_videos,
    shell:
        "python -m fvlm attention {wildcards.run} --out {output:q} 2> {log:q}"
