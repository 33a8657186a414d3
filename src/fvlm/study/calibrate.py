"""`fvlm calibrate`: time a few training steps of each model on this machine, for the hours and costs of `fvlm plan`.

The samples are random, with the lengths that the run's sources declare; so are the weights. The time does not include
loading, which threads do in the background (`operation.loader_workers`).
"""

import sys

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Run, Study
from fvlm.costs.limits import too_little_memory
from fvlm.costs.memory import GB, predicted_bytes
from fvlm.costs.speed import CPU, model_digest, read_calibration
from fvlm.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs whose models to time (default: every model once)")
    parser.add_argument("--seconds", type=float, default=10, help="time for each model (default: 10)")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    unknown = [name for name in args.runs if name not in study.runs]
    if unknown:
        raise UserError(f"no run {unknown[0]!r} in study {study.study!r}; `fvlm plan` lists them")
    chosen = [study.runs[name] for name in args.runs] or list(study.runs.values())
    runs = {model_digest(run): run for run in reversed(chosen)}
    runs = dict(reversed(runs.items()))  # the first run of each model
    # These import torch, which takes seconds.
    from fvlm.device import device_of, gpu_of
    from fvlm.study.timing import store, timed

    kinds = {device_of(run).type for run in runs.values()}
    if any(run.operation.gpus for run in runs.values()) and kinds == {CPU}:
        raise UserError(
            "no GPU here, but these runs need one (operation.gpus); calibrate on a machine with the GPU, or set "
            "operation.gpus to 0"
        )
    refused = 0
    for number, (digest, run) in enumerate(runs.items(), 1):
        reason = why_not(run, gpu_of(device_of(run)))
        if reason is None:
            store(study, digest, timed(run, study, args.seconds), device_of(run))
        else:
            refused += 1
        print(f"{number} of {len(runs)} models: {reason or _result_line(study, digest)}", file=sys.stderr, flush=True)
    if refused == len(runs):
        raise UserError("no model could be timed here; without a measurement the plan uses gpu.utilisation")
    return 0


def why_not(run: Run, gpu: tuple[str, float] | None) -> str | None:
    """Return why this one process cannot time a run, or None. `gpu`: name and GB of the GPU here."""
    if run.operation.splits_weights:
        return f"{run.name}: not timed, because its weights are split over {run.operation.total_ranks} processes"
    if gpu is not None and predicted_bytes(run) > gpu[1] * GB:
        return f"not timed: {too_little_memory(run, *gpu)}"
    return None


def _result_line(study: Study, digest: str) -> str:
    result = read_calibration(study.results)["models"][digest]
    return (
        f"{result['run']}: {result['seconds_per_step']:.3g} s per step of {result['samples_per_step']} samples, "
        f"{result['flops_per_s'] / 1e12:.3g} TFLOP/s, {result['memory_gb']:.1f} GB"
    )
