# From raw videos to a trained foveated vision-language model and the paper's figures.
#   snakemake --cores all                                    the demo (config/config.yaml)
#   snakemake plan --configfile config/paper.yaml            what the full-size study takes
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
        FIGURES,


localrules:
    all,
    plan,
    plan_files,


include: "rules/plan.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/imported.smk" if STUDY.results_from else "rules/collect.smk"
include: "rules/analysis.smk"


onstart:
    announce(sys.stderr)


onsuccess:
    make_report()
