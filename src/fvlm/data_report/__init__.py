"""The data report: what is in the sources of a study, before any training.

Snakemake imports this file while it parses the Snakefile, so it imports no heavy library.
"""

import hashlib
import json

from fvlm.config.schema import Run, Study
from fvlm.costs.amounts import planned_samples

FIGURES = {  # file stem -> title
    "inputs": "Inputs kept and rejected",
    "mixture": "Video, image, text",
    "durations": "Durations of the videos",
    "frames": "Frames per video",
    "tokens": "Text tokens per sample",
    "storage": "Shards and frames on disk",
    "near_duplicates": "Near-duplicates of held-out samples",
}
TABLES = (
    "sources", "rejected", "rejected_examples", "mixture", "histograms", "shards", "held_out", "near_duplicates",
    "near_duplicate_pairs", "contact_sheet", "warnings",
)  # fmt: skip
FILES = (
    *(f"{name}.{form}" for name in FIGURES for form in ("png", "pdf")),
    *(f"{name}.csv" for name in TABLES),
)


def reference_runs(study: Study) -> list[Run]:
    """Return the stages, or all runs of a study without stages: an ablation should not change the report."""
    return [run for run in study.runs.values() if run.family == "stage"] or list(study.runs.values())


def digest(study: Study) -> str:
    """Return a hash of the parts of the configuration that the report shows."""
    runs = [(run.name, run.data.for_digest(), planned_samples(run, study)) for run in reference_runs(study)]
    trained = sorted({name for run in study.runs.values() for name in run.data.sources})
    sources = [study.sources[name].for_digest() for name in study.used_sources]
    content = json.dumps([study.study, runs, trained, sources], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
