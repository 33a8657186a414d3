"""Finished results from elsewhere as the tables that collecting a study makes, so that they can be drawn untrained.

Four kinds are read: evaluation points (CSV: run_id, step, samples_seen, val_loss, ...; a run_summaries.csv beside it
may add total_params), a table with one row per run (CSV: run_id, best_val_loss, ...), a list of results (JSON:
model_type, step, loss_mean, ...), and folders with runs as this project leaves them. What a file does not hold stays
empty; only `finished.place_of` infers something, from a run's name.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.catalog import COLLECTED
from fvlm.analysis.collect import collect_curves, collect_evaluation, collect_runs
from fvlm.analysis.columns import COLUMNS, RUN, SCHEDULE
from fvlm.analysis.files import read_csv
from fvlm.analysis.finished import (
    POINTS,
    SUMMARIES,
    Ablations,
    check_folder,
    is_by_run,
    kind_of,
    place_of,
    refuse_twice,
    result_name,
    results_in,
    short_names,
    summaries_in,
    with_runs,
)
from fvlm.analysis.fits.points import LOSS, SIZE, header_of, read_points
from fvlm.analysis.summaries import ARCHITECTURES, FLOPS, PARAMETERS, runs_of
from fvlm.errors import UserError

TRAINING_POINTS = 400  # of a run's training curve, as the workflow collects it


def read_results(paths: list[Path], known: Ablations) -> dict[str, pd.DataFrame]:
    """Table -> rows, for all of COLLECTED, with the columns of the collected tables.

    paths   files of evaluation points or results, or folders with run_summary.json files, in any mixture
    known   the ablations of the study, by which those of the results are recognised

    raises  UserError naming the file and what is missing in it, and for a run that is given twice
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("no results are named; expected files of evaluation points or results, or folders with runs")
    parts = [_read(path, known) for path in with_runs(paths)]
    tables = {}
    for name in COLLECTED:
        found = [part[name] for part in parts if name in part and len(part[name])]
        columns = list(dict.fromkeys([*COLUMNS[name], *(column for table in found for column in table)]))
        tables[name] = _joined(found, columns)
    refuse_twice(list(tables["runs"]["run"]))
    return tables


def _joined(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    if len(tables) == 1:
        return tables[0].reindex(columns=columns)
    rows = [row for table in tables for row in table.to_dict("records")]  # concat guesses types of empty columns
    return pd.DataFrame(rows, columns=columns)


def _read(path: Path, known: Ablations) -> dict[str, pd.DataFrame]:
    kind = kind_of(path)
    if kind == ".csv" and is_by_run(header_of(path)):
        return {"runs": runs_of(path, known)}
    if kind == ".csv":
        return _from_points(path, known)
    return _from_folder(path) if kind == "folder" else _from_json(path)


def _from_folder(folder: Path) -> dict[str, pd.DataFrame]:
    """Runs as this project writes them: run_summary.json, and beside it validation.csv and metrics.csv where they
    are; evaluation/RUN.csv below the folder."""
    return _from_summaries(summaries_in(folder), folder)


def _from_summaries(summaries: list[Path], folder: Path | None = None) -> dict[str, pd.DataFrame]:
    runs = collect_runs(summaries)
    for path, name in zip(summaries, runs["run"], strict=True):
        check_folder(path, name)
    curves = {
        table: collect_curves([path.with_name(file) for path in summaries if path.with_name(file).exists()], points)
        for table, file, points in (
            ("validation_curves", "validation.csv", 0),
            ("training_curves", "metrics.csv", TRAINING_POINTS),
        )
    }
    evaluated = sorted(folder.rglob("evaluation/*.csv")) if folder else []
    evaluated = [path for path in evaluated if path.stem in set(runs["run"])]
    evaluation, bootstrap = collect_evaluation(evaluated)
    return {"runs": runs, **curves, "evaluation": evaluation, "bootstrap": bootstrap}


def _from_points(path: Path, known: Ablations) -> dict[str, pd.DataFrame]:
    checked = read_points(path, POINTS, ("val_loss",), (), ("run_id",), ("val_loss",), ("step", "samples_seen"))
    table = read_csv(path, ()).rename(columns=str.strip).dropna(how="all").reset_index(drop=True)
    if "architecture" in table:
        table["architecture"] = table["architecture"].astype(str).str.strip()
    if len(table) != len(checked):
        raise UserError(f"{path}: found rows of blanks; expected a row for each evaluation: remove them")
    table[list(POINTS)] = checked
    for column in ("train_loss", "attention_entropy", "loss_fine", "loss_coarse", *PARAMETERS, *FLOPS):
        if column in table:
            table[column] = _numbers(path, table, column)
    twice = table[table.duplicated(["run_id", "step"])]
    if len(twice):
        run, step = twice.iloc[0][["run_id", "step"]]
        raise UserError(
            f"{path}: run {run} has two evaluations at step {step:.10g}; expected one: remove one, "
            "or name a further seed RUN-s43"
        )
    beside = path.with_name(SUMMARIES)
    sizes = _parameters(path, table, read_csv(beside, ()) if beside.exists() else None)
    names = short_names(list(table["run_id"].drop_duplicates()), known)
    parts = [
        _one_run(place_of(names[run], known), own.sort_values("step"), sizes.get(run, np.nan))
        for run, own in table.groupby("run_id", sort=False)
    ]
    return _tables(parts)


def _numbers(path: Path, table: pd.DataFrame, column: str) -> pd.Series:
    """An optional column; empty cells are missing; words, infinities and negative numbers are refused."""
    numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
    wrong = table[~(numbers.between(0, SIZE[1]) | table[column].isna())]
    if len(wrong):
        raise UserError(
            f"{path}: run {wrong['run_id'].iloc[0]} has {column} {str(wrong[column].iloc[0])!r}; "
            "expected a number, zero or more: mend the cell, or leave it empty"
        )
    return numbers


def _parameters(path: Path, table: pd.DataFrame, summaries: pd.DataFrame | None) -> dict[str, float]:
    """Run -> total parameters: from the points, else from the summaries, else from a run of the same model_size."""
    known: dict[str, float] = {}
    sources = [(path.with_name(SUMMARIES), summaries)] if summaries is not None else []
    for where, rows in [*sources, (path, table)]:
        if "run_id" not in rows:
            raise UserError(f"{where}: no column 'run_id'; found {', '.join(rows.columns[:12])}; rename the column")
        column = next((name for name in PARAMETERS if name in rows), None)
        if column:
            numbers = _numbers(where, rows, column)
            known |= {run: n for run, n in zip(rows["run_id"].astype(str), numbers, strict=True) if n > 0}
    if "model_size" in table:
        sizes = table.drop_duplicates("run_id").set_index("run_id")["model_size"]
        for _, members in sizes.groupby(sizes):
            found = {known[run] for run in members.index if run in known}
            if len(found) == 1:
                known |= {run: next(iter(found)) for run in members.index if run not in known}
    return known


def _one_run(place: dict, own: pd.DataFrame, parameters: float) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """Row of the runs table, validation curve and training curve, of a run's points in ascending order."""
    last, best = own.iloc[-1], own.loc[own["val_loss"].idxmin()]
    flops = next((name for name in FLOPS if name in own), None)
    if "architecture" in own and last["architecture"] in ARCHITECTURES:
        place |= {"architecture": ARCHITECTURES[last["architecture"]]}
    row = dict.fromkeys(RUN, np.nan) | dict.fromkeys(("size", "budget", "letter"), "") | place
    row |= {
        "params_total": parameters,
        "samples": last["samples_seen"],
        "flops": last[flops] if flops else np.nan,
        "visual_tokens": 1.0 if place["architecture"] == "foveated" else np.nan,
        "final.val_loss": last["val_loss"],
        "best.val_loss": best["val_loss"],
        "best.samples": best["samples_seen"],
    }
    if "lr_schedule" in own:
        row[SCHEDULE] = _schedule(own["lr_schedule"])
    if row["family"] == "grid" and not (np.isfinite(row["flops"]) and np.isfinite(parameters)):
        row["family"] = "stage"  # a point of the grid is N, D, C and loss
    curve = own.rename(columns={"samples_seen": "samples"}).assign(run=row["run"])
    curve["flops"] = own[flops] if flops else np.nan
    trained = curve.reindex(columns=[*COLUMNS["validation_curves"][:4], "train_loss"])
    return row, curve, trained[trained["train_loss"].notna()]


def _schedule(cells: pd.Series) -> str:
    """Of one run's points; several are named together, for the learning rate is then not that of either."""
    return " and ".join(dict.fromkeys(word for cell in cells.dropna() if (word := str(cell).strip())))


def _tables(parts: list[tuple[dict, pd.DataFrame, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    runs = pd.DataFrame([row for row, _, _ in parts])
    runs = runs.reindex(columns=[*RUN, *(name for name in runs if name == SCHEDULE)])
    grid = runs["family"] == "grid"
    budgets = runs[grid].groupby("budget")["flops"].median()
    runs["flops_budget"] = runs["budget"].where(grid).map(budgets)
    curves = {
        name: pd.concat([part[place] for part in parts], ignore_index=True).reindex(columns=list(COLUMNS[name]))
        for place, name in ((1, "validation_curves"), (2, "training_curves"))
    }
    return {"runs": runs, **curves}


def _from_json(path: Path) -> dict[str, pd.DataFrame]:
    content = results_in(path)
    if isinstance(content, dict):
        return _from_summaries([path])
    rows = pd.DataFrame([_result(path, number, one) for number, one in enumerate(content, 1)])
    twice = rows[rows.duplicated(["run_id", "step"])]
    if len(twice):
        raise UserError(f"{path}: {twice['run_id'].iloc[0]} has two results at one step; expected one")
    parts = []
    for run, own in rows.groupby("run_id", sort=False):
        place = {"run": run, "family": "stage", "architecture": own["architecture"].iloc[0]}
        row, curve, trained = _one_run(place, own.sort_values("step"), own["parameters"].iloc[0])
        tokens = own["tokens"].iloc[0]
        parts.append((row | {"visual_tokens": tokens if np.isfinite(tokens) else row["visual_tokens"]}, curve, trained))
    return _tables(parts)


def _result(path: Path, number: int, one: dict) -> dict:
    """One entry of a list of results, under the names of evaluation points."""
    architecture = ARCHITECTURES.get(str(one["model_type"]))
    if architecture is None:
        raise UserError(
            f"{path}, result {number}: model_type is {one['model_type']!r}; expected one of {', '.join(ARCHITECTURES)}"
        )

    def value(*names: str) -> float:
        found = next((one[name] for name in names if one.get(name) is not None), np.nan)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise UserError(f"{path}, result {number}: {names[0]} is {found!r}; expected a number")
        if not (0 <= found <= SIZE[1] or found is np.nan):
            raise UserError(
                f"{path}, result {number}: {names[0]} is {str(found)[:12]}; expected a number, zero or more"
            )
        return float(found)

    loss = value("loss_mean")
    if not LOSS[0] <= loss <= LOSS[1]:
        raise UserError(f"{path}, result {number}: loss_mean is {loss:g}; expected a positive number, in nats")
    samples = value("samples_seen", "samples")
    if np.isnan(samples):
        samples = value("total_flops") / (value("flops_per_sample") or np.nan)
    if np.isnan(samples):
        raise UserError(f"{path}, result {number}: no samples_seen, and no total_flops with flops_per_sample; add one")
    return {
        "run_id": result_name(one),
        "architecture": architecture,
        "step": value("step"),
        "samples_seen": samples,
        "val_loss": loss,
        "flops": value(*FLOPS),
        "parameters": value(*PARAMETERS),
        "tokens": value("visual_tokens") / (value("num_frames") or np.nan),
    }
