"""What stops a study before its first job: missing data, runs that do not fit the GPU."""

import math

from fvlm.config.schema import Run, Study
from fvlm.costs.amounts import Stream, planned_samples, streams
from fvlm.costs.memory import GB, operation_that_fits, predicted_bytes
from fvlm.data.sources import sample_count, training_count
from fvlm.errors import UserError


def check_sources(study: Study) -> None:
    """Every source can be counted and holds something."""
    for name in study.used_sources:
        if not sample_count(study.sources[name], study.results):
            raise UserError(f"source {name!r}: its table lists no sample; correct `path` or `table`, or leave it out")


def check_data(study: Study) -> None:
    """Every source has samples, and no run needs more samples of a kind than there are: none is trained on twice."""
    check_sources(study)
    for run in study.runs.values():
        samples = planned_samples(run, study)
        for stream in streams(run, study):
            needed = samples * stream.share
            found = sum(training_count(source, study.results) for source in stream.sources)
            if needed > found * (1 + 1e-9):  # 0.14 x 50 is a bit more than 7
                raise UserError(_too_few(run, stream, samples, needed, found))


def _too_few(run: Run, stream: Stream, samples: int, needed: float, found: float) -> str:
    length = f"train.samples {samples:,}"
    if run.train.flops:
        length = f"train.flops {run.train.flops:.3g} = about {samples:,} samples"
    names = ", ".join(source.name for source in stream.sources)
    part = f"data.weights.{names}" if names in run.data.weights else f"data.share.{stream.kind}"
    return (
        f"run {run.name!r}: {length} needs {needed:,.0f} {stream.kind} samples, but {names} hold {found:,.0f}, and no "
        f"sample is trained on twice; lower it, lower {part}, or add sources"
    )


def check_memory(study: Study) -> None:
    """Every run that trains on a GPU fits the study's; the sentence is about the one that needs the most."""
    if study.gpu is None:
        return
    has = study.gpu.memory_gb
    too_large = [run for run in study.runs.values() if run.operation.gpus and predicted_bytes(run) > has * GB]
    if not too_large:
        return
    run, others = max(too_large, key=predicted_bytes), len(too_large) - 1
    more = f" ({others} more {'runs do' if others > 1 else 'run does'} not fit either)" if others else ""
    raise UserError(f"{too_little_memory(run, study.gpu.name, has, more)} (gpu: in the study)")


def check_run_memory(run: Run, study: Study, real: tuple[str, float] | None = None) -> None:
    """One run, before it is trained; without `gpu:` in the study nothing is checked, as for all runs.

    real    name of the GPU that is there and its memory in GB, which count more than what the study says
    """
    if study.gpu is None or not run.operation.gpus:
        return
    name, has = real or (study.gpu.name, study.gpu.memory_gb)
    if predicted_bytes(run) > has * GB:
        raise UserError(too_little_memory(run, name, has) + ("" if real else " (gpu: in the study)"))


def too_little_memory(run: Run, name: str, has: float, more: str = "") -> str:
    """That a run does not fit the GPU `name` of `has` GB, and with what it would."""
    needed = predicted_bytes(run) / GB
    return (
        f"run {run.name!r}: training needs up to {needed:.1f} GB of GPU memory, but {name} has {has:.4g} GB{more}; "
        f"{_remedy(run, has)}use a GPU with at least {math.ceil(needed)} GB"
    )


def _remedy(run: Run, has: float) -> str:
    """Settings with which the run fits, to be continued by another GPU; empty if there are none."""
    settings = operation_that_fits(run, has * GB)
    if not settings:
        return ""
    said = " and ".join(f"operation.{name} to {str(value).lower()}" for name, value in settings.items())
    return f"{'lower' if set(settings) <= {'micro_frames', 'micro_tokens'} else 'set'} {said}, or "
