# Every training - stage, ablation, grid cell - is one target. A killed run goes on from the checkpoint in its own
# undeclared folder state/; only finished artefacts are declared, because a failed job's declared outputs are deleted.


rule train:
    input:
        unpack(training_inputs),
    output:
        summary=f"{R}/runs/{{run}}/run_summary.json",
        metrics=f"{R}/runs/{{run}}/metrics.csv",
        validation=f"{R}/runs/{{run}}/validation.csv",
        best=ensure(f"{R}/runs/{{run}}/model/best.safetensors", non_empty=True),
        final=ensure(f"{R}/runs/{{run}}/model/final.safetensors", non_empty=True),
        run=f"{R}/runs/{{run}}/model/run.json",
    log:
        f"{R}/logs/train/{{run}}.log",
    conda:
        "../envs/train.yaml"
    threads: lambda w: RUNS[w.run].operation.threads
    resources:
        gpu=lambda w: RUNS[w.run].operation.gpus,
    params:
        digest=lambda w: RUNS[w.run].digest,
    shell:
        "python -m fvlm train {wildcards.run} --digest {params.digest} 2>&1 | tee {log:q}"


# The stages wait for each other, so they start first.
use rule train as train_stage with:
    wildcard_constraints:
        run="|".join(STAGES),
    priority: 50


ruleorder: train_stage > train
