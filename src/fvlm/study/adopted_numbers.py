"""Adopt runs without weights: rows of a table of results, or curves.

Snakemake then does not train them, and tables and figures hold them beside the runs that the study trains. Without
weights they are not evaluated, so they are compared by their validation losses, with each other alone.
"""

import math
import time
from pathlib import Path

import pandas as pd

from fvlm.analysis.finished import is_of_study
from fvlm.analysis.imported import read_results
from fvlm.config.schema import Run, Study
from fvlm.config.trained import (
    ADOPTED,
    FILES,
    FINISHED,
    METRICS,
    OF_A_RUN,
    VALIDATION,
    digests_of_files,
    keep_earlier,
    summary_in,
)
from fvlm.errors import UserError
from fvlm.files import write_json
from fvlm.records import write_csv
from fvlm.study.adopted_settings import CONVENTIONS, about_samples, own_flops
from fvlm.study.status import refuse_held
from fvlm.train.summary import description, versions

NOT_KNOWN = "losses: the file does not state on which samples they are, nor which tokens are scored"
MOST = 0.15  # relative difference of the number of parameters up to which it may be the same model
POINT = ("step", "samples", "flops", "val_loss", "train_loss")


def adopt_numbers(source: Path, name: str | None, study: Study) -> list[str]:
    """Write the results of runs without weights into the study's folders; return the lines of a report.

    source   a file that `fvlm import` reads
    name     the run to adopt; None: all runs of the file that the study has, but none that it has trained
    raises   UserError if there is none, or one is of another model, or is being trained
    """
    tables = read_results([source], study.comparisons.ablations)
    rows = tables["runs"].set_index("run", drop=False)
    names = [run for run in study.runs if run in rows.index] if name is None else [name]
    if not names or names[0] not in rows.index:
        wanted = f"run {name} is not" if name else f"no run of study {study.study!r} is"
        raise UserError(
            f"{source}: found {', '.join(rows.index[:12])}; {wanted} among them: `fvlm plan` lists the study's runs"
        )
    trained = [run for run in names if name is None and _is_trained(study.runs[run], study)]
    names = [run for run in names if run not in trained]
    # all are checked before the first is written
    for run in names:
        refuse_held(Path(study.results) / "runs" / run)
    notes = {run: _notes(source, rows.loc[run], study.runs[run], study) for run in names}
    for run in names:
        _write(source, study.runs[run], study, rows.loc[run], tables, notes[run])
    lines = [f"{run}: adopted from {source}, without weights" for run in names]
    lines += [f"{run}: this study has trained it, so it stays; --run {run} replaces it" for run in trained]
    shared = list(dict.fromkeys(note for run in names for note in notes[run]))
    return [*lines, *(f"  {note}" for note in shared), "Snakemake and `fvlm status` take them as finished"]


def _is_trained(run: Run, study: Study) -> bool:
    """Whether the study has trained a run with its present configuration."""
    summary = summary_in(Path(study.results) / "runs" / run.name)
    return summary.get("digest") == run.digest and ADOPTED not in summary


def _notes(source: Path, row: pd.Series, run: Run, study: Study) -> list[str]:
    """Return how a run differs from its configuration, each as a sentence.

    raises   UserError if it is another model, or has no loss or samples
    """
    where, here, notes = f"{source}: run {run.name}", description(run)["params_total"], []
    if row["architecture"] not in ("", run.model.architecture):
        raise UserError(f"{where} is {row['architecture']}, in the study it is {run.model.architecture}; rename one")
    if not row["architecture"]:
        notes.append(f"{run.name}: its architecture is not recorded, so taken from the configuration")
    loss, samples, there = (float(row[key]) for key in ("best.val_loss", "samples", "params_total"))
    if not (math.isfinite(loss) and math.isfinite(samples)):
        raise UserError(f"{where} has no loss or no samples; expected both")
    if math.isfinite(there) and abs(there / here - 1) > MOST:
        raise UserError(
            f"{where} has {there / 1e6:.1f} M parameters, in the study it has {here / 1e6:.1f} M; name another"
        )
    if math.isfinite(there) and abs(there / here - 1) > 0.005:
        notes.append(f"{run.name}: {there / 1e6:.1f} M parameters there, {here / 1e6:.1f} M in the configuration")
    different = about_samples(run, study, samples)
    notes += [f"{run.name}: {different}"] if different else []
    return [*notes, *(CONVENTIONS if is_of_study(source) else [NOT_KNOWN])]


def _write(source: Path, run: Run, study: Study, row: pd.Series, tables: dict, notes: list[str]) -> None:
    folder = Path(study.results) / "runs" / run.name
    keep_earlier(folder, None)
    for name in OF_A_RUN:  # of a run that is replaced; the summary, which is first, marks it as whole
        (folder / name).unlink(missing_ok=True)
    curves = {name: _curve(tables[name], run.name) for name in ("training_curves", "validation_curves")}
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / METRICS, curves["training_curves"], ("step", "samples", "flops", "train_loss"))
    write_csv(folder / VALIDATION, curves["validation_curves"], POINT)
    each, samples = own_flops(run, study), int(row["samples"])
    flops = float(row["flops"]) if math.isfinite(row["flops"]) else samples * each if each else None
    best, last = (float(row[key]) for key in ("best.val_loss", "final.val_loss"))
    final = {"samples": samples, "flops": flops, "val_loss": last if math.isfinite(last) else best}
    known = {"params_total": int(row["params_total"])} if math.isfinite(row["params_total"]) else {}
    summary = description(run) | known | {
        "origin": ADOPTED, "samples": samples, "samples_planned": run.train.samples, "steps": None,
        "flops": flops, "flops_budget": run.train.flops, "text_tokens": None, "frames": None,
        "final": dict.fromkeys(POINT) | final, "best": dict.fromkeys(POINT) | {"val_loss": best},
        "best_by": "validation loss", "config": run.model_dump(mode="json"), FILES: digests_of_files(folder),
        ADOPTED: {"from": str(source), "settings": {}, "differences": notes,
                  "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions()},
    }  # fmt: skip
    write_json(folder / FINISHED, summary)


def _curve(table: pd.DataFrame, run: str) -> list[dict]:
    """Return the points of a run's curve without empty cells."""
    rows = table[table["run"] == run].drop(columns="run").to_dict("records")
    return [{name: value for name, value in row.items() if pd.notna(value)} for row in rows]
