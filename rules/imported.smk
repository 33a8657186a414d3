# Finished results from elsewhere (`results_from`): one job makes the tables of a study, and another one all figures that
# the results allow. The rules `table` and `figure` make a single one on request.


rule import_results:
    input:
        STUDY.settings.results_from,
    output:
        STUDY.imported_tables,
    log:
        f"{R}/logs/import_results.log",
    conda:
        "../envs/analysis.yaml"
    params:
        folder=f"{R}/tables",
        architectures=STUDY.imported_architectures,
        comparisons=STUDY.settings.comparisons.digest,
        derived=STUDY.derived_option,
    shell:
        STUDY.command(
            "import {params.derived} --out-dir {params.folder:q} -- {input:q} 2> {log:q}"
        )


# Which figures exist is known only once they are drawn, so that the list of the others is the only declared output.
rule draw_results:
    input:
        STUDY.tables,
    output:
        report(
            STUDY.not_drawn,
            caption="../workflow/report/not_drawn.rst",
            category="Not drawn",
            labels={
                "what": "Figures that these results do not allow",
                "form": "table",
            },
        ),
    log:
        f"{R}/logs/draw_results.log",
    conda:
        "../envs/analysis.yaml"
    threads: lambda w: min(4, workflow.cores)
    params:
        figures=catalog.OF_RESULTS,
        tables=subpath(input[0], parent=True),
        folder=subpath(output[0], parent=True),
        comparisons=STUDY.settings.comparisons.digest,
    shell:
        STUDY.command(
            "figure {params.figures} --empty skip --not-drawn {output:q} --processes {threads}"
            " --tables {params.tables:q} --out-dir {params.folder:q} 2> {log:q}"
        )
