# The study's finished runs as whole tables, each written once.


rule collect_runs:
    input:
        [f"{R}/runs/{run}/run_summary.json" for run in RUNS],
    output:
        report(
            f"{R}/tables/runs.csv",
            caption="../workflow/report/runs.rst",
            category="Training",
            labels={"what": "All runs", "form": "table"},
        ),
    log:
        f"{R}/logs/collect_runs.log",
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    shell:
        "python -m fvlm collect runs {input:q} --out {output:q} 2> {log:q}"


rule collect_curves:
    input:
        lambda wildcards: [
            f"{R}/runs/{run}/{'validation' if wildcards.curve == 'validation' else 'metrics'}.csv"
            for run in RUNS
        ],
    output:
        f"{R}/tables/{{curve}}_curves.csv",
    log:
        f"{R}/logs/collect_{{curve}}_curves.log",
    wildcard_constraints:
        curve="validation|training",
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        points=lambda wildcards: 0 if wildcards.curve == "validation" else 400,
    shell:
        "python -m fvlm collect curves {input:q} --points {params.points} --out {output:q} 2> {log:q}"


rule collect_evaluation:
    input:
        [f"{R}/evaluation/{run}.csv" for run in EVALUATED],
    output:
        losses=report(
            f"{R}/tables/evaluation.csv",
            caption="../workflow/report/evaluation.rst",
            category="Evaluation",
            labels={"what": "Losses by run, mode and source", "form": "table"},
        ),
        bootstrap=f"{R}/tables/bootstrap.csv",
    log:
        f"{R}/logs/collect_evaluation.log",
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        replicates=1000,
    shell:
        "python -m fvlm collect evaluation {input:q} --replicates {params.replicates}"
        " --out {output.losses:q} --bootstrap {output.bootstrap:q} 2> {log:q}"
