# From raw videos to a trained foveated vision-language model and the paper's figures.
#   snakemake --cores all                                    the demo (config/config.yaml)
#   snakemake -n --configfile config/paper.yaml              the plan of the full-size study
#   snakemake --cores 1 results/figures/three_modes.png      one figure

from snakemake.utils import min_version

min_version("9.27")

if "study" not in config:  # no --configfile was given

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        (
            []
            if STUDY.results_from
            else [
                f"{R}/plan.txt",
                [f"{R}/index/{source}.npz" for source in STUDY.used_sources],
                f"{R}/tables/data.csv",
                DATA_REPORT,
            ]
        ),
        DECISIONS,
        TABLES,
        ANALYSES,
        FIGURES,


localrules:
    all,
    plan,


rule plan:
    output:
        f"{R}/plan.txt",
    log:
        f"{R}/logs/plan.log",
    conda:
        "envs/analysis.yaml"
    params:
        runs=digest_of_runs(),
    shell:
        "python -m fvlm plan > {output:q} 2> {log:q}"


include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/imported.smk" if STUDY.results_from else "rules/collect.smk"
include: "rules/analysis.smk"


onstart:
    announce(sys.stderr)


onsuccess:
    make_report()
