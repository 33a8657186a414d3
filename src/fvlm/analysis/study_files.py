"""Files of finished runs as the published study wrote them, read under the names that this project has for the same.

    RUN/run_summary_RUN_TIME.json    a run's samples, steps, hours, best validation loss
    RUN/metrics_RUN_TIME.csv         its training and its evaluations in one table; `event_type` says which a row is
    scaling_grid_results.csv, ablation_results.csv    one row per run, with its status

TIME is 20260216_080531. A run that was resumed has several metrics files. A row or a file that cannot be read is left
out, and its run keeps the reason. No pandas and no torch: the Snakefile checks `results_from` while it is parsed, and
`fvlm adopt` reads one run.
"""

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fvlm.config.architectures import ARCHITECTURES as DECLARED
from fvlm.config.trained import FINISHED
from fvlm.errors import UserError

NAMED = re.compile(r"(?P<what>run_summary|metrics)_(?P<run>.+?)(_(?P<time>\d{8}_\d{6}))?\.(json|csv)")
TIME = re.compile(r"_\d{8}_\d{6}$")
EVENT = "event_type"  # train or eval
TABLE = ("run_id", "status", "best_val_loss")  # columns of a table with one row per run
TABLES = ("scaling_grid_results.csv", "ablation_results.csv")
NO_RESULT = ("failed", "error", "crashed", "oom", "timeout", "running", "pending", "dry_run", "skipped")
COUNTS = {"step": "step", "samples_seen": "samples"}  # name there -> here
TRAINING = {
    **{name: name for name in ("train_loss", "loss_fine", "loss_coarse", "grad_norm")},
    **{name: name for name in ("lr_connector", "lr_dino", "lr_llm")},
    **{"throughput_samples_sec": "samples_per_s", "gpu_mem_gb": "memory_gb", "wall_time_sec": "wall_s"},
}
EVALUATION = {
    **{"val_loss": "val_loss", "val_loss_fine": "loss_fine", "val_loss_coarse": "loss_coarse"},
    **{"attention_entropy": "attention_entropy", "wall_time_sec": "wall_s"},
}
ZERO_IS_NONE = ("loss_fine", "loss_coarse", "attention_entropy", "memory_gb")  # 0 stands for "not measured"
SUMMARY = {
    **{"total_samples": "samples", "total_steps": "steps", "wall_time_sec": "wall_s"},
    **{"best_val_loss": "best_val_loss", "best_val_step": "best_step", "final_train_loss": "final_train_loss"},
    **{"total_params": "params_total", "flop_budget": "flop_budget"},
}
FLOPS_PER_UNIT = 2  # of the study's budgets, which count one per multiply-add
ARCHITECTURES = {  # word of a file, or of a run's name -> architecture here
    **{name: name for name in DECLARED},
    **dict.fromkeys(("F", "fov"), "foveated"),
    **dict.fromkeys(("B", "bas", "baseline", "multitoken"), "multi_token"),
}


@dataclass
class StudyRun:
    """One run of the study.

    name       without the time of its start
    facts      of its summary, or its row in a table: values of SUMMARY, and "architecture", "git", "time" where known
    summary, metrics    its files; several metrics files in the order of their times
    left_out   a sentence for each file and group of rows that cannot be read
    """

    name: str
    facts: dict = field(default_factory=dict)
    summary: Path | None = None
    metrics: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def read(self, strict: bool = False) -> tuple[list[dict], list[dict]]:
        """Return its training and its evaluations, each in the order of steps, with the columns of this project.

        strict   raise UserError for a file that cannot be read; else it is left out
        """
        training: list[dict] = []
        evaluations: list[dict] = []
        for path in self.metrics:
            try:
                parts = read_metrics(path, self.left_out)
            except UserError as error:
                if strict:
                    raise
                self.left_out.append(str(error))
                continue
            first = min((row["step"] for rows in parts for row in rows), default=math.inf)
            for rows, more in zip((training, evaluations), parts, strict=True):  # a resumed run repeats its last steps
                rows[:] = [row for row in rows if row["step"] < first] + more
        _add_training_loss(evaluations, training)
        return training, evaluations


def without_time(run: str) -> str:
    """Return a run's name without the time of its start: `A6_coarse_only_20260211_101500` -> `A6_coarse_only`."""
    return TIME.sub("", run)


def found_in(path: Path, unfinished: bool = False) -> list[StudyRun]:
    """Return the study's runs in a folder and below, or in one file, by name; none if it holds no file of this form.

    A folder with runs of this project is none of the study's. Of a run with several summaries the newest one counts; a
    table adds the runs that have no files of their own. A summary or a row that cannot be read is left out.

    unfinished   also return the runs of a folder that have metrics, but no summary and no row in a table
    raises   UserError for a single summary that cannot be read, and for a table of another form
    """
    if not path.is_dir():
        return _in_file(path)
    if any(path.rglob(FINISHED)):
        return []
    runs: dict[str, StudyRun] = {}
    for file in sorted(path.rglob("*"), key=lambda file: (_time_of(file), str(file))):
        match = NAMED.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        run = runs.setdefault(match["run"], StudyRun(match["run"]))
        if match["what"] == "metrics" and file.suffix == ".csv":
            run.metrics.append(file)
        elif match["what"] == "run_summary" and file.suffix == ".json":
            try:
                run.summary, run.facts = file, read_summary(file)
            except UserError as error:
                run.left_out.append(str(error))
    for name in TABLES:
        for table in sorted(path.rglob(name)):
            for row in read_table(table):
                run = runs.setdefault(row.name, row)
                run.facts = row.facts | run.facts
    return [run for _, run in sorted(runs.items()) if run.facts or run.left_out or unfinished]


def _time_of(file: Path) -> str:
    match = NAMED.fullmatch(file.name)
    return match["time"] or "" if match else ""


def _in_file(path: Path) -> list[StudyRun]:
    match = NAMED.fullmatch(path.name)
    if path.suffix == ".json" and match and match["what"] == "run_summary":
        return [StudyRun(match["run"], read_summary(path), path)]
    if path.suffix != ".csv":
        return []
    header = next(rows_of(path), [])
    if EVENT in header:
        name = match["run"] if match else without_time(_first_name(path, header))
        return [StudyRun(name, metrics=[path])]
    return read_table(path) if set(TABLE) <= set(header) else []


def _first_name(path: Path, header: list[str]) -> str:
    row = next((row for number, row in enumerate(rows_of(path)) if number and len(row) == len(header)), None)
    return row[header.index("run_id")] if row and "run_id" in header else path.stem


def rows_of(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file that are not blank; raises UserError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in csv.reader(file):
                if any(map(str.strip, row)):
                    yield [cell.strip() for cell in row]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is no CSV file ({error}); expected a header and rows of numbers") from error


def read_summary(path: Path) -> dict:
    """Return the facts of a run_summary_RUN_TIME.json.

    raises   UserError if it is damaged, or does not hold the number of its samples
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); expected the summary of a run") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping with run_id, total_samples, ...; found {type(content).__name__}")
    given = {new: (old, content[old]) for old, new in SUMMARY.items() if content.get(old) is not None}
    facts = {new: _value(path, *both) for new, both in given.items() if both[1] == both[1]}  # nan: not known
    if not facts.get("samples"):
        raise UserError(f"{path}: no total_samples; expected the number of samples that the run was trained on: add it")
    words = {"git": content.get("git_hash"), "time": content.get("timestamp")}
    return facts | {name: str(word) for name, word in words.items() if word}


def _value(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: {name} is {value!r}; expected a number")
    return value


def read_metrics(path: Path, left_out: list[str]) -> tuple[list[dict], list[dict]]:
    """Return the training and the evaluations of a metrics_RUN_TIME.csv, with the columns of this project.

    A cell that a row leaves empty is None. A last row that a kill has cut is left out.

    left_out   gets a sentence if rows are left out: without a loss, or with a cell that is no number
    raises   UserError for other columns, and if no row can be read
    """
    rows = list(rows_of(path))
    header, rows = (rows[0], rows[1:]) if rows else ([], [])
    missing = [name for name in (EVENT, *COUNTS, "train_loss", "val_loss") if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(header[:12]) or 'nothing'}; expected "
            "the metrics of a run, with rows of training and evaluation"
        )
    known: dict[str, list[dict]] = {"train": [], "eval": []}
    problems = []
    for number, row in enumerate(rows, 2):
        if len(row) != len(header) and number == len(rows) + 1:
            break
        try:
            kind, record = _record(header, row)
            known[kind].append(record)
        except UserError as error:
            problems.append(f"row {number}: {error}")
    if problems and not any(known.values()):
        raise UserError(f"{path}, {problems[0]}")
    if problems:
        left_out.append(f"{path}: {len(problems)} of {len(rows)} rows; {problems[0]}")
    return known["train"], known["eval"]


def _record(header: list[str], row: list[str]) -> tuple[str, dict]:
    """Return `train` or `eval`, and the values of a row; raises UserError."""
    if len(row) != len(header):
        raise UserError(f"{len(row)} cells where the header has {len(header)}; mend or remove the row")
    cells = dict(zip(header, row, strict=True))
    kind = cells[EVENT]
    if kind not in ("train", "eval"):
        raise UserError(f"{EVENT} is {kind!r}; expected train or eval")
    names, loss = (TRAINING, "train_loss") if kind == "train" else (EVALUATION, "val_loss")
    record = {new: int(_needed(old, cells[old])) for old, new in COUNTS.items()}
    record |= {new: _number(old, cells.get(old, "")) for old, new in names.items()}
    record |= {name: None for name in ZERO_IS_NONE if record.get(name) == 0}
    record[loss] = _needed(loss, cells[loss])
    if kind == "train":
        fine, coarse = record["loss_fine"], record["loss_coarse"]
        record["fine_coarse_ratio"] = fine / coarse if fine and coarse else None
    return kind, record


def _number(name: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell.replace("_", "?"))  # Python would read 1_0 as 10
    except ValueError as error:
        raise UserError(f"{name} is {cell!r}; expected a number") from error
    return value if math.isfinite(value) else None


def _needed(name: str, cell: str) -> float:
    value = _number(name, cell)
    if value is None or value < 0:
        raise UserError(f"{name} is {cell!r}; expected a number, zero or more")
    return value


def _add_training_loss(evaluations: list[dict], training: list[dict]) -> None:
    """Give each evaluation the mean training loss since the one before, as this project logs it."""
    before = -1
    for row in evaluations:
        losses = [one["train_loss"] for one in training if before < one["step"] <= row["step"]]
        row["train_loss"], before = sum(losses) / len(losses) if losses else None, row["step"]


def read_table(path: Path) -> list[StudyRun]:
    """Return the runs of a table with one row per run; one row is enough. Runs without a result are not returned; a run
    whose row cannot be read has no facts.

    raises   UserError for other columns, and for a run that is there twice
    """
    rows = list(rows_of(path))
    header, rows = (rows[0], rows[1:]) if rows else ([], [])
    missing = [name for name in TABLE if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(header[:12]) or 'nothing'}; expected "
            f"{', '.join(TABLE)}: one row per run"
        )
    runs: dict[str, StudyRun] = {}
    times: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(
                f"{path}, row {number}: {len(row)} cells where the header has {len(header)}; mend or remove the row"
            )
        cells = dict(zip(header, row, strict=True))
        name, where = without_time(cells["run_id"]), f"{path}, row {number}"
        if cells["status"].lower().replace(" ", "_") in NO_RESULT:
            continue
        time = cells["run_id"].removeprefix(name)
        if name in runs and times[name] == time:
            raise UserError(f"{path}: run {name} is there twice; give each run one row")
        if time >= times.get(name, ""):  # of a run that was trained twice, the later one
            runs[name], times[name] = StudyRun(name), time
            try:
                runs[name].facts = _facts_of_row(cells)
            except UserError as error:
                runs[name].left_out.append(f"{where}: {error}")
    return list(runs.values())


def _facts_of_row(cells: dict[str, str]) -> dict:
    facts = {new: value for old, new in SUMMARY.items() if (value := _number(old, cells.get(old, "")))}
    facts["best_val_loss"] = _needed("best_val_loss", cells["best_val_loss"])
    if cells.get("arch") in ARCHITECTURES:
        facts["architecture"] = ARCHITECTURES[cells["arch"]]
    return facts
