# Finished results from elsewhere (`results_from`) as the tables that collecting a study makes.


rule import_results:
    input:
        STUDY.results_from,
    output:
        [f"{R}/tables/{name}.csv" for name in catalog.COLLECTED],
    log:
        f"{R}/logs/import_results.log",
    conda:
        "../envs/analysis.yaml"
    params:
        folder=f"{R}/tables",
        architectures={
            name: one.architecture for name, one in STUDY.comparisons.ablations.items()
        },
    shell:
        "python -m fvlm import --out-dir {params.folder:q} -- {input:q} 2> {log:q}"
