# Every training - stage, ablation, grid cell - is one target. Snakemake deletes the declared outputs of a failed job, so
# only finished files are declared; a killed run resumes from a checkpoint in its undeclared folder state/.


rule train:
    input:
        unpack(STUDY.training_inputs),
    output:
        summary=f"{R}/runs/{{run}}/run_summary.json",
        metrics=f"{R}/runs/{{run}}/metrics.csv",
        validation=f"{R}/runs/{{run}}/validation.csv",
        best=ensure(f"{R}/runs/{{run}}/model/best.safetensors", non_empty=True),
        final=ensure(f"{R}/runs/{{run}}/model/final.safetensors", non_empty=True),
        run=f"{R}/runs/{{run}}/model/run.json",
    log:
        f"{R}/logs/train/{{run}}.log",
    priority: STUDY.resources.priority
    conda:
        "../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        gpu=STUDY.resources.gpus,
        gpu_model=STUDY.resources.gpu_model,
        constraint=STUDY.resources.gpu_constraint,
        nodes=STUDY.resources.nodes,
        tasks=STUDY.resources.nodes,
        mpi=STUDY.resources.mpi,
    params:
        digest=lambda w: RUNS[w.run].digest,
    shell:
        # Snakemake deletes the log of a job before it starts it again. A second name in state/ keeps all parts of the log.
        'kept="$(dirname {output.summary:q})/state/train.log"; mkdir -p "${{kept%/*}}"; : >> "$kept";'
        ' ln -f "$kept" {log:q} || ln -fs "$(realpath "$kept")" {log:q};'
        # bash and tee ignore the signals that stop a training, which still has to save and to report it
        f" trap '' TERM USR1; {STUDY.command('train')} {{wildcards.run}} --digest {{params.digest}}"
        ' --out "$(dirname {output.summary:q})" 2>&1 | tee -ia {log:q}'
