# The study, resolved and checked before the first job; what the rules look up in it.

import hashlib
import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

from fvlm.analysis import catalog
from fvlm.analysis.finished import check_results
from fvlm.config.resolve import load_study
from fvlm.data.sources import (
    ledgers_of,
    reader_of,
    shard_count,
    shard_inputs,
    source_folder,
    source_table,
    table_of,
    tars_of,
)
from fvlm.errors import UserError
from fvlm.costs.limits import check_data, check_memory
from fvlm.study.plan import plan_csv, plan_rows, plan_text
from fvlm.costs.speed import calibration_path, read_calibration


def asked_for(target):
    """Whether a target is named on the command line; while Snakemake parses it does not say."""
    return any(re.fullmatch(rf"{target}(:.*)?", word) for word in sys.argv[1:])


try:
    STUDY = load_study(config)
    check_results(STUDY)
    read_calibration(STUDY.results)
    if not STUDY.results_from and not asked_for(
        "preflight"
    ):  # which lists all that is wrong
        check_data(STUDY)
        check_memory(STUDY)
except UserError as error:
    raise WorkflowError(str(error))

R = f"{STUDY.results}/imported" if STUDY.results_from else STUDY.results
RUNS = STUDY.runs
STAGES = [name for name, run in RUNS.items() if run.family == "stage"]
EVALUATED = [
    name for name, run in RUNS.items() if run.family in STUDY.evaluation.families
]
# Of the last stage that learns to see; preferring answers comes after it.
SEEING = [name for name in STAGES if RUNS[name].data.loss != "preference"]
ATTENTION_RUN = [
    name
    for name in SEEING[-1:]
    if RUNS[name].model.architecture == "foveated" and not STUDY.results_from
]

TABLES = [f"{R}/tables/{name}.csv" for name in (*catalog.COLLECTED, *catalog.TABLES)]
FIGURES = [
    f"{R}/figures/{name}.{kind}"
    for name in catalog.STANDARD
    for kind in ("png", "pdf", "rst")
]

DECISIONS = [f"{R}/decisions.html", f"{R}/decisions.rst"]
# For the report's first page, which knows nothing but the configuration; of no use to the study, which is resolved.
config["decisions"] = (
    Path(DECISIONS[1]).read_text(encoding="utf-8")
    if Path(DECISIONS[1]).exists()
    else ""
)

# Every job resolves the study again from the same files and --config changes. They travel in the environment, not in
# params: a study file named by another path must not run anything again; the digests see to real changes.
os.environ.update(
    FVLM_STUDY=json.dumps(
        {
            "files": [str(path) for path in workflow.configfiles],
            "changes": dict(workflow.config_settings.config),
        }
    )
)


wildcard_constraints:
    source="|".join(STUDY.sources),
    run="|".join(RUNS),
    shard=r"\d{5}",


def present(paths, source):
    """A source's own files as inputs, without those that its entry only announces: a plan needs no data."""
    paths = [str(path) for path in paths]
    if source.reader == "demo" or source.samples is None:
        return paths
    return [path for path in paths if path.startswith(f"{R}/") or Path(path).exists()]


@cache
def shards_of(name):
    """How many shards are made of a source, and what gives the inputs of each: asked for every shard, found out once."""
    source = STUDY.sources[name]
    return shard_count(source, STUDY), shard_inputs(source, R)


def tokenizer_choice():
    choice = STUDY.tokenizer
    return (
        f"--weights {shlex.quote(choice.weights)}"
        if choice.weights
        else f"--vocabulary {choice.vocabulary}"
    )


def tokenizer_tables(wildcards):
    if STUDY.tokenizer.weights:
        return []
    return [
        str(source_table(STUDY.sources[s], R))
        for s in STUDY.tokenizer_sources
        if STUDY.sources[s].reader in ("folder", "demo")
    ]


def ledgers_of_study(wildcards):
    return ledgers_of(STUDY)


def held_out_indices(run):
    partners = [STUDY.sources[s].held_out for s in run.data.sources]
    return [
        f"{R}/index/{p if isinstance(p, str) else s}.npz"
        for s, p in zip(run.data.sources, partners)
    ]


def training_inputs(wildcards):
    run = RUNS[wildcards.run]
    indices = [f"{R}/index/{s}.npz" for s in run.data.sources]
    inputs = {
        "indices": list(dict.fromkeys(indices + held_out_indices(run))),
        "tokenizer": f"{R}/tokenizer/tokenizer.json",
    }
    if run.parent:
        inputs["parent"] = f"{R}/runs/{run.parent}/model/best.safetensors"
    return inputs


def evaluation_inputs(wildcards):
    run = RUNS[wildcards.run]
    folder = f"{R}/runs/{wildcards.run}"
    return {
        "weights": f"{folder}/model/best.safetensors",
        "summary": f"{folder}/run_summary.json",
        "indices": held_out_indices(run),
        "tokenizer": f"{R}/tokenizer/tokenizer.json",
    }


def digest_of_plan(wildcards):
    """Of all that the plan says: what sources declare, how runs are executed and what a GPU costs included."""
    rows = plan_rows(STUDY)
    return hashlib.sha256(
        (plan_text(STUDY, rows) + plan_csv(rows)).encode()
    ).hexdigest()


def calibration_of_study():
    """What `fvlm calibrate` measured, if it has been run."""
    path = calibration_path(R)
    return [str(path)] if path.exists() else []


def announce(stream):
    """What is about to be built, in a few lines."""
    if asked_for("plan") or asked_for("preflight") or asked_for("calibrate"):
        return  # they say it themselves
    if STUDY.results_from:
        print(
            f"tables and figures of {', '.join(STUDY.results_from)}; nothing is trained",
            file=stream,
        )
    else:
        print(plan_text(STUDY), file=stream, flush=True)


def make_report():
    """The self-contained report, and where to look first. A report newer than all figures is kept."""
    page = Path(R) / "report.html"
    wanted = [*TABLES, *FIGURES, *DECISIONS]
    made = [Path(path) for path in wanted if Path(path).exists()]
    if len(made) < len(wanted):
        return  # a part of the study was asked for
    if not page.exists() or any(
        path.stat().st_mtime > page.stat().st_mtime for path in made
    ):
        files = " ".join(shlex.quote(str(path)) for path in workflow.configfiles)
        changes = " ".join(
            shlex.quote(f"{key}={json.dumps(value)}")
            for key, value in workflow.config_settings.config.items()
        )
        config_ = f"--config {changes}" if changes else ""
        log = f"{R}/logs/report.log"
        shell(
            "snakemake --report {page:q} --configfile {files} {config_} --cores 1 --nolock > {log:q} 2>&1"
        )
    print(
        f"\nreport   {page}",
        f"answers  {DECISIONS[0]}",
        *(f"figure   {R}/figures/{name}.png" for name in catalog.HEADLINE),
        sep="\n",
        file=sys.stderr,
    )


include: "process.smk"
include: "resources.smk"
