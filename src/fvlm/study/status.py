"""`fvlm status`: the state of every run, read from the files that it writes. It imports no torch and changes nothing.

A training on this machine is alive while it holds its lock. A training on another machine is judged by the age of its
files, because network file systems need not share locks.
"""

import argparse
import fcntl
import json
import math
import re
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fvlm.config.changes import changed_fields
from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Run, Study
from fvlm.config.trained import ADOPTED, FINISHED, problem_of_run
from fvlm.costs.amounts import Amounts, amounts_of
from fvlm.costs.speed import hours_of, read_calibration, speed_of
from fvlm.errors import UserError
from fvlm.files import last_lines
from fvlm.records import newest_checkpoint
from fvlm.study.plan import hours, number

RECENT = 50  # logged steps that the speed is averaged over
QUIET_S = 120  # a run may be without output for this long,
QUIET_STEPS, QUIET_VALIDATIONS = 20, 3  # or for so many of its own steps or validations
STATES = ("running", "stalled", "stopped", "failed", "unreadable", "waiting", "not started", "finished")
METRICS = ("step", "samples", "train_loss", "tflops", "samples_per_s")  # read from a line of metrics
FORM = "{:<12}{:>17}{:>9}{:>11}{:>10}  {:<26}{:>9}{:>9}"
HEAD = ("run", "state", "step", "loss", "samples/s", "left", "checkpoint", "hours", "cost")


@dataclass
class Status:
    """Status of one run; None where a value is not known.

    state           one of STATES; note: the reason
    step, steps     finished and planned steps; both None if an adopted run does not state them
    checkpoint      step of the last checkpoint, and its age in seconds
    hours, cost     so far: all time of a finished run, else the time of the logged steps
    left_s          seconds left at the run's own speed, without validations; before its first step as planned
    """

    run: str
    state: str
    note: str = ""
    step: int | None = 0
    steps: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    left_s: float | None = None
    checkpoint: int | None = None
    checkpoint_age_s: float | None = None
    hours: float | None = None
    cost: float | None = None


def status_of(study: Study, stalled_after: float | None = None) -> list[Status]:
    """Return the status of every run.

    stalled_after   seconds without output until a run counts as stalled; None: by the run's own speed
    """
    calibration, statuses = read_calibration(study.results), {}
    for name, run in study.runs.items():
        amounts = _amounts(run, study)
        try:
            status = _status_of_run(run, study, amounts, stalled_after)
        except OSError as error:
            status = Status(name, "unreadable", f"{error.filename}: {error.strerror}", steps=amounts and amounts.steps)
        if status.left_s is None and amounts is not None:
            planned = hours_of(run, amounts, speed_of(run, study, calibration))
            status.left_s = None if planned is None else planned * 3600
        statuses[name] = status
    for name, status in statuses.items():
        parent = study.runs[name].parent
        if status.state == "not started" and parent in statuses and statuses[parent].state != "finished":
            status.state, status.note = "waiting", f"for {parent}"
    return list(statuses.values())


def _amounts(run: Run, study: Study) -> Amounts | None:
    try:
        return amounts_of(run, study)
    except UserError:  # its data are not on this machine
        return None


def _status_of_run(run: Run, study: Study, amounts: Amounts | None, stalled_after: float | None) -> Status:
    folder = Path(study.results) / "runs" / run.name
    summary, lock_text = _read_summary(folder / FINISHED), _read(folder / "state/lock")
    up_to_date = summary is not None and summary.get("digest") == run.digest
    problem = problem_of_run(run, study, folder, summary) if up_to_date else ""
    if up_to_date and not problem:
        return _finished(run, study, summary, amounts)
    match = re.search(r"configuration (\w+)", lock_text or "")
    begun_digest = match[1] if match else None
    begun_with_this = begun_digest == run.digest
    steps = amounts and amounts.steps
    if summary is not None and (problem or not begun_with_this) and not is_held(folder / "state/lock"):
        note = problem or _out_of_date("finished", run, folder, summary.get("digest"))
        return Status(run.name, "not started", note, steps=steps)
    if lock_text is None:
        return Status(run.name, "not started", steps=steps)
    status, lines = Status(run.name, "running", steps=steps), read_metrics(folder / "state/metrics.jsonl")
    _add_progress(status, run, study, lines)
    _add_checkpoint(status, folder / "state")
    quiet = stalled_after or _usual_silence(status, run, amounts, lines)
    log = Path(study.results) / f"logs/train/{run.name}.log"
    status.state, status.note = _state_and_note(folder / "state", lock_text, quiet, log)
    if begun_digest is None or begun_with_this:
        return status
    note = _out_of_date("begun", run, folder, begun_digest)
    if status.state in ("failed", "stopped"):
        return Status(run.name, "not started", f"{note}; training starts over", steps=steps)
    status.note = f"{status.note}; {note}".removeprefix("; ")
    return status


def _out_of_date(event: str, run: Run, folder: Path, digest: str | None) -> str:
    """Return the note with the fields that differ from the configuration with this digest."""
    changes = changed_fields(run, folder, digest)
    return "out of date: " + (", ".join(changes) or f"{event} with another configuration")


def _read_summary(path: Path) -> dict | None:
    """Return the summary, None if there is none; raise OSError if it cannot be read."""
    text = _read(path)
    if text is None:
        return None
    try:
        summary = json.loads(text)
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise OSError(0, "damaged; delete it, and the same command writes it again", str(path))
    return summary


def _finished(run: Run, study: Study, summary: dict, amounts: Amounts | None) -> Status:
    """Return the status of a finished run. A summary of an earlier version may lack fields."""
    wall_s, loss = summary.get("wall_s"), (summary.get("final") or {}).get("train_loss")
    spent = None if wall_s is None else wall_s / 3600
    adopted = isinstance(summary.get(ADOPTED), dict)
    steps = summary.get("steps") or (None if adopted else amounts.steps if amounts else 0)
    note = f"adopted from {summary[ADOPTED].get('from')}" if adopted else ""
    return Status(
        run.name, "finished", note, step=steps, steps=steps, loss=loss, samples_per_s=summary.get("samples_per_s"),
        left_s=0.0, hours=spent, cost=None if spent is None else _cost(run, study, spent),
    )  # fmt: skip


def read_metrics(path: Path) -> list[dict]:
    """Return the METRICS of each logged step without damaged and incomplete lines, which a resumed run drops too.

    raises  OSError if the file is there and cannot be read
    """
    content = _read(path) or ""
    lines = content[: content.rfind("\n") + 1].splitlines()
    # Parsing all lines of a long log takes seconds; of older lines only these two values are needed.
    records = []
    for line in lines[:-RECENT]:
        match = re.search(r'"samples": (\d+).*"samples_per_s": (\d[\d.]*(?:e[+-]?\d+)?)[,}]', line)
        if match:
            records.append({"samples": int(match[1]), "samples_per_s": float(match[2])})
    return records + [record for line in lines[-RECENT:] if (record := _record(line)) is not None]


def _record(line: str) -> dict | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    record = {name: content.get(name) for name in METRICS}
    numbers = all(value is None or isinstance(value, int | float) for value in record.values())
    return record if numbers and None not in (record["step"], record["samples"]) else None


def _step_seconds(records: list[dict]) -> list[float]:
    seconds, before = [], 0
    for record in records:
        if record["samples_per_s"]:
            seconds.append((record["samples"] - before) / record["samples_per_s"])
        before = record["samples"]
    return seconds


def _add_progress(status: Status, run: Run, study: Study, records: list[dict]) -> None:
    seconds, last = _step_seconds(records), records[-1] if records else {}
    if "step" in last:
        status.step, status.loss = last["step"], last["train_loss"]
    if not any(seconds):
        return
    status.hours = sum(seconds) / 3600
    status.cost = _cost(run, study, status.hours)
    mean = sum(seconds[-RECENT:]) / len(seconds[-RECENT:])
    if mean:
        status.samples_per_s = run.optim.batch_size / mean
    if status.steps is not None:
        status.left_s = max(0, status.steps - status.step) * mean


def _cost(run: Run, study: Study, spent: float) -> float | None:
    gpus = run.operation.gpus * run.operation.nodes
    if not gpus or study.gpu is None or study.gpu.price_per_hour is None:
        return None
    return spent * gpus * study.gpu.price_per_hour


def _add_checkpoint(status: Status, state: Path) -> None:
    step, path = newest_checkpoint(state) or (None, None)
    age = None if path is None else _age(path)
    if age is not None:
        status.checkpoint, status.checkpoint_age_s = step, age


def _usual_silence(status: Status, run: Run, amounts: Amounts | None, records: list[dict]) -> float:
    """Return how many seconds without output are usual for the run. A validation logs nothing before its end."""
    step = median(_step_seconds(records)[-RECENT:] or [0.0])
    speed = next((record["tflops"] * 1e12 for record in reversed(records) if record.get("tflops")), None)
    validation = amounts.validation_flops / (run.train.evaluations + 1) / speed if amounts and speed else 0.0
    return max(QUIET_S, QUIET_STEPS * step, QUIET_VALIDATIONS * validation)


def _state_and_note(state: Path, lock_text: str, quiet: float, log: Path) -> tuple[str, str]:
    """Return state and note of a run that has begun and is not finished."""
    lock, match = state / "lock", re.search(r"on ([^\s,]+)", lock_text)
    host = match[1] if match else "a machine that its lock does not name"
    here = host == socket.gethostname() or (match is None and is_held(lock))
    if here and not is_held(lock):
        error = _last_error(log, lock) or "its process is gone; the same command resumes from the last checkpoint"
        return "stopped" if error.startswith("stopped") else "failed", error
    files = [lock, state / "metrics.jsonl", state / "validation.jsonl", *state.glob("step_*.pt")]
    age = min((age for path in files if (age := _age(path)) is not None), default=math.inf)
    if age > quiet:
        return "stalled", f"no output for {ago(age)}" + ("" if here else f"; it was on {host}")
    return "running", "" if here else f"on {host}"


def is_held(path: Path) -> bool:
    """Return whether a process of this machine holds the lock. Other `fvlm status` commands do not count."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def refuse_held(folder: Path) -> None:
    """Raise UserError if a process of this machine trains the run in `folder`."""
    if is_held(folder / "state/lock"):
        raise UserError(f"run {folder.name!r} is being trained in {folder}; wait until it ends, or stop it")


def _last_error(log: Path, lock: Path) -> str:
    """Return the error in the last line of a training's log, or an empty text.

    lock    written at each start: an older log belongs to an earlier part of the training
    """
    try:
        if log.stat().st_mtime < lock.stat().st_mtime:
            return ""
    except OSError:
        return ""
    last = "".join(last_lines(log, 1))
    return last.removeprefix("fvlm train: ") if re.match(r"fvlm train: |\w*(Error|Exception)\b", last) else ""


def _read(path: Path) -> str | None:
    """Return a file's text, None if there is no file; raise OSError if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _age(path: Path) -> float | None:
    """Return the seconds since a file changed, at least 0: clocks of file servers differ."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def totals_of(study: Study, statuses: list[Status]) -> dict:
    """Return the number of runs by state, hours and cost so far, and training hours left (None if not all known)."""
    left = [status.left_s for status in statuses if status.state != "finished"]
    costs = [status.cost for status in statuses if status.cost is not None]
    counts = Counter(status.state for status in statuses)
    return {
        "runs": len(statuses), "states": {state: counts[state] for state in STATES if counts[state]},
        "hours": sum(status.hours or 0 for status in statuses),
        "cost": sum(costs) if costs else None, "currency": study.gpu.currency if study.gpu else None,
        "left_hours": None if None in left else sum(left) / 3600,
    }  # fmt: skip


def status_text(study: Study, statuses: list[Status]) -> str:
    """Return the table of all runs and their totals."""
    form = f"{{:<{max([14, *(len(s.run) for s in statuses)]) + 2}}}{FORM}"
    lines = [form.format(*HEAD)]
    for s in statuses:
        steps = "-" if s.step is None else f"{s.step:,}/{'?' if s.steps is None else format(s.steps, ',')}"
        saved = "-" if s.checkpoint is None else f"step {s.checkpoint:,}, {ago(s.checkpoint_age_s)} ago"
        left = "-" if s.left_s is None else ago(s.left_s)
        line = form.format(
            s.run, s.state, steps, number(s.loss, 3), number(s.samples_per_s, 1), left, saved, hours(s.hours),
            number(s.cost, 2),
        )  # fmt: skip
        lines.append(f"{line}  {s.note}".rstrip())
    total = totals_of(study, statuses)
    states = ", ".join(f"{count} {state}" for state, count in total["states"].items())
    cost = "" if total["cost"] is None else f" ({total['cost']:,.2f} {total['currency']})"
    left = "time left not known" if total["left_hours"] is None else f"{hours(total['left_hours'])} h left"
    return "\n".join([
        *lines, f"{total['runs']} runs: {states}; {hours(total['hours'])} h trained{cost}, {left} (one run at a time)"
    ])  # fmt: skip


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number of seconds above zero")
    return value


def add_arguments(parser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="show only these runs")
    parser.add_argument(
        "--watch", nargs="?", type=_positive, const=10, metavar="SECONDS", help="repeat every SECONDS (10)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--stalled-after", type=_positive, metavar="SECONDS",
        help="a run without output for this long counts as stalled (default: by its own speed)",
    )  # fmt: skip
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    unknown = [name for name in args.runs if name not in study.runs]
    if unknown:
        raise UserError(f"no run {unknown[0]!r} in study {study.study!r}; `fvlm plan` lists them")
    while True:
        statuses = [s for s in status_of(study, args.stalled_after) if not args.runs or s.run in args.runs]
        if args.json:
            text = json.dumps({"runs": [asdict(s) for s in statuses], "total": totals_of(study, statuses)})
        else:
            text = status_text(study, statuses)
        clear = args.watch and not args.json and sys.stdout.isatty()
        print(f"\033[2J\033[H{text}" if clear else text, flush=True)
        if not args.watch:
            return 0
        time.sleep(args.watch)
