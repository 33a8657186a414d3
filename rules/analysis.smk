# Tables made of the collected ones, and figures. All of them are listed in fvlm.analysis.catalog.

# A caption's path may hold no wildcard, so caption.rst shows the text in a job's parameters; figure.rst adds the
# sentences that the job wrote about its numbers. source_path is relative to the file that calls it, hence the lambda.
CAPTIONS = captions(lambda path: workflow.source_path(path))


# All tables and the standard figures; with `results_from` of finished results, as far as these allow, without training.
rule figures:
    input:
        STUDY.front_page,
        STUDY.decisions,
        STUDY.tables,
        STUDY.figures,
    localrule: True


rule table:
    input:
        STUDY.table_inputs,
    output:
        report(
            f"{R}/tables/{{table}}.csv",
            caption="../workflow/report/caption.rst",
            category=lambda wildcards: catalog.TABLES[wildcards.table].category,
            labels=STUDY.table_labels,
        ),
    log:
        f"{R}/logs/table_{{table}}.log",
    wildcard_constraints:
        table=STUDY.tables_alone,
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        folder=subpath(output[0], parent=True),
        caption=lambda wildcards: CAPTIONS[f"{wildcards.table}_table"],
        comparisons=STUDY.table_comparisons,
    shell:
        STUDY.command(
            "table {wildcards.table} --tables {params.folder:q} --out {output:q} 2> {log:q}"
        )


# What the report opens with. Its words are read back when the report is made.
rule decisions:
    input:
        f"{R}/tables/decisions.csv",
    output:
        page=report(
            STUDY.decisions[0],
            caption="../workflow/report/decisions.rst",
            category=catalog.FIRST,
            labels={"what": "Decisions", "form": "page"},
        ),
        text=STUDY.decisions[1],
    log:
        f"{R}/logs/decisions.log",
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        folder=subpath(input[0], parent=True),
        study=STUDY.settings.study,
    shell:
        "python -m fvlm decisions --tables {params.folder:q} --study {params.study:q}"
        " --out {output.page:q} --text {output.text:q} 2> {log:q}"


rule figure:
    input:
        tables=STUDY.figure_tables,
        attention=STUDY.figure_attention,
    output:
        png=report(
            f"{R}/figures/{{figure}}.png",
            caption="../workflow/report/figure.rst",
            category=lambda wildcards: catalog.FIGURES[wildcards.figure].category,
            labels=STUDY.figure_labels,
        ),
        pdf=f"{R}/figures/{{figure}}.pdf",
        numbers=f"{R}/figures/{{figure}}.csv",
        caption=f"{R}/figures/{{figure}}.rst",
    log:
        f"{R}/logs/figure_{{figure}}.log",
    wildcard_constraints:
        figure="|".join(catalog.FIGURES),
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        results=subpath(output.png, ancestor=2),
        folder=subpath(output.png, parent=True),
        caption=lambda wildcards: CAPTIONS[wildcards.figure],
        comparisons=STUDY.figure_comparisons,
        empty=STUDY.empty_option,
    shell:
        STUDY.command(
            "figure {wildcards.figure} {params.empty} --tables {params.results:q}/tables"
            " --attention {input.attention:q} --out-dir {params.folder:q} 2> {log:q}"
        )


# The page that a reader opens first. It links to what is there when it is made, so it waits for all that it can show.
rule front_page:
    input:
        STUDY.shown_first,
    output:
        STUDY.front_page,
    log:
        f"{R}/logs/front_page.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        results=subpath(output[0], parent=True),
        study=STUDY.settings.study,
    shell:
        "python -m fvlm front-page --results {params.results:q} --study {params.study:q} 2> {log:q}"
