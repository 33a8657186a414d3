"""Collect the results of all finished runs into tables: `fvlm collect runs|curves|evaluation|benchmarks`.

A table is the union of what the runs wrote: a field that only some runs have is an empty cell elsewhere.
Collecting only reads, so it can fail, be mended and be repeated without touching a finished run.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.columns import COLUMNS, CURVE, RUN
from fvlm.analysis.compare.bootstrap import VIDEO_FIRST, VISUAL, resampled_sums
from fvlm.analysis.files import read_csv, write_table
from fvlm.analysis.finished import base_name, check_folder, read_summary, refuse_twice
from fvlm.config.comparisons import Comparisons, Published
from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.errors import UserError

EVALUATION = ("run", "mode", "frames", "source", "kind", "key", "loss_sum", "tokens")
OPTIONAL = (  # left out: a sample is its own group, its video comes first, and the loss without the end is not known
    "group", "order", "loss_sum_without_end", "tokens_without_end",
)  # fmt: skip
NOT_IN_TABLE = ("files", "adopted")  # fields of a summary: digests of the run's files, and how it was adopted
TRAINING_POINTS = 400  # of a run's training curve, as the workflow collects it
CELL = ["run", "mode", "frames", "order"]


def add_arguments(parser) -> None:
    parser.fromfile_prefix_chars = "@"
    parser.add_argument("what", choices=("runs", "curves", "evaluation", "benchmarks"))
    parser.add_argument(
        "files",
        nargs="*",
        help="run_summary.json, validation.csv, metrics.csv, evaluation or benchmark files; "
        "@FILE reads further arguments from FILE, one per line",
    )
    parser.add_argument("--out", required=True, help="the table to write")
    parser.add_argument("--points", type=int, default=0, help="curves: at most this many per run, by averaging; 0: all")
    parser.add_argument("--bootstrap", help="evaluation: where to write the replicates")
    add_study_arguments(parser)
    parser.add_argument("--replicates", type=int, default=1000, help="evaluation: resamples of the videos")


def main(args) -> None:
    paths = [Path(name) for name in args.files]
    if args.what == "runs":
        runs = collect_runs(paths)
        if args.study:
            set_questions(runs, study_of(args).comparisons)
        write_table(runs, args.out)
    elif args.what == "curves":
        write_table(collect_curves(paths, args.points), args.out)
    elif args.what == "benchmarks":
        published = study_of(args).comparisons.benchmarks.published if args.study else ()
        write_table(collect_benchmarks(paths, published), args.out)
    else:
        losses, replicates = collect_evaluation(paths, args.replicates)
        if args.bootstrap:
            write_table(replicates, args.bootstrap)
        write_table(losses, args.out)


def flatten(content: dict, prefix: str = "") -> dict:
    """Nested mappings as dotted keys; lists as JSON text; null as missing."""
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat


def collect_runs(paths: list[Path]) -> pd.DataFrame:
    """One row per run_summary.json, in the given order; columns are the union of all fields, the known ones
    first.

    raises  UserError for a file that is missing, broken, or names no run, and for a run given twice
    """
    summaries = [read_summary(path) for path in paths]
    rows = [flatten({key: value for key, value in one.items() if key not in NOT_IN_TABLE}) for one in summaries]
    refuse_twice([row["run"] for row in rows])
    columns = list(dict.fromkeys([*RUN, *(key for row in rows for key in row)]))
    return pd.DataFrame(rows, columns=columns)


def collect_all(summaries: list[Path], folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Return all collected tables of runs: of each run_summary.json, of validation.csv and metrics.csv beside it where
    they are, and of evaluation/RUN.csv and benchmarks/RUN/NAME.csv below the folder."""
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
    answered = sorted(folder.rglob("benchmarks/*/*.csv")) if folder else []
    benchmarks = collect_benchmarks([path for path in answered if path.parent.name in set(runs["run"])])
    return {"runs": runs, **curves, "evaluation": evaluation, "bootstrap": bootstrap, "benchmarks": benchmarks}


def set_questions(runs: pd.DataFrame, comparisons: Comparisons) -> None:
    """Give each ablation the question of the configuration; its summary has the one of its training."""
    questions = runs["run"].map(lambda run: comparisons.question(base_name(run)))
    for column in {"question", "config.question"} & set(runs):
        runs[column] = questions.where(questions != "", runs[column])


def collect_curves(paths: list[Path], points: int = 0) -> pd.DataFrame:
    """All runs' curves under each other; the run is the name of the folder that holds the file.

    points  at most so many rows per run, each the mean of a bin of neighbouring rows (steps and counters
    too); 0: all
    """
    refuse_twice([path.parent.name for path in paths])
    known = list(dict.fromkeys([*COLUMNS["validation_curves"], *COLUMNS["training_curves"]]))
    parts = []
    for path in paths:
        curve = read_csv(path, CURVE[1:])
        if points and len(curve) > points:
            curve = curve.select_dtypes("number").groupby(np.arange(len(curve)) * points // len(curve)).mean()
        parts.append(curve.assign(run=path.parent.name))
    if not parts:
        return pd.DataFrame(columns=known)
    table = pd.concat(parts, ignore_index=True)
    first = [name for name in known if name in table.columns or name not in CURVE]
    return table.reindex(columns=list(dict.fromkeys([*first, *table.columns])))


def collect_evaluation(paths: list[Path], replicates: int = 1000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Losses by run, mode, frames, order and source, and bootstrap replicates of the losses over all sources.

    A loss is sum(loss_sum) / sum(tokens), in nats per scored token; `loss_without_end` is that without the tokens that
    end an answer, and missing for files of earlier versions. The groups of each source are resampled
    with replacement: samples with one `group` show the same video and are drawn together; without that
    column every sample is its own group. The draws are the *same* for every run, mode and order, so that a
    difference of two rows of the replicates is a paired bootstrap of that difference. Rows with source
    "all" sum over sources: of one kind, of kind "visual" (all but texts), or of kind "all".

    returns  losses (columns of the catalog) and replicates (the same keys, then r0 ... in nats per token)
    """
    parts = [read_csv(path, EVALUATION).reindex(columns=[*EVALUATION, *OPTIONAL]) for path in paths]
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=EVALUATION)
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS["evaluation"]), pd.DataFrame(columns=COLUMNS["bootstrap"])
    rows["order"] = rows["order"].astype(object).fillna(VIDEO_FIRST)
    if rows.duplicated([*CELL, "source", "key"]).any():
        first = rows[rows.duplicated([*CELL, "source", "key"])].iloc[0]
        raise UserError(
            f"evaluation of run {first['run']}: sample {first['key']} occurs twice in mode {first['mode']}; "
            "evaluate the run again"
        )
    # one group for a sample in all runs, or their draws would differ
    known = rows.astype({"group": object}).groupby(["source", "key"])["group"].transform("first")
    rows["group"] = known.where(known.notna(), rows["key"])
    cells = rows[CELL].drop_duplicates().reset_index(drop=True)
    rows["cell"] = rows.merge(cells.reset_index(names="cell"), on=CELL)["cell"].to_numpy()
    sums = {}  # (source, kind) -> what _resampled_sums returns
    for (source, kind), part in rows.groupby(["source", "kind"], sort=True):
        sums[source, kind] = _resampled_sums(part, len(cells), replicates, seed=zlib.crc32(source.encode()))
    alone = list(sums)
    kinds = sorted({kind for _, kind in alone})
    for name, summed in (
        *((kind, [kind]) for kind in kinds),
        (VISUAL, [kind for kind in kinds if kind != "text"]),
        ("all", kinds),
    ):
        if summed:
            parts = [sums[key] for key in alone if key[1] in summed]
            sums["all", name] = tuple(sum(values) for values in zip(*parts, strict=True))
    places = pd.concat([cells.assign(source=source, kind=kind) for source, kind in sums], ignore_index=True)
    loss, tokens, samples, groups, *other = map(np.concatenate, zip(*sums.values(), strict=True))
    values, without_end = (_per_token(*both) for both in ((loss, tokens), other))
    counted = {"tokens": tokens[:, 0].astype(int), "samples": samples, "groups": groups}
    losses = _with_intervals(places.assign(**counted, loss_without_end=without_end), values)
    losses = losses[samples > 0].sort_values([*CELL, "source", "kind"], ignore_index=True)
    draws = pd.concat([places, pd.DataFrame(values[:, 1:]).add_prefix("r")], axis=1)
    return losses[list(COLUMNS["evaluation"])], draws[tokens[:, 0] > 0].reset_index(drop=True)


def collect_benchmarks(paths: list[Path], published: tuple[Published, ...] = ()) -> pd.DataFrame:
    """All scores under each other, and below them what others published on the same benchmarks.

    raises  UserError for a run that is given twice with one benchmark
    """
    columns = COLUMNS["benchmarks"]
    parts = [read_csv(path, columns) for path in paths]
    refuse_twice([f"{one['run'].iloc[0]} on {one['benchmark'].iloc[0]}" for one in parts if len(one)])
    scores = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return with_published(scores, published)


def with_published(scores: pd.DataFrame, published: tuple[Published, ...]) -> pd.DataFrame:
    """Return scores of benchmarks, and below them those that others published on the same ones, with their source."""
    titles = dict(zip(scores["benchmark"], scores["title"], strict=True))
    whole = {"main": True, "metric": "accuracy", "group": "all", "category": "all"}
    rows = [
        {"run": one.model, "benchmark": name, "title": titles[name], "score": score, "source": one.source, **whole}
        for one in published
        for name, score in one.scores.items()
        if name in titles
    ]
    return pd.DataFrame([*scores.to_dict("records"), *rows], columns=COLUMNS["benchmarks"])


def _resampled_sums(part: pd.DataFrame, cells: int, replicates: int, seed: int) -> tuple[np.ndarray, ...]:
    """Sums of one source in each cell, a run in one mode and order with one kind of frames.

    returns  loss (cells, 1 + replicates), the plain sum first; tokens (same); samples (cells,); groups (cells,); loss
             and tokens (cells,) without the end of answers, NaN if a file does not have them
    """
    groups, column = np.unique(part["group"].to_numpy(str), return_inverse=True)
    loss, tokens, samples = (np.zeros((cells, len(groups))) for _ in range(3))
    for total, values in ((loss, part["loss_sum"]), (tokens, part["tokens"]), (samples, 1)):
        np.add.at(total, (part["cell"].to_numpy(), column), values)
    without_end = np.zeros((2, cells))
    for total, values in zip(without_end, (part["loss_sum_without_end"], part["tokens_without_end"]), strict=True):
        np.add.at(total, part["cell"].to_numpy(), values)
    counts = samples.sum(1).astype(int), (samples > 0).sum(1)
    return *resampled_sums(loss, tokens, replicates, seed), *counts, *without_end


def _per_token(loss: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Nats per scored token; NaN without one."""
    return np.divide(loss, tokens, out=np.full_like(loss, np.nan), where=tokens > 0)


def _with_intervals(table: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """Add loss, standard error and 95 % interval; values (rows, 1 + replicates). One video alone has no spread."""
    draws = values[:, 1:]
    enough = np.isfinite(draws).all(axis=1) & (table["groups"] > 1)
    low, high = np.quantile(draws, [0.025, 0.975], axis=1) if draws.size else np.full((2, len(table)), np.nan)
    spread = {"standard_error": draws.std(axis=1), "low": low, "high": high}
    return table.assign(loss=values[:, 0], **{name: np.where(enough, own, np.nan) for name, own in spread.items()})
