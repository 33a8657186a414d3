# Before a study: what it will take, and whether it can. Neither needs data to be there.

# What is tried and timed before the trainings goes where the run that needs the most memory will go.
LARGEST = max(
    RUNS.values(), key=lambda run: (run.operation.gpus > 0, predicted_bytes(run))
)


rule plan_files:
    input:
        calibration=calibration_of_study(),
    output:
        text=f"{R}/plan.txt",
        table=f"{R}/plan.csv",
    log:
        f"{R}/logs/plan.log",
    conda:
        "../envs/analysis.yaml"
    params:
        plan=digest_of_plan,
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
    threads: max(run.operation.threads for run in RUNS.values())
    resources:
        gpu=max(run.operation.gpus for run in RUNS.values()),
        gpu_model=gpu_kind(LARGEST, "gpu_models"),
        constraint=gpu_kind(LARGEST, "gpu_constraints"),
    shell:
        "python -m fvlm preflight 2>&1 | tee {log:q}"


rule calibrate:
    log:
        f"{R}/logs/calibrate.log",
    conda:
        "../envs/train.yaml"
    threads: max(run.operation.threads for run in RUNS.values())
    resources:
        gpu=max(run.operation.gpus for run in RUNS.values()),
        gpu_model=gpu_kind(LARGEST, "gpu_models"),
        constraint=gpu_kind(LARGEST, "gpu_constraints"),
    shell:
        "python -m fvlm calibrate 2>&1 | tee {log:q}"
