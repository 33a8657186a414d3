# Finished results from elsewhere (`results_from`) as the same tables that a study collects.


rule import_results:
    input:
        STUDY.settings.results_from,
    output:
        expand(f"{R}/tables/{{name}}.csv", name=catalog.COLLECTED),
    log:
        f"{R}/logs/import_results.log",
    conda:
        "../envs/analysis.yaml"
    params:
        folder=f"{R}/tables",
        architectures=STUDY.imported_architectures,
    shell:
        STUDY.command("import --out-dir {params.folder:q} -- {input:q} 2> {log:q}")
