"""Files and names of finished runs, read without pandas: the Snakefile checks `results_from` while it is parsed.
A broken summary, or a run that is given twice, then fails a dry run instead of a job."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

from fvlm.analysis import study_files
from fvlm.analysis.study_files import ARCHITECTURES, without_time
from fvlm.config.comparisons import Ablation
from fvlm.config.schema import Study
from fvlm.config.trained import FINISHED
from fvlm.errors import UserError

POINTS = ("run_id", "step", "samples_seen", "val_loss")  # columns of evaluation points
RUN_NAMES = ("run_id", "run")  # of a table with one row per run: its name, and one of the losses
FINAL = ("final_val_loss", "last_val_loss", "val_loss", "loss_train")  # the last, too, is a validation loss
BEST = ("best_val_loss",)
RESULT = ("model_type", "step", "loss_mean")  # fields of a result in a list
SUMMARIES = "run_summaries.csv"  # beside evaluation points, with further columns
GRID = re.compile(r"(?P<size>[\w.]+)-(?P<budget>C\d+)-(?P<letter>[FB])(?P<seed>-s\d+)?")
LONG = re.compile(r"(?P<size>[\d.]+[MB])-scaling(?P<seed>-s\d+)?")  # one long run of a size
PAIR = re.compile(r"(?P<size>[A-Z]-[A-Z])(_(?P<frames>\d+)f)?_(?P<letter>fov|bas)(?P<seed>-s\d+)?")  # equal samples
MODELS = (("config", "pair"), ("arch", "architecture"), ("loss", "val_loss"), ("step",))  # points without a run's name
TWO = ("run", "arch", "early_step", "loss_early", "final_step", "loss_final")  # of a table with two points per run
OF_STUDY = (  # columns by which a table is recognised as the published study's
    {"run_id", "samples_seen", "throughput_sps", "attention_entropy"},
    {"run_id", "total_samples", "best_val_step", "wall_time_hours"},
    {"run", "config", "arch", "params_M", "visual_tokens_per_frame", "loss_train"},
    {"config", "arch", "step", "loss", "pflops"},
    {*TWO},
)
SHORT = r"[A-Z]{1,2}\d+[a-z]?"  # names that are taken for ablations though the study has none of that name
Ablations = dict[str, Ablation]
SEED_SUFFIX = re.compile(r"-s\d+$")
WORDS = "|".join(set(ARCHITECTURES) - {"F", "B", "baseline"})  # the last is an ablation's name
ARCHITECTURE = re.compile(rf"(?<![^_.-])(?:(?P<letter>[FB])$|(?P<word>{WORDS})(?![^_.-]))")  # in a run's name


def base_name(run: str) -> str:
    """Return a run's name without the suffix of a further seed: `NAME-s43` -> `NAME`."""
    return SEED_SUFFIX.sub("", run)


def architecture_in(run: str) -> str:
    """Return the architecture that a run's name states, as in `small_8f_bas` and `360M-B`; empty if it states none."""
    found = ARCHITECTURE.search(base_name(without_time(run)))
    return ARCHITECTURES[found["letter"] or found["word"]] if found else ""


def _ablation(run: str, known: Ablations) -> re.Match | None:
    """Match an ablation's name with what may follow: a description (`NAME_deep_query_off`), a seed (`NAME-s43`)."""
    names = "|".join([*map(re.escape, sorted(known, key=len, reverse=True)), SHORT])
    return re.fullmatch(rf"(?P<name>{names})(_[\w.]+)?(?P<seed>-s\d+)?", run)


def short_names(ids: list[str], known: Ablations) -> dict[str, str]:
    """Return the name of each run without its description and the time when it began: `NAME_deep_query_off` -> `NAME`,
    as tables and figures use it. Where two runs would get one name, both keep theirs.

    known   the ablations of the study
    """
    plain = Counter(without_time(run) for run in ids)
    names = {run: name if plain[name := without_time(run)] == 1 else run for run in ids}
    found = {run: _ablation(names[run], known) for run in ids}
    long: dict[str, set[str]] = {}  # short name -> the names, without seed, that would become it
    for run, match in found.items():
        if match:
            long.setdefault(match["name"], set()).add(base_name(names[run]))
    return {
        run: match["name"] + (match["seed"] or "") if match and len(long[match["name"]]) == 1 else names[run]
        for run, match in found.items()
    }


def place_of(run: str, known: Ablations) -> dict:
    """Return what a run's name implies: family, size, budget, letter, seed, architecture.

    Names such as `135M-C1-F` belong to the scaling grid, `135M-scaling` to long runs of one size, `S-B_64f_fov` to
    pairs of architectures at equal samples; those of the study's ablations, and short ones as in SHORT, are ablations;
    all others count as stages, which are shown and compared with nothing. The study's ablations and long runs are
    foveated unless their names state another architecture; that of other runs is empty if their names state none.

    known   the ablations of the study
    """
    place = {"run": run, "family": "stage", "architecture": architecture_in(run)}
    if found := GRID.fullmatch(run):
        place |= {"family": "grid", **{name: found[name] for name in ("size", "budget", "letter")}}
    elif found := LONG.fullmatch(run):
        place |= {"family": "scaling", "size": found["size"], "architecture": "foveated"}
    elif found := PAIR.fullmatch(run):
        place |= {"family": "pairs", "size": found["size"]}
        place |= {"budget": f"{found['frames']} frames"} if found["frames"] else {}
    elif found := _ablation(run, known):
        place["family"] = "ablation"
        if found["name"] in known and not place["architecture"]:
            place["architecture"] = known[found["name"]].architecture
    if found and found["seed"]:
        place["seed"] = int(found["seed"].removeprefix("-s"))
    return place


def check_finished(paths: list[Path], known: Ablations) -> None:
    """Check that each file or folder has a known form, and that no run is given twice. The cells of a table are checked
    when it is imported.

    raises  UserError
    """
    refuse_twice([run for path in with_runs(paths) for run in runs_in(path, known)])


def with_runs(paths: list[Path]) -> list[Path]:
    """Return the paths to import, without summaries that stand beside evaluation points that are also given."""
    points = {path.parent for path in paths if path.suffix == ".csv" and path.name != SUMMARIES}
    return [path for path in paths if path.name != SUMMARIES or path.parent not in points]


def refuse_twice(runs: list[str]) -> None:
    twice = sorted(run for run, count in Counter(runs).items() if count > 1)
    if twice:
        raise UserError(f"runs {', '.join(twice)} are in several of the results; give each run once")


def runs_in(path: Path, known: Ablations) -> list[str]:
    """Return the names of the runs of a file or folder, as they are after importing."""
    kind = kind_of(path)
    if study := study_files.found_in(path):
        return sorted(short_names([run.name for run in study], known).values())
    if kind == "folder":
        return [_named(summary) for summary in summaries_in(path)]
    if kind == ".csv":
        return sorted(set(short_names(_run_ids(path), known).values()))
    content = results_in(path)
    return [_named(path)] if isinstance(content, dict) else list(dict.fromkeys(map(result_name, content)))


def kind_of(path: Path) -> str:
    """`folder`, `.csv` or `.json`."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected results of finished runs")
    if not path.is_dir() and path.suffix not in (".csv", ".json"):
        raise UserError(
            f"{path}: expected a .csv with evaluation points or runs, a .json with results, or a folder with runs"
        )
    return "folder" if path.is_dir() else path.suffix


def summaries_in(folder: Path) -> list[Path]:
    """The summaries of the runs in a folder or below, in order; raises UserError where there is none."""
    found = sorted(folder.rglob(FINISHED))
    if not found:
        raise UserError(
            f"{folder}: no {FINISHED} in it or below, and no run_summary_RUN_TIME.json; expected finished runs, "
            "or name the file with the results"
        )
    return found


def read_summary(path: Path) -> dict:
    """The summary of a run; raises UserError for a file that is missing, broken, or names no run."""
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected the summary of a finished run ({error}); finish or delete the run"
        ) from error
    if not isinstance(summary, dict) or "run" not in summary:
        raise UserError(f"{path}: expected a mapping with the field 'run'; make the summary again")
    return summary


def _named(summary: Path) -> str:
    run = read_summary(summary)["run"]
    check_folder(summary, run)
    return run


def check_folder(summary: Path, run: str) -> None:
    """Raise UserError if a summary's folder does not have the name of its run."""
    if summary.parent.name != run:
        raise UserError(f"{summary}: the summary of run {run} is in a folder of another name; rename the folder")


def results_in(path: Path) -> dict | list[dict]:
    """Return the content of a JSON file: the summary of a run, or results with all fields of RESULT."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); expected a list of results") from error
    if isinstance(content, dict) and "run" in content:
        return content
    if isinstance(content, dict) and any(isinstance(one, dict) for one in content.values()):
        raise UserError(
            f"{path}: coefficients of fits ({', '.join(list(content)[:3])}), and no results of runs; name the results "
            "that they were fitted to"
        )
    if not isinstance(content, list) or not content or not all(isinstance(one, dict) for one in content):
        raise UserError(f"{path}: expected a list of results with {', '.join(RESULT)}, or the summary of a run")
    for number, one in enumerate(content, 1):
        missing = [name for name in RESULT if one.get(name) is None]
        if missing:
            raise UserError(f"{path}, result {number}: no {', '.join(missing)}; expected {', '.join(RESULT)} in each")
    return content


def result_name(one: dict) -> str:
    """The name of the run that a result of a list belongs to."""
    return "-".join(str(one[name]) for name in ("config", "model_type") if one.get(name) is not None)


def is_by_run(header: list[str]) -> bool:
    """Whether a table has one row per run: it names runs and a loss, and no step or samples of an evaluation."""
    names, losses = (any(name in header for name in group) for group in (RUN_NAMES, (*FINAL, *BEST)))
    return names and losses and not {"step", "samples_seen"} & set(header)


def model_columns(header: list[str]) -> tuple[str, str] | None:
    """The columns of model and architecture of evaluation points that name no run: config, arch, step, loss."""
    found = [next((name for name in names if name in header), "") for names in MODELS]
    return (found[0], found[1]) if all(found) and not {*RUN_NAMES} & {*header} else None


def is_of_study(path: Path) -> bool:
    """Return whether a file or folder has a form of the published study, whose conventions are known."""
    if study_files.found_in(path):
        return True
    return path.suffix == ".csv" and any(columns <= set(next(study_files.rows_of(path), [])) for columns in OF_STUDY)


def model_run(config: str, arch: str) -> str:
    """The name of such a run."""
    return f"{config}_{arch}"


def check_form(path: Path, header: list[str]) -> None:
    """Raise UserError unless a table holds evaluation points, or a row per run."""
    missing = [name for name in POINTS if name not in header]
    if not missing or is_by_run(header) or set(TWO) <= set(header):
        return
    if {"ratio", "experiment"} <= set(header):
        raise UserError(f"{path}: ratios of losses, and no losses of runs; name a table with losses")
    raise UserError(
        f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(header[:12]) or 'nothing'}; "
        f"expected {', '.join(POINTS)}, or one row per run with {RUN_NAMES[0]} and {BEST[0]}: "
        "rename the columns or choose another file"
    )


def _run_ids(path: Path) -> list[str]:
    """The runs of evaluation points, or of a table of runs, in the order in which they come."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = ([cell.strip() for cell in row] for row in csv.reader(file))
            header = next(rows, [])
            if models := model_columns(header):
                places = [header.index(name) for name in models]
                return list(dict.fromkeys(model_run(*(row[place] for place in places)) for row in rows if any(row)))
            check_form(path, header)
            place = next(header.index(name) for name in RUN_NAMES if name in header)
            return list(dict.fromkeys(row[place] for row in rows if len(row) > place))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is no CSV file ({error}); expected a header and rows of numbers") from error


def check_results(study: Study) -> None:
    """Check that the results in `results_from` of a study exist, each once, and that no run is given twice."""
    for name in study.results_from:
        if not Path(name).exists():
            raise UserError(
                f"results_from: {name}: no such file or folder; expected finished results (several as '[A, B]')"
            )
        if study.results_from.count(name) > 1:
            raise UserError(f"results_from: {name} is there twice; give each file or folder once")
    check_finished([Path(name) for name in study.results_from], study.comparisons.ablations)
