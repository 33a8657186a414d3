"""`fvlm train RUN`: train a run, or resume it from its last checkpoint, in as many processes as it is configured for.

Signals (fvlm.train.signals) are handled from the beginning on. In a Slurm job, a training that a signal has stopped
puts the job back into the queue.
"""

import sys
import time
from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Run
from fvlm.costs.limits import check_tokenizer
from fvlm.errors import Stopped, UserError
from fvlm.records import newest_checkpoint
from fvlm.train.launch import command_of, launched, requeue_this_job, run_to_end
from fvlm.train.signals import REQUEUE, StopRequest


def add_arguments(parser) -> None:
    parser.add_argument("run", help="name of the run, as `fvlm plan` lists it")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/RUN of the results)")
    add_study_arguments(parser)
    parser.add_argument("--digest", help="stop if the run's configuration has another digest")


def main(args) -> int:
    stop = StopRequest()
    with stop.listening():
        study = study_of(args)
        if args.run not in study.runs:
            raise UserError(f"no run {args.run!r} in study {study.study!r}; `fvlm plan` lists them")
        run = study.runs[args.run]
        folder = args.out or Path(study.results) / "runs" / run.name
        if not launched():
            print(_heading(run, folder / "state"), file=sys.stderr, flush=True)
        if args.digest and args.digest != run.digest:
            raise UserError(
                f"the configuration of run {run.name!r} changed since Snakemake planned it (digest {run.digest}, "
                f"planned {args.digest}); start snakemake again"
            )
        check_tokenizer(study, [run])
        if run.operation.total_ranks > 1 and not launched():
            return _start_ranks(run, args)
        from fvlm.train.training import train_here  # imports torch, which the process that starts ranks does not need

        try:
            return train_here(run, study, folder, stop)
        except Stopped as stopped:
            if stopped.status == REQUEUE and not launched():
                requeue_this_job(f"{run.name}: stopped {stopped}")
            raise


def _heading(run: Run, state: Path) -> str:
    """Return the first line of this part of the log; a log holds all parts of its training."""
    checkpoint = newest_checkpoint(state)
    start = f"its newest checkpoint is of step {checkpoint[0]}" if checkpoint else "it begins, there is no checkpoint"
    return f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  training of {run.name}: {start}"


def _start_ranks(run: Run, args) -> int:
    training = ["-m", "fvlm", "train", run.name]
    training += ["--study", *args.study] if args.study else []
    training += ["--out", str(args.out)] if args.out else []
    training += ["--digest", args.digest] if args.digest else []
    status = run_to_end(command_of(run.operation, training))
    if status == REQUEUE:
        requeue_this_job(f"{run.name}: stopped and saved")
    return status
