# Tables made of the collected ones, and figures. All of them are listed in fvlm.analysis.catalog.

from pathlib import Path

import yaml

from fvlm.analysis import catalog

# A caption's path may hold no wildcard, so caption.rst shows the text that a job carries among its parameters.
# figure.rst adds the sentences that a figure's job wrote about its own numbers.
CAPTIONS = yaml.safe_load(
    Path(workflow.source_path("../workflow/report/captions.yaml")).read_text()
)


def comparisons_of(entry):
    """Changes when a comparison or a question changes, for tables and figures that are made of them."""
    return STUDY.comparisons.digest if entry.comparisons else ""


localrules:
    figures,


# All tables and the standard figures; with `results_from` of finished results, without training anything.
rule figures:
    input:
        DECISIONS,
        TABLES,
        FIGURES,


rule table:
    input:
        lambda wildcards: [
            f"{R}/tables/{name}.csv" for name in catalog.TABLES[wildcards.table].needs
        ],
    output:
        report(
            f"{R}/tables/{{table}}.csv",
            caption="../workflow/report/caption.rst",
            category=lambda wildcards: catalog.TABLES[wildcards.table].category,
            labels=lambda wildcards: {
                "what": catalog.TABLES[wildcards.table].title,
                "form": "table",
            },
        ),
    log:
        f"{R}/logs/table_{{table}}.log",
    wildcard_constraints:
        table="|".join(catalog.TABLES),
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        caption=lambda wildcards: CAPTIONS["tables"].get(
            wildcards.table, catalog.TABLES[wildcards.table].title
        ),
        comparisons=lambda wildcards: comparisons_of(catalog.TABLES[wildcards.table]),
    shell:
        "python -m fvlm table {wildcards.table} --tables {params.folder:q} --out {output:q} 2> {log:q}"


# What the report opens with. Its words are read back when the report is made.
rule decisions:
    input:
        f"{R}/tables/decisions.csv",
    output:
        page=report(
            DECISIONS[0],
            caption="../workflow/report/decisions.rst",
            category=catalog.FIRST,
            labels={"what": "Decisions", "form": "page"},
        ),
        text=DECISIONS[1],
    log:
        f"{R}/logs/decisions.log",
    group:
        "analysis"
    conda:
        "../envs/analysis.yaml"
    resources:
        group_slots=1,
    params:
        folder=lambda wildcards, input: str(Path(input[0]).parent),
        study=STUDY.study,
    shell:
        "python -m fvlm decisions --tables {params.folder:q} --study {params.study:q}"
        " --out {output.page:q} --text {output.text:q} 2> {log:q}"


rule figure:
    input:
        tables=lambda wildcards: [
            f"{R}/tables/{name}.csv"
            for name in catalog.FIGURES[wildcards.figure].needs
        ],
        attention=lambda wildcards: [
            f"{R}/attention/{run}.npz"
            for run in ATTENTION_RUN
            if catalog.FIGURES[wildcards.figure].attention
        ],
    output:
        png=report(
            f"{R}/figures/{{figure}}.png",
            caption="../workflow/report/figure.rst",
            category=lambda wildcards: catalog.FIGURES[wildcards.figure].category,
            labels=lambda wildcards: {
                "what": catalog.FIGURES[wildcards.figure].title,
                "form": "figure",
            },
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
        tables=lambda wildcards, output: str(Path(output.png).parents[1] / "tables"),
        folder=lambda wildcards, output: str(Path(output.png).parent),
        caption=lambda wildcards: CAPTIONS["figures"].get(
            wildcards.figure, catalog.FIGURES[wildcards.figure].title
        ),
        comparisons=lambda wildcards: comparisons_of(catalog.FIGURES[wildcards.figure]),
    shell:
        "python -m fvlm figure {wildcards.figure} --tables {params.tables:q} --attention {input.attention:q}"
        " --out-dir {params.folder:q} 2> {log:q}"
