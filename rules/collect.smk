# Tables of all finished runs of the study.

CURVES = {
    "validation": expand(f"{R}/runs/{{run}}/validation.csv", run=RUNS),
    "training": expand(f"{R}/runs/{{run}}/metrics.csv", run=RUNS),
}
MOST_POINTS = {"validation": 0, "training": 400}  # per run; 0: all


rule collect_runs:
    input:
        expand(f"{R}/runs/{{run}}/run_summary.json", run=RUNS),
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
    params:
        questions=STUDY.settings.comparisons.digest,
    shell:
        STUDY.command("collect runs {input:q} --out {output:q} 2> {log:q}")


rule collect_curves:
    input:
        lambda wildcards: CURVES[wildcards.curve],
    output:
        f"{R}/tables/{{curve}}_curves.csv",
    log:
        f"{R}/logs/collect_{{curve}}_curves.log",
    wildcard_constraints:
        curve="|".join(CURVES),
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        points=lambda wildcards: MOST_POINTS[wildcards.curve],
    shell:
        "python -m fvlm collect curves {input:q} --points {params.points} --out {output:q} 2> {log:q}"


rule collect_evaluation:
    input:
        expand(f"{R}/evaluation/{{run}}.csv", run=STUDY.evaluated),
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


rule collect_benchmarks:
    input:
        STUDY.benchmarks.scores,
    output:
        report(
            f"{R}/tables/benchmarks.csv",
            caption="../workflow/report/benchmarks.rst",
            category="Benchmarks",
            labels={"what": "Scores by run, mode and category", "form": "table"},
        ),
    log:
        f"{R}/logs/collect_benchmarks.log",
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        published=STUDY.settings.comparisons.benchmarks.digest,
    shell:
        STUDY.command("collect benchmarks {input:q} --out {output:q} 2> {log:q}")
