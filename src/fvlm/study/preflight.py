"""`fvlm preflight`: check all that a study needs, in minutes and without training.

It prints a line after each check and writes all of them to preflight.txt. It runs all checks, then fails if there is a
problem. A check that is not possible here (no GPU, no cluster) is listed with the reason.
"""

import fcntl
import shutil
import tempfile
from functools import partial
from pathlib import Path

from fvlm.analysis.finished import check_results
from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Study
from fvlm.costs.limits import check_benchmarks, check_data, check_memory, check_tokenizer
from fvlm.files import write_beside
from fvlm.study.check import OK, PROBLEM, Check, table_of, tried
from fvlm.study.status import is_held

SCRATCH = ".preflight-"


def add_arguments(parser) -> None:
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    results = Path(study.results)
    results.mkdir(parents=True, exist_ok=True)
    checks = []
    _sweep(results)
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=results) as scratch,
        open(Path(scratch, "alive"), "w") as alive,
    ):
        fcntl.flock(alive, fcntl.LOCK_EX)
        for name, function in planned(study, Path(scratch)).items():
            check = tried(name, function)
            checks.append(check)
            print(_line(check), flush=True)
    write_beside(results / "preflight.txt", lambda beside: beside.write_text(table_of(checks) + "\n"))
    print(table_of(checks).splitlines()[-1] + f"; see {results / 'preflight.txt'}")
    return int(any(check.state == PROBLEM for check in checks))


def _sweep(results: Path) -> None:
    """Delete the scratch folders of killed preflights, whose checkpoints may be large."""
    for alive in results.glob(f"{SCRATCH}*/alive"):
        if not is_held(alive):
            shutil.rmtree(alive.parent, ignore_errors=True)


def _line(check: Check) -> str:
    seconds = f" ({check.seconds:.1f} s)" if check.state == OK else ""
    return f"{check.state:<12}{check.name}: {check.message}{seconds}"


def planned(study: Study, scratch: Path) -> dict:
    """Return the checks by name, the quick ones first."""
    # These import torch, which takes seconds.
    from fvlm.study import check_data as data
    from fvlm.study import check_machine as machine
    from fvlm.study import check_models as models

    largest = max(study.runs.values(), key=machine.checkpoint_bytes)
    checks = {
        "enough samples": partial(_passed, check_data, study, "no run needs more samples than its sources have"),
        "benchmarks": partial(_passed, check_benchmarks, study, "the tables of all benchmarks are there"),
        "GPU memory": partial(_passed, check_memory, study, "every run fits, as predicted"),
        "tokenizer": partial(_passed, check_tokenizer, study, "every language model has an embedding for each entry"),
        "finished results": partial(_passed, check_results, study, "all files in results_from are valid"),
        "disk": partial(machine.disk, study),
        "file locks": partial(machine.file_lock, scratch),
        "shared memory": partial(machine.shared_memory, study),
        "GPU": partial(machine.gpu, study),
        "Slurm": machine.slurm,
        "models": partial(models.built_on_paper, study),
        "weights": partial(models.built_really, models.smallest(study)),
    }
    if any(run.parent_path for run in study.runs.values()):
        checks["parents"] = partial(models.parents, study)
    for name in study.used_sources:
        checks[f"source {name}"] = partial(data.readable, study.sources[name], study, scratch)
    return checks | {
        "step": partial(models.step, study),
        "worst batch": partial(models.worst_batch, study),
        "evaluation": partial(models.evaluation, study, scratch),
        "figure": partial(models.figure, study, scratch),
        "checkpoint": partial(models.checkpoint, largest, scratch),
    }


def _passed(check, study: Study, message: str) -> str:
    """Return the message if the check raises no error."""
    check(study)
    return message
