# From raw videos to a trained foveated vision-language model and the paper's figures.
#   snakemake --cores all                                    the demo (config/config.yaml)
#   snakemake plan --configfile config/paper.yaml            what the full-size study takes
#   snakemake --cores 1 results/figures/three_modes.png      one figure
# The rules hold no code; what they call is in src/fvlm/snakemake/.

from runpy import run_path

from snakemake.utils import min_version

min_version("9.27")
package = run_path(workflow.source_path("src/fvlm/snakemake/package.py"))
ORIGIN = package["find_package"](workflow)  # as pip installs it

from fvlm.analysis import catalog
from fvlm.snakemake.module import call_handlers, name_of_all, with_prefix
from fvlm.snakemake.process import prepare_process
from fvlm.snakemake.report import (
    announce,
    captions,
    make_report,
    report_failures,
    report_left_out,
    start,
    targets,
)
from fvlm.snakemake.study import load_default_study, open_study

load_default_study(workflow)

STUDY = open_study(
    with_prefix(workflow, config),
    workflow.configfiles,
    workflow.config_settings.config,
    workflow.resource_settings.default_resources,
    workflow.is_main_process,
)
R = STUDY.folder
RUNS = STUDY.runs
SOURCES = STUDY.sources
ALL = name_of_all(workflow, R)

prepare_process(workflow, lambda: announce(STUDY, workflow))


report: "workflow/report/workflow.rst"


wildcard_constraints:
    source="|".join(SOURCES),
    run="|".join(RUNS),
    benchmark="[a-z_]+",
    shard=r"\d{5}",


include: "rules/report.smk"


rule all:
    input:
        targets(STUDY),
    localrule: True


include: "rules/plan.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/imported.smk" if STUDY.settings.results_from else "rules/collect.smk"
include: "rules/analysis.smk"


onstart:
    start(STUDY, workflow, ORIGIN)


onsuccess:
    report_left_out(STUDY, workflow)
    make_report(STUDY, workflow, ALL)


onerror:
    report_failures(STUDY, workflow)


call_handlers(workflow)
