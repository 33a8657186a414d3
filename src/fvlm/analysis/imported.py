"""`fvlm import RESULTS...`: finished results from elsewhere as the tables that collecting a study makes.

Seven kinds are read: evaluation points (CSV: run_id, step, samples_seen, val_loss, ...; a run_summaries.csv beside it
may add total_params), points that name a model in place of a run (CSV: config, arch, step, loss, ...), a table with one
row per run (CSV: run_id, best_val_loss, ...) or with two points per run (CSV: run, early_step, loss_early, ...), a list
of results (JSON: model_type, step, loss_mean, ...), folders with runs as this project leaves them, and files and
folders of the published study (`study_files`). What a file does not hold stays empty, but for what `finished.place_of`
infers from a run's name, and what `scales.complete` counts: N, FLOPs and tokens of runs with a size.
"""

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis import study_files
from fvlm.analysis.catalog import COLLECTED
from fvlm.analysis.collect import TRAINING_POINTS, collect_all, with_published
from fvlm.analysis.columns import COLUMNS, COUNTED, INFERRED, REWARDS, RUN, SCHEDULE
from fvlm.analysis.files import replacing, write_csv
from fvlm.analysis.finished import (
    BEST,
    FINAL,
    RUN_NAMES,
    SUMMARIES,
    TWO,
    Ablations,
    architecture_in,
    base_name,
    check_form,
    is_by_run,
    kind_of,
    model_columns,
    model_run,
    place_of,
    refuse_twice,
    result_name,
    results_in,
    short_names,
    summaries_in,
    with_runs,
)
from fvlm.analysis.inputs import BLANK, COUNT, LOSS, NUMBER, SIZE, WORD, Kind, Rows, check_header, read_cells, table_of
from fvlm.analysis.scales import FLOPS, OF_STUDY, complete, flops_in, name_groups, still_high
from fvlm.analysis.study_files import ARCHITECTURES
from fvlm.analysis.tables import derive
from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.errors import UserError

PARAMETERS = ("total_params", "n_params", "params")  # what a file may call the number of parameters
MILLIONS = "params_M"
SAMPLES = ("total_samples", "samples", "samples_seen")
TOKENS = "visual_tokens_per_frame"
FRAME_BY_FRAME = "loss_infer"
NAMED = {"architecture": ("architecture", "arch"), "pair": ("pair", "config"), "group": ("group", "frames")}
LETTERS = {"foveated": "F", "multi_token": "B"}
OPTIONAL = Kind("number, zero or more, or an empty cell", 0.0, blank=True)
OF_SUMMARIES = {"run_id": WORD, **dict.fromkeys(PARAMETERS, OPTIONAL)}
OF_POINTS = {  # columns of evaluation points
    **OF_SUMMARIES,
    **{"step": COUNT, "samples_seen": COUNT, "val_loss": LOSS},
    **dict.fromkeys(("architecture", "lr_schedule", "model_size"), BLANK),
    **dict.fromkeys(("train_loss", "attention_entropy", "loss_fine", "loss_coarse", "lr", TOKENS, *FLOPS), OPTIONAL),
    **dict.fromkeys(REWARDS, replace(NUMBER, blank=True)),
}
OF_RUNS = {  # columns of a table with one row per run, beside its name
    **dict.fromkeys((*(name for names in NAMED.values() for name in names), "lr_schedule"), BLANK),
    **dict.fromkeys((*FINAL, *BEST, FRAME_BY_FRAME), LOSS),
    **dict.fromkeys((*PARAMETERS, MILLIONS, *SAMPLES, *FLOPS, TOKENS), SIZE),
}
Tables = dict[str, pd.DataFrame]


def add_arguments(parser) -> None:
    parser.add_argument(
        "results", nargs="+", type=Path, help="CSV of evaluation points or of runs, JSON list, or folder with runs"
    )
    add_study_arguments(parser)
    parser.add_argument("--out-dir", required=True, type=Path, help="folder of the tables")
    parser.add_argument("--derived", action="store_true", help="also make the tables that are derived from these")


def main(args) -> None:
    comparisons = study_of(args).comparisons
    tables = read_results(args.results, comparisons.ablations)
    tables["benchmarks"] = with_published(tables["benchmarks"], comparisons.benchmarks.published)
    places = {name: args.out_dir / f"{name}.csv" for name in tables}
    for place in places.values():
        if place.resolve() in {path.resolve() for path in args.results}:
            raise UserError(f"--out-dir {args.out_dir}: {place} was read, and would be lost; expected another folder")
    with ExitStack() as together:  # a table that cannot be written leaves none
        for name, table in tables.items():
            write_csv(table, together.enter_context(replacing(places[name])))
    if args.derived:
        derive(args.out_dir, args)
    print(f"{len(tables['runs'])} runs, {len(tables['validation_curves'])} evaluation points -> {args.out_dir}")


def read_results(paths: list[Path], known: Ablations) -> Tables:
    """Table -> rows, for all of COLLECTED, with the columns of the collected tables.

    paths   files of evaluation points or results, or folders with run_summary.json files, in any mixture
    known   the ablations of the study, by which those of the results are recognised

    raises  UserError naming the file and what is missing in it, and for a run that is given twice
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("no results are named; expected files of evaluation points or results, or folders with runs")
    paths = with_runs(paths)
    parts = [_read(path, known) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        name_groups(part["runs"], path.stem if len(paths) > 1 else "")
    tables = {}
    for name in COLLECTED:
        found = [part[name] for part in parts if name in part and len(part[name])]
        columns = list(dict.fromkeys([*COLUMNS[name], *(column for table in found for column in table)]))
        tables[name] = _joined(found, columns)
    refuse_twice(list(tables["runs"]["run"]))
    complete(tables)
    return tables


def _joined(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    if len(tables) == 1:
        return tables[0].reindex(columns=columns)
    rows = [row for table in tables for row in table.to_dict("records")]  # concat guesses types of empty columns
    return pd.DataFrame(rows, columns=columns)


def _read(path: Path, known: Ablations) -> Tables:
    kind = kind_of(path)
    if study := study_files.found_in(path):
        return _from_study(study, known)
    if kind == "folder":
        return collect_all(summaries_in(path), path)
    if kind == ".json":
        content = results_in(path)
        return collect_all([path]) if isinstance(content, dict) else _from_list(path, content)
    header, rows = read_cells(path, fewest=1)
    if columns := model_columns(header):
        return _from_models(path, header, rows, columns, known)
    if set(TWO) <= set(header):
        return _from_two(path, header, rows, known)
    return (_from_runs if is_by_run(header) else _from_points)(path, header, rows, known)


def _from_runs(path: Path, header: list[str], cells: Rows, known: Ablations) -> Tables:
    """The table of runs of a file with one row per run.

    A file with the columns architecture and `pair` (or `config`) compares two architectures at equal samples. Its runs
    are of the family `pairs`; their budget is in the column `group` or `frames`.
    """
    name = next(word for word in RUN_NAMES if word in header)
    rows = table_of(path, header, cells, {name: WORD, **OF_RUNS})
    runs = rows[name]
    if runs.duplicated().any():
        raise UserError(f"{path}: run {runs[runs.duplicated()].iloc[0]} is there twice; give each run one row")
    names = short_names(list(runs), known)
    found = [_one_of_runs(path, row, names[run], known) for run, row in zip(runs, rows.to_dict("records"), strict=True)]
    return {"runs": _runs(found)}


def _one_of_runs(path: Path, row: dict, run: str, known: Ablations) -> dict:
    words = {what: next((row[name] for name in names if row.get(name)), "") for what, names in NAMED.items()}
    place, architecture = place_of(run, known), words["architecture"] or architecture_in(run)
    if architecture and architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: run {run} has architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}"
        )
    place = _stated(place, architecture, known)
    if words["pair"] and architecture and place["architecture"] in LETTERS:
        group = f"{words['group']} frames" if "frames" in row and words["group"] else words["group"]
        place |= {"family": "pairs", "size": words["pair"], "budget": group, "letter": LETTERS[place["architecture"]]}
    frames = float(words["group"]) if words["group"].isdecimal() and "frames" in row else np.nan
    flops, counted = next(
        ((row[name] * unit, text) for name, (unit, text) in FLOPS.items() if name in row), (np.nan, "")
    )
    found = _run(place) | {
        "params_total": _first(row, PARAMETERS, row.get(MILLIONS, np.nan) * 1e6),
        "samples": _first(row, SAMPLES),
        "frames": _first(row, SAMPLES) * frames,
        "flops": flops,
        COUNTED: counted,
        "final.val_loss": _first(row, FINAL),
        "best.val_loss": _first(row, BEST, _first(row, FINAL)),
    }
    found |= {"visual_tokens": row[TOKENS]} if TOKENS in row else {}
    found |= {INFERRED: row[FRAME_BY_FRAME]} if FRAME_BY_FRAME in row else {}
    return found | ({SCHEDULE: row["lr_schedule"]} if "lr_schedule" in row else {})


def _stated(place: dict, word: str, known: Ablations) -> dict:
    """Return a run's place with the architecture that its file states; the run is then not the study's ablation of its
    name if that one has another architecture."""
    architecture = ARCHITECTURES.get(word, place["architecture"])
    ablation = known.get(base_name(short_names([place["run"]], known)[place["run"]]))
    other = place["family"] == "ablation" and ablation is not None and ablation.architecture != architecture
    return place | {"architecture": architecture} | ({"family": "stage"} if other else {})


def _run(place: dict) -> dict:
    """A row of the table of runs that has nothing but its place in the study."""
    empty = dict.fromkeys(RUN, np.nan) | dict.fromkeys(("size", "budget", "letter"), "")
    return empty | place | {"visual_tokens": 1.0 if place["architecture"] == "foveated" else np.nan}


def _first(row: dict, names: tuple[str, ...], other: float = np.nan) -> float:
    return next((row[name] for name in names if name in row), other)


def _runs(rows: list[dict]) -> pd.DataFrame:
    runs = pd.DataFrame(rows)
    return runs.reindex(columns=[*RUN, *(name for name in runs if name in (SCHEDULE, COUNTED, INFERRED))])


def _from_points(path: Path, header: list[str], cells: Rows, known: Ablations, samples: Kind = COUNT) -> Tables:
    check_form(path, header)
    table = table_of(path, header, cells, OF_POINTS | {"samples_seen": samples})
    _refuse_two_at_a_step(path, table)
    sizes, names = _parameters(path, table), short_names(list(table["run_id"].drop_duplicates()), known)
    parts = []
    for run, own in table.groupby("run_id", sort=False):
        word = own["architecture"].iloc[-1] if "architecture" in own else ""
        place = _stated(place_of(names[run], known), word, known)
        parts.append(_one_run(place, own.sort_values("step"), sizes.get(run, np.nan)))
    return _tables(parts)


def _from_models(path: Path, header: list[str], cells: Rows, columns: tuple[str, str], known: Ablations) -> Tables:
    """The tables of evaluation points that name a model and its architecture in place of a run, and no samples."""
    places = [header.index(name) for name in columns]
    cells = [(number, [*row, model_run(*(row[place] for place in places)), ""]) for number, row in cells]
    header = [{"loss": "val_loss", "pflops": OF_STUDY}.get(name, name) for name in header] + ["run_id", "samples_seen"]
    return _from_points(path, header, cells, known, OPTIONAL)


def _from_two(path: Path, header: list[str], cells: Rows, known: Ablations) -> Tables:
    """The tables of a file with an early and a final point of each run in a row, and no samples."""
    run, architecture, *points = (header.index(name) for name in TWO)
    rows = [
        (number, [row[run], row[architecture], row[step], row[loss], ""])
        for number, row in cells for step, loss in (points[:2], points[2:])
    ]  # fmt: skip
    return _from_points(path, ["run_id", "architecture", "step", "val_loss", "samples_seen"], rows, known, OPTIONAL)


def _refuse_two_at_a_step(path: Path, table: pd.DataFrame) -> None:
    twice = table[table.duplicated(["run_id", "step"])]
    if len(twice):
        run, step = twice.iloc[0][["run_id", "step"]]
        raise UserError(
            f"{path}: run {run} has two evaluations at step {step:.10g}; expected one: remove one, "
            "or name a further seed RUN-s43"
        )


def _parameters(path: Path, table: pd.DataFrame) -> dict[str, float]:
    """Run -> total parameters: from the points, else from the summaries, else from a run of the same model_size."""
    known: dict[str, float] = {}
    sources, beside = [table], path.with_name(SUMMARIES)
    if beside.exists():
        header, cells = read_cells(beside, fewest=0)
        check_header(beside, header, ("run_id",))
        sources.insert(0, table_of(beside, header, cells, OF_SUMMARIES))
    for rows in sources:
        column = next((name for name in PARAMETERS if name in rows), None)
        if column:
            known |= {run: n for run, n in zip(rows["run_id"], rows[column], strict=True) if n > 0}
    if "model_size" in table:
        sizes = table.drop_duplicates("run_id").set_index("run_id")["model_size"]
        for _, members in sizes[sizes != ""].groupby(sizes):
            found = {known[run] for run in members.index if run in known}
            if len(found) == 1:
                known |= {run: next(iter(found)) for run in members.index if run not in known}
    return known


def _one_run(place: dict, own: pd.DataFrame, parameters: float) -> tuple[dict, pd.DataFrame]:
    """Row of the runs table, and curve, of a run's points in ascending order."""
    last, best = own.iloc[-1], own.loc[own["val_loss"].idxmin()]
    flops, counted = flops_in(own)
    flops = pd.Series(flops, index=own.index)
    row = _run(place) | {
        "params_total": parameters,
        "samples": last["samples_seen"],
        "flops": flops.iloc[-1],
        COUNTED: counted if np.isfinite(flops.iloc[-1]) else "",
        "final.val_loss": last["val_loss"],
        "best.val_loss": best["val_loss"],
        "best.samples": best["samples_seen"],
    }
    if "lr_schedule" in own:  # several are named together, for the learning rate is then not that of either
        row[SCHEDULE] = " and ".join(dict.fromkeys(filter(None, own["lr_schedule"])))
    if row["family"] == "grid" and row.get(SCHEDULE, "") not in ("", "constant") and still_high(own):
        row |= {"family": "scaling", "budget": ""}  # its last loss is not that of a finished run
    if TOKENS in own:
        row["visual_tokens"] = last[TOKENS]
    return row, own.rename(columns={"samples_seen": "samples"}).assign(run=row["run"], flops=flops)


def _tables(parts: list[tuple[dict, pd.DataFrame]]) -> Tables:
    runs = _runs([row for row, _ in parts])
    curves = pd.concat([curve for _, curve in parts], ignore_index=True)
    validation = curves.reindex(columns=list(COLUMNS["validation_curves"]))
    training = curves.reindex(columns=[*COLUMNS["validation_curves"][:4], "train_loss"]).dropna(subset="train_loss")
    training = training.reset_index(drop=True).reindex(columns=list(COLUMNS["training_curves"]))
    return {"runs": runs, "validation_curves": validation, "training_curves": training}


def _from_study(found: list[study_files.StudyRun], known: Ablations) -> Tables:
    """The tables of runs whose files are in the published study's form. What cannot be read is left out and printed.

    raises   UserError if that is every run
    """
    names = short_names([run.name for run in found], known)
    rows, curves, left_out = [], {"validation_curves": [], "training_curves": []}, []
    for run in found:
        place, facts = place_of(names[run.name], known), run.facts
        place |= {"architecture": facts["architecture"]} if "architecture" in facts else {}
        n, flops = facts.get("params_total", np.nan), facts.get("flop_budget", np.nan) * study_files.FLOPS_PER_UNIT
        is_damaged = bool(run.left_out) and not facts  # its summary, or its row in a table
        training, evaluations = run.read()
        is_damaged |= bool(run.left_out) and not (evaluations or "best_val_loss" in facts)
        left_out += [f"{'run ' * is_damaged}{place['run']}: {reason}" for reason in run.left_out]
        if is_damaged:
            continue
        best = min(evaluations, key=lambda row: row["val_loss"], default={})
        rows.append(_run(place) | {
            "params_total": n,
            "flops": flops,
            COUNTED: "flop_budget x 2 (there one per multiply-add)" if np.isfinite(flops) else "",
            "samples": facts.get("samples") or max((row["samples"] for row in training + evaluations), default=np.nan),
            "final.val_loss": evaluations[-1]["val_loss"] if evaluations else np.nan,
            "best.val_loss": best.get("val_loss", facts.get("best_val_loss", np.nan)),
            "best.samples": best.get("samples", np.nan),
        })  # fmt: skip
        for table, records in (("validation_curves", evaluations), ("training_curves", training)):
            curve = pd.DataFrame(records).astype(float)
            if len(curve) > TRAINING_POINTS and table == "training_curves":
                curve = curve.groupby(np.arange(len(curve)) * TRAINING_POINTS // len(curve)).mean()
            curves[table].append(curve.assign(run=place["run"]).reindex(columns=list(COLUMNS[table])))
    if not rows:
        raise UserError(left_out[0])
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    joined = {table: pd.concat(parts, ignore_index=True) for table, parts in curves.items()}
    return {"runs": _runs(rows)} | joined


def _from_list(path: Path, content: list[dict]) -> Tables:
    rows = pd.DataFrame([_result(path, number, one) for number, one in enumerate(content, 1)])
    _refuse_two_at_a_step(path, rows)
    parts = []
    for run, own in rows.groupby("run_id", sort=False):
        first = own.iloc[0]
        place = {"run": run, "family": "pairs", "size": first["config"], "architecture": first["architecture"]}
        row, curve = _one_run(place, own.sort_values("step"), first["parameters"])
        if np.isfinite(first["frames"]):
            row |= {"budget": f"{first['frames']:g} frames", "frames": row["samples"] * first["frames"]}
        parts.append((row | ({"visual_tokens": first["tokens"]} if np.isfinite(first["tokens"]) else {}), curve))
    return _tables(parts)


def _result(path: Path, number: int, one: dict) -> dict:
    """One entry of a list of results, under the names of evaluation points."""
    where = f"{path}, result {number}"
    architecture = ARCHITECTURES.get(str(one["model_type"]))
    if architecture is None:
        raise UserError(f"{where}: model_type is {one['model_type']!r}; expected one of {', '.join(ARCHITECTURES)}")

    def value(*names: str, kind=COUNT) -> float:
        found = next((one[name] for name in names if one.get(name) is not None), np.nan)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise UserError(f"{where}: {names[0]} is {found!r}; expected a number")
        if not (kind.low <= found <= kind.high or found is np.nan):
            raise UserError(f"{where}: {names[0]} is {str(found)[:12]}; expected a {kind.words}")
        return float(found)

    samples = value("samples_seen", "samples")
    if np.isnan(samples):
        samples = value("total_flops") / (value("flops_per_sample") or np.nan)
    if np.isnan(samples):
        raise UserError(f"{where}: no samples_seen, and no total_flops with flops_per_sample; add one")
    return {
        "run_id": result_name(one),
        "architecture": architecture,
        "step": value("step"),
        "samples_seen": samples,
        "val_loss": value("loss_mean", kind=LOSS),
        "flops": value("flops", "total_flops"),
        "parameters": value(*PARAMETERS),
        "tokens": value("visual_tokens") / (value("num_frames") or np.nan),
        "frames": value("num_frames"),
        "config": str(one["config"]) if one.get("config") is not None else "",
    }
