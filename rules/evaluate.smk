# Held-out losses and attention maps of finished runs.


rule evaluate:
    input:
        unpack(evaluation_inputs),
    output:
        f"{R}/evaluation/{{run}}.csv",
    params:
        samples=STUDY.evaluation.samples,
    log:
        f"{R}/logs/evaluate/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: RUNS[w.run].operation.gpus,
    shell:
        "python -m fvlm evaluate {wildcards.run} --out {output} {STUDY_ARGUMENTS} 2> {log}"


rule attention:
    input:
        unpack(evaluation_inputs),
    output:
        f"{R}/attention/{{run}}.npz",
    params:
        videos=STUDY.evaluation.attention_videos,
    log:
        f"{R}/logs/attention/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: RUNS[w.run].operation.gpus,
    shell:
        "python -m fvlm attention {wildcards.run} --out {output} {STUDY_ARGUMENTS} 2> {log}"
