"""`fvlm status`: where every run is, read from the files that it writes. No torch; nothing is locked or changed.

A training on this machine is alive if it holds its lock. One on another machine is judged by the age of its files: the
lock is not asked there, since network file systems need not pass it on.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from fvlm.config.changes import changed_fields
from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Run, Study
from fvlm.costs.amounts import Amounts, amounts_of
from fvlm.costs.speed import hours_of, read_calibration, speed_of
from fvlm.errors import UserError
from fvlm.study.plan import hours, number

RECENT = 50  # steps whose speed counts for the time left
QUIET_S = 120  # a run may always be silent for so long,
QUIET_STEPS, QUIET_VALIDATIONS = 20, 3  # or for so many of its own steps or validations
STATES = ("running", "stalled", "stopped", "failed", "unreadable", "waiting", "not started", "finished")
WANTED = ("step", "samples", "train_loss", "tflops", "samples_per_s")  # of a line of metrics
FORM = "{:<12}{:>17}{:>9}{:>11}{:>10}  {:<26}{:>9}{:>9}"
HEAD = ("run", "state", "step", "loss", "samples/s", "left", "checkpoint", "hours", "cost")


@dataclass
class Status:
    """Of one run; None where it is not known.

    state           one of STATES; note: why, or what will happen
    step, steps     done and, as planned, in all
    checkpoint      step of the last one, and its age in seconds
    hours, cost     spent so far: of a finished run all of its time, else that of its logged steps
    left_s          of a run that has begun at its own speed, validations not counted; else as planned
    """

    run: str
    state: str
    note: str = ""
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    left_s: float | None = None
    checkpoint: int | None = None
    checkpoint_age_s: float | None = None
    hours: float | None = None
    cost: float | None = None


def status_of(study: Study, stalled_after: float | None = None) -> list[Status]:
    """Every run of a study; `stalled_after`: seconds of silence, None: by the run's own pace."""
    calibration, found = read_calibration(study.results), {}
    for name, run in study.runs.items():
        amounts = _amounts(run, study)
        try:
            status = _of_run(run, study, amounts, stalled_after)
        except OSError as error:
            status = Status(name, "unreadable", f"{error.filename}: {error.strerror}", steps=amounts and amounts.steps)
        if status.left_s is None and amounts is not None:
            planned = hours_of(run, amounts, speed_of(run, study, calibration))
            status.left_s = None if planned is None else planned * 3600
        found[name] = status
    for name, status in found.items():
        parent = study.runs[name].parent
        if status.state == "not started" and parent is not None and found[parent].state != "finished":
            status.state, status.note = "waiting", f"for {parent}"
    return list(found.values())


def _amounts(run: Run, study: Study) -> Amounts | None:
    try:
        return amounts_of(run, study)
    except UserError:  # its data are not here to be counted
        return None


def _of_run(run: Run, study: Study, amounts: Amounts | None, stalled_after: float | None) -> Status:
    folder = Path(study.results) / "runs" / run.name
    lock, summary = folder / "state/lock", _summary(folder / "run_summary.json")
    if summary is not None and summary.get("digest") == run.digest:
        return _finished(run, study, summary, amounts)
    new = Status(run.name, "not started", steps=amounts and amounts.steps)
    holder = _read(lock)
    named = re.search(r"configuration (\w+)", holder or "")
    another = named is not None and named[1] != run.digest
    if summary is not None and (another or named is None) and not is_held(lock):
        new.note = _out_of_date("finished", run, folder, summary.get("digest"))
        return new
    if holder is None:
        return new
    status, lines = replace(new), read_metrics(folder / "state/metrics.jsonl")
    _add_progress(status, run, study, lines)
    _add_checkpoint(status, folder / "state")
    quiet = stalled_after or _may_be_quiet(status, run, amounts, lines)
    status.state, status.note = _liveness(folder, holder, quiet, Path(study.results) / f"logs/train/{run.name}.log")
    if another and status.state in ("failed", "stopped"):
        new.note = _out_of_date("begun", run, folder, named[1]) + "; training starts over"
        return new
    if another:
        status.note = f"{status.note}; {_out_of_date('begun', run, folder, named[1])}".removeprefix("; ")
    return status


def _out_of_date(event: str, run: Run, folder: Path, digest: str | None) -> str:
    """The fields that differ from the configuration with this digest, which the run was begun or finished with."""
    changes = changed_fields(run, folder, digest)
    return "out of date: " + (", ".join(changes) or f"{event} with another configuration")


def _summary(path: Path) -> dict | None:
    """raises OSError if it is there and cannot be read"""
    text = _read(path)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise OSError(0, "damaged; delete it, and the same command writes it again", str(path))
    return found


def _finished(run: Run, study: Study, summary: dict, amounts: Amounts | None) -> Status:
    """An earlier version may not have written every field."""
    wall, last = summary.get("wall_s"), (summary.get("final") or {}).get("train_loss")
    spent = None if wall is None else wall / 3600
    steps = summary.get("steps") or (amounts.steps if amounts else 0)
    return Status(
        run.name, "finished", step=steps, steps=steps, loss=last, samples_per_s=summary.get("samples_per_s"),
        left_s=0.0, hours=spent, cost=None if spent is None else _cost(run, study, spent),
    )  # fmt: skip


def read_metrics(path: Path) -> list[dict]:
    """WANTED of each logged step; a line that is damaged or only half there is left out, as the run itself will do.

    raises  OSError if the file is there and cannot be read
    """
    content = _read(path) or ""
    whole = content[: content.rfind("\n") + 1].splitlines()
    # long logs: of all but the recent lines only what the time spent is added up from is taken out
    found = []
    for line in whole[:-RECENT]:
        pair = re.search(r'"samples": (\d+).*"samples_per_s": (\d[\d.]*(?:e[+-]?\d+)?)[,}]', line)
        if pair:
            found.append({"samples": int(pair[1]), "samples_per_s": float(pair[2])})
    return found + [record for line in whole[-RECENT:] if (record := _record(line)) is not None]


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    found = {name: record.get(name) for name in WANTED}
    numbers = all(value is None or isinstance(value, int | float) for value in found.values())
    return found if numbers and None not in (found["step"], found["samples"]) else None


def _seconds(lines: list[dict]) -> list[float]:
    """Of each logged step."""
    found, before = [], 0
    for line in lines:
        if line["samples_per_s"]:
            found.append((line["samples"] - before) / line["samples_per_s"])
        before = line["samples"]
    return found


def _add_progress(status: Status, run: Run, study: Study, lines: list[dict]) -> None:
    seconds, last = _seconds(lines), lines[-1] if lines else {}
    if "step" in last:
        status.step, status.loss = last["step"], last["train_loss"]
    if not any(seconds):
        return
    status.hours = sum(seconds) / 3600
    status.cost = _cost(run, study, status.hours)
    pace = sum(seconds[-RECENT:]) / len(seconds[-RECENT:])
    if pace:
        status.samples_per_s = run.optim.batch_size / pace
    if status.steps is not None:
        status.left_s = max(0, status.steps - status.step) * pace


def _cost(run: Run, study: Study, spent: float) -> float | None:
    gpus = run.operation.gpus * run.operation.nodes
    if not gpus or study.gpu is None or study.gpu.price_per_hour is None:
        return None
    return spent * gpus * study.gpu.price_per_hour


def _add_checkpoint(status: Status, state: Path) -> None:
    newest = max((path for path in state.glob("step_*.pt") if path.stem[5:].isdecimal()), default=None)
    if newest is None:
        return
    age = _age(newest)
    if age is not None:
        status.checkpoint, status.checkpoint_age_s = int(newest.stem[5:]), age


def _may_be_quiet(status: Status, run: Run, amounts: Amounts | None, lines: list[dict]) -> float:
    """Seconds without a new line that are still usual: a validation writes none before its end."""
    usual = median(_seconds(lines)[-RECENT:] or [0.0])
    speed = next((line["tflops"] * 1e12 for line in reversed(lines) if line.get("tflops")), None)
    validation = amounts.validation_flops / (run.train.evaluations + 1) / speed if amounts and speed else 0.0
    return max(QUIET_S, QUIET_STEPS * usual, QUIET_VALIDATIONS * validation)


def _liveness(folder: Path, holder: str, quiet: float, log: Path) -> tuple[str, str]:
    """State and note of a run that has begun and is not finished; `holder`: what its lock says."""
    state, named = folder / "state", re.search(r"on ([^\s,]+)", holder)
    host = named[1] if named else "a machine that its lock does not name"
    here = host == socket.gethostname() or (named is None and is_held(state / "lock"))
    ages = [_age(state / name) for name in ("lock", "metrics.jsonl", "validation.jsonl")]
    ages += [_age(path) for path in state.glob("step_*.pt")]
    age = min((age for age in ages if age is not None), default=float("inf"))
    if here and not is_held(state / "lock"):
        words = _last_words(log) or "its process is gone; the same command goes on from the checkpoint"
        return "stopped" if words.startswith("stopped") else "failed", words
    if age > quiet:
        return "stalled", f"nothing new for {ago(age)}" + ("" if here else f"; it was on {host}")
    return "running", "" if here else f"on {host}"


def is_held(path: Path) -> bool:
    """Whether a process of this machine holds the lock. Another `fvlm status` that asks just now does not count."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _last_words(log: Path) -> str:
    """The error that a training ended with, if its log ends with one."""
    try:
        text = (_read(log) or "")[-20_000:]
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last.removeprefix("fvlm train: ") if re.match(r"fvlm train: |\w*(Error|Exception)\b", last) else ""


def _read(path: Path) -> str | None:
    """A file's text, None where there is no file; raises OSError if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):  # not there, or going away just now
        return None


def _age(path: Path) -> float | None:
    """Seconds since a file changed; clocks of file servers differ, so not below 0."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def totals_of(study: Study, found: list[Status]) -> dict:
    """Runs by state; hours and cost so far; hours of training that are left, None if that of any run is unknown."""
    left = [status.left_s for status in found if status.state != "finished"]
    costs = [status.cost for status in found if status.cost is not None]
    return {
        "runs": len(found),
        "states": {state: count for state in STATES if (count := Counter(s.state for s in found)[state])},
        "hours": sum(status.hours or 0 for status in found),
        "cost": sum(costs) if costs else None, "currency": study.gpu.currency if study.gpu else None,
        "left_hours": None if None in left else sum(left) / 3600,
    }  # fmt: skip


def status_text(study: Study, found: list[Status]) -> str:
    form = f"{{:<{max([14, *(len(s.run) for s in found)]) + 2}}}{FORM}"
    lines = [form.format(*HEAD)]
    for s in found:
        place = f"{s.step:,}/{'?' if s.steps is None else format(s.steps, ',')}"
        saved = "-" if s.checkpoint is None else f"step {s.checkpoint:,}, {ago(s.checkpoint_age_s)} ago"
        left = "-" if s.left_s is None else ago(s.left_s)
        line = form.format(
            s.run, s.state, place, number(s.loss, 3), number(s.samples_per_s, 1), left, saved, hours(s.hours),
            number(s.cost, 2),
        )  # fmt: skip
        lines.append(f"{line}  {s.note}".rstrip())
    total = totals_of(study, found)
    said = ", ".join(f"{count} {state}" for state, count in total["states"].items())
    spent = f"{hours(total['hours'])} h trained"
    if total["cost"] is not None:
        spent += f" for {total['cost']:,.2f} {total['currency']}"
    left = "what is left is not known" if total["left_hours"] is None else f"{hours(total['left_hours'])} h left"
    return "\n".join([*lines, f"{total['runs']} runs: {said}; {spent}, {left}, one after another"])


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number of seconds above zero")
    return value


def add_arguments(parser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="these runs alone")
    parser.add_argument(
        "--watch", nargs="?", type=_positive, const=10, metavar="SECONDS", help="again and again (10 s)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--stalled-after", type=_positive, metavar="SECONDS", help="of silence; else by its pace")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    unknown = [name for name in args.runs if name not in study.runs]
    if unknown:
        raise UserError(f"no run {unknown[0]!r} in study {study.study!r}; `fvlm plan` lists them")
    while True:
        found = [s for s in status_of(study, args.stalled_after) if not args.runs or s.run in args.runs]
        if args.json:
            said = json.dumps({"runs": [asdict(s) for s in found], "total": totals_of(study, found)})
        else:
            said = status_text(study, found)
        clear = args.watch and not args.json and sys.stdout.isatty()
        print(f"\033[2J\033[H{said}" if clear else said, flush=True)
        if not args.watch:
            return 0
        time.sleep(args.watch)
