# Before a study: what it will take, and whether it can. Neither needs data to be there.


rule plan_files:
    input:
        calibration=STUDY.calibration,
    output:
        text=f"{R}/plan.txt",
        table=f"{R}/plan.csv",
    log:
        f"{R}/logs/plan.log",
    conda:
        "../envs/analysis.yaml"
    params:
        plan=STUDY.plan_digest,
    shell:
        'python -m fvlm plan --out "$(dirname {output.text:q})" > {log:q} 2>&1'


# Shown every time that it is asked for.
rule plan:
    input:
        rules.plan_files.output.text,
    log:
        f"{R}/logs/plan_shown.log",
    conda:
        "../envs/analysis.yaml"
    shell:
        "cat {input:q} | tee {log:q}"


# No declared output, so that it is always run, and what it wrote stays when it fails.
rule preflight:
    log:
        f"{R}/logs/preflight.log",
    conda:
        "../envs/train.yaml"
    threads: STUDY.resources.most_threads
    resources:
        gpu=STUDY.resources.most_gpus,
        gpu_model=STUDY.resources.largest_gpu_model,
        constraint=STUDY.resources.largest_gpu_constraint,
    shell:
        "python -m fvlm preflight 2>&1 | tee {log:q}"


rule calibrate:
    log:
        f"{R}/logs/calibrate.log",
    conda:
        "../envs/train.yaml"
    threads: STUDY.resources.most_threads
    resources:
        gpu=STUDY.resources.most_gpus,
        gpu_model=STUDY.resources.largest_gpu_model,
        constraint=STUDY.resources.largest_gpu_constraint,
    shell:
        "python -m fvlm calibrate 2>&1 | tee {log:q}"
