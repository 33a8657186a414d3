# From raw videos to a trained foveated vision-language model and the paper's figures.
#   snakemake --cores all                                    the demo (config/config.yaml)
#   snakemake plan --configfile config/paper.yaml            what the full-size study takes
#   snakemake --cores 1 results/figures/three_modes.png      one figure
# The rules hold no code; what they call is in src/fvlm/snakemake/.

from snakemake.utils import min_version

from fvlm.analysis import catalog
from fvlm.snakemake.process import prepare_process
from fvlm.snakemake.report import announce, captions, make_report, report_failures
from fvlm.snakemake.study import load_default_study, open_study

min_version("9.27")
load_default_study(workflow)

STUDY = open_study(
    config,
    workflow.configfiles,
    workflow.config_settings.config,
    workflow.resource_settings.default_resources,
)
R = STUDY.folder
RUNS = STUDY.runs
SOURCES = STUDY.sources

# For the report's first page, which sees nothing but the configuration.
config["decisions"] = STUDY.decisions_text

prepare_process(
    workflow.is_main_process,
    workflow.output_settings.dryrun,
    lambda: announce(STUDY, workflow.output_settings.quiet),
)


report: "workflow/report/workflow.rst"


wildcard_constraints:
    source="|".join(SOURCES),
    run="|".join(RUNS),
    shard=r"\d{5}",


include: "rules/report.smk"


rule all:
    default_target: True
    input:
        STUDY.prepared,
        STUDY.decisions,
        STUDY.tables,
        STUDY.figures,


localrules:
    all,
    plan,
    plan_files,


include: "rules/plan.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/imported.smk" if STUDY.settings.results_from else "rules/collect.smk"
include: "rules/analysis.smk"


onstart:
    announce(STUDY, workflow.output_settings.quiet)


onsuccess:
    make_report(STUDY, workflow.output_settings.quiet)


onerror:
    report_failures(STUDY, workflow.scheduler.failed, workflow.output_settings.quiet)
