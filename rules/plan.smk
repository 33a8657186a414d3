# Before a study: its costs, a trial of every run, and the speed of this machine. The plan needs no data.


rule plan_files:
    input:
        calibration=STUDY.calibration,
    output:
        text=f"{R}/plan.txt",
        table=f"{R}/plan.csv",
    log:
        f"{R}/logs/plan.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        plan=STUDY.plan_digest,
    shell:
        STUDY.command('plan --out "$(dirname {output.text:q})" > {log:q} 2>&1')


# No output, so that it prints the plan every time.
rule plan:
    input:
        rules.plan_files.output.text,
    log:
        f"{R}/logs/plan_shown.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    shell:
        "cat {input:q} | tee {log:q}"


# No declared output, so that it always runs, and a failure keeps its report.
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
        STUDY.command("preflight 2>&1 | tee {log:q}")


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
        STUDY.command("calibrate 2>&1 | tee {log:q}")
