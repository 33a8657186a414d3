"""`fvlm status`: where every run is, read from the files that it writes. No torch; nothing is locked or changed.

A training on this machine is alive if it holds its lock. One on another machine is judged by the age of its files: the
lock is not asked there, since network file systems need not pass it on.
"""

import fcntl
import json
import re
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fvlm.config import add_study_arguments, study_of
from fvlm.errors import UserError
from fvlm.planning.amounts import Amounts, amounts_of
from fvlm.planning.plan import hours, number
from fvlm.planning.speed import hours_of, read_calibration, speed_of
from fvlm.schema import Run, Study

RECENT = 50  # steps whose speed counts for the time left
QUIET_S = 120  # a run may always be silent for so long,
QUIET_STEPS, QUIET_VALIDATIONS = 20, 3  # or for so many of its own steps or validations
STATES = ("running", "stalled", "stopped", "failed", "waiting", "not started", "finished")
FORM = "{:<16}{:<12}{:>17}{:>9}{:>11}{:>10}  {:<26}{:>9}{:>9}"
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
        status = _of_run(run, study, amounts, stalled_after)
        if status.state in ("not started", "waiting") and amounts is not None:
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
    steps = amounts and amounts.steps
    summary = _summary(folder / "run_summary.json")
    if summary is not None and summary.get("digest") == run.digest:
        return _finished(run, study, summary)
    lines = read_metrics(folder / "state/metrics.jsonl")
    status = Status(run.name, "not started", steps=steps)
    if summary is not None:
        status.note = "finished with another configuration"
    if not (folder / "state/lock").exists():
        return status
    _add_progress(status, run, study, lines)
    _add_checkpoint(status, folder / "state")
    quiet = stalled_after or _may_be_quiet(status, run, amounts, lines)
    status.state, status.note = _liveness(folder, quiet, Path(study.results) / f"logs/train/{run.name}.log")
    return status


def _summary(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or going away just now
        return None


def _finished(run: Run, study: Study, summary: dict) -> Status:
    spent = summary["wall_s"] / 3600
    last = (summary.get("final") or {}).get("train_loss")
    return Status(
        run.name, "finished", step=summary["steps"], steps=summary["steps"], loss=last,
        samples_per_s=summary["samples_per_s"], left_s=0.0, hours=spent, cost=_cost(run, study, spent),
    )  # fmt: skip


def read_metrics(path: Path) -> list[dict]:
    """Step, samples, loss, FLOP/s and speed of each logged step; a last line that is half there is left out."""
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError):
        return []
    whole = content[: content.rfind("\n") + 1].splitlines()
    wanted = ("step", "samples", "train_loss", "tflops", "samples_per_s")
    # long logs: of all but the recent lines only what the time spent is added up from is taken out
    found = []
    for line in whole[:-RECENT]:
        pair = re.search(r'"samples": (\d+).*"samples_per_s": ([\d.e+-]+)', line)
        if pair:
            found.append({"samples": int(pair[1]), "samples_per_s": float(pair[2])})
    for line in whole[-RECENT:]:
        try:
            record = json.loads(line)
            found.append({name: record.get(name) for name in wanted})
        except ValueError:
            continue  # damaged; the run itself will drop it
    return found


def _seconds(lines: list[dict]) -> list[float]:
    """Of each logged step."""
    found, before = [], 0
    for line in lines:
        if line["samples_per_s"]:
            found.append((line["samples"] - before) / line["samples_per_s"])
        before = line["samples"]
    return found


def _add_progress(status: Status, run: Run, study: Study, lines: list[dict]) -> None:
    if not lines:
        return
    seconds, recent = _seconds(lines), lines[-RECENT:]
    status.step, status.loss = recent[-1]["step"], recent[-1]["train_loss"]
    status.hours = sum(seconds) / 3600
    status.cost = _cost(run, study, status.hours)
    pace = sum(seconds[-RECENT:]) / len(seconds[-RECENT:])
    status.samples_per_s = run.optim.batch_size / pace
    if status.steps is not None:
        status.left_s = max(0, status.steps - status.step) * pace


def _cost(run: Run, study: Study, spent: float) -> float | None:
    gpus = run.operation.gpus * run.operation.nodes
    if not gpus or study.gpu is None or study.gpu.price_per_hour is None:
        return None
    return spent * gpus * study.gpu.price_per_hour


def _add_checkpoint(status: Status, state: Path) -> None:
    newest = max(state.glob("step_*.pt"), default=None)
    if newest is None:
        return
    age = _age(newest)
    if age is not None:
        status.checkpoint, status.checkpoint_age_s = int(newest.stem.removeprefix("step_")), age


def _may_be_quiet(status: Status, run: Run, amounts: Amounts | None, lines: list[dict]) -> float:
    """Seconds without a new line that are still usual: a validation writes none before its end."""
    usual = median(_seconds(lines)[-RECENT:] or [0.0])
    speed = next((line["tflops"] * 1e12 for line in reversed(lines) if line.get("tflops")), None)
    validation = amounts.validation_flops / (run.train.evaluations + 1) / speed if amounts and speed else 0.0
    return max(QUIET_S, QUIET_STEPS * usual, QUIET_VALIDATIONS * validation)


def _liveness(folder: Path, quiet: float, log: Path) -> tuple[str, str]:
    """State and note of a run that has begun and is not finished."""
    state = folder / "state"
    holder = re.search(r"on (\S+)", _text(state / "lock"))
    host = holder[1] if holder else None
    here = host == socket.gethostname()
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
    lines = [line for line in _text(log).splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last.removeprefix("fvlm train: ") if re.match(r"fvlm train: |\w*(Error|Exception)\b", last) else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-20_000:]
    except OSError:
        return ""


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
    lines = [FORM.format(*HEAD)]
    for s in found:
        place = f"{s.step:,}/{'?' if s.steps is None else format(s.steps, ',')}"
        saved = "-" if s.checkpoint is None else f"step {s.checkpoint:,}, {ago(s.checkpoint_age_s)} ago"
        left = "-" if s.left_s is None else ago(s.left_s)
        line = FORM.format(
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


def add_arguments(parser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="these runs alone")
    parser.add_argument("--watch", nargs="?", type=float, const=10, metavar="SECONDS", help="again and again (10 s)")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--stalled-after", type=float, metavar="SECONDS", help="of silence; else by the run's own pace")
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
        print(f"\033[2J\033[H{said}" if args.watch and not args.json else said, flush=True)
        if not args.watch:
            return 0
        time.sleep(args.watch)
