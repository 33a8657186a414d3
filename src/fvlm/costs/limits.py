"""Checks before the first job of a study: enough data, and runs that fit the GPU."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from fvlm.config.schema import Run, Study
from fvlm.config.trained import is_adopted
from fvlm.costs.amounts import Stream, planned_samples, streams
from fvlm.costs.memory import GB, operation_that_fits, predicted_bytes
from fvlm.data.sources import sample_count, tables_of, training_count
from fvlm.errors import UserError
from fvlm.records import weights_in


def check_sources(study: Study) -> None:
    """Raise UserError if a source has no samples."""
    for name in study.used_sources:
        if not sample_count(study.sources[name], study.results):
            raise UserError(f"source {name!r}: its table lists no sample; correct `path` or `table`, or leave it out")


def check_data(study: Study) -> None:
    """Raise UserError if a source has no samples, or a run needs more than there are: it trains on none twice."""
    check_sources(study)
    for run in _to_train(study):
        samples = planned_samples(run, study)
        for stream in streams(run, study):
            needed = samples * stream.share
            available = sum(training_count(source, study.results) for source in stream.sources)
            if needed > available * (1 + 1e-9):  # 0.14 x 50 is a bit more than 7
                raise UserError(_too_few(run, stream, samples, needed, available))


def _to_train(study: Study) -> list[Run]:
    """Return the runs of a study without those that were trained elsewhere and adopted."""
    folder = Path(study.results) / "runs"
    return [run for name, run in study.runs.items() if not is_adopted(folder / name, run.digest)]


def _too_few(run: Run, stream: Stream, samples: int, needed: float, available: float) -> str:
    length = f"train.samples {samples:,}"
    if run.train.flops:
        length = f"train.flops {run.train.flops:.3g} = about {samples:,} samples"
    names = ", ".join(source.name for source in stream.sources)
    part = f"data.weights.{names}" if names in run.data.weights else f"data.share.{stream.kind}"
    return (
        f"run {run.name!r}: {length} needs {math.ceil(needed):,} {stream.kind} samples, but {names} hold "
        f"{math.floor(available):,} for training, and no sample is trained on twice; lower it, lower {part}, or add "
        "sources"
    )


def check_benchmarks(study: Study) -> None:
    """Raise UserError if the files of a benchmark are not there."""
    for name in study.evaluation.benchmarks:
        source = study.benchmark_source(name)
        if source is None:
            raise UserError(f"evaluation.benchmarks: {name} needs a source of that name in config/sources.yaml; add it")
        try:
            tables_of(source, study.results)
        except UserError as error:
            raise UserError(f"evaluation.benchmarks: {name}: {error}") from error


def check_parents(study: Study) -> None:
    """Raise UserError if the weights that a run starts from are not there."""
    for run in study.runs.values():
        if run.parent_path:
            try:
                weights_in(run.parent_path)
            except UserError as error:
                raise UserError(f"run {run.name!r}: parent: {error}") from error


def check_memory(study: Study) -> None:
    """Raise UserError if a run does not fit the study's GPU; the message names the run that needs the most."""
    if study.gpu is None:
        return
    memory_gb = study.gpu.memory_gb
    too_large = [run for run in _to_train(study) if run.operation.gpus and predicted_bytes(run) > memory_gb * GB]
    if not too_large:
        return
    run, others = max(too_large, key=predicted_bytes), len(too_large) - 1
    more = f" ({others} more {'runs do' if others > 1 else 'run does'} not fit either)" if others else ""
    raise UserError(f"{too_little_memory(run, study.gpu.name, memory_gb, more)} (gpu: in the study)")


def check_run_memory(run: Run, study: Study, real: tuple[str, float] | None = None) -> None:
    """Raise UserError if one run does not fit its GPU; without `gpu:` in the study nothing is checked.

    real    name and memory in GB of the GPU in this machine, which replaces the study's
    """
    if study.gpu is None or not run.operation.gpus:
        return
    name, memory_gb = real or (study.gpu.name, study.gpu.memory_gb)
    if predicted_bytes(run) > memory_gb * GB:
        raise UserError(too_little_memory(run, name, memory_gb) + ("" if real else " (gpu: in the study)"))


def too_little_memory(run: Run, name: str, memory_gb: float, more: str = "") -> str:
    """Error message for a run that exceeds the memory of the GPU `name`, with settings that fit."""
    needed = predicted_bytes(run) / GB
    return (
        f"run {run.name!r}: training needs up to {needed:.1f} GB of GPU memory, but {name} has {memory_gb:.4g} GB"
        f"{more}; {_remedy(run, memory_gb)}use a GPU with at least {math.ceil(needed)} GB"
    )


def _remedy(run: Run, memory_gb: float) -> str:
    """Return "set ..., or " with settings that fit, to be followed by another remedy; empty if none fit."""
    settings = operation_that_fits(run, memory_gb * GB)
    if not settings:
        return ""
    changes = " and ".join(f"operation.{name} to {str(value).lower()}" for name, value in settings.items())
    return f"{'lower' if set(settings) <= {'micro_frames', 'micro_tokens'} else 'set'} {changes}, or "


def check_tokenizer(study: Study, runs: Iterable[Run] | None = None) -> None:
    """Raise UserError if the tokenizer has ids for which a language model has no embedding.

    A smaller tokenizer is fine. One that is not on this disk, such as a hub name, is checked when a run begins.

    runs    those that begin, with the tokenizer in the results; None: all of the study, with the folder that it names
    """
    folder = Path(study.tokenizer.weights or "") if runs is None else Path(study.results) / "tokenizer"
    file = folder / "tokenizer.json"
    if (runs is None and not study.tokenizer.weights) or not file.is_file():
        return
    entries = _entries(file)
    for run in study.runs.values() if runs is None else runs:
        rows = run.model.language.vocabulary
        if entries > rows:
            raise UserError(
                f"run {run.name!r}: the tokenizer {file} has {entries} entries, but model.language "
                f"{run.model.language.name} has {rows} embeddings; use the tokenizer that belongs to the model "
                "(tokenizer: in the study)"
            )


def _entries(file: Path) -> int:
    """The largest id of a tokenizer and one; 0 if the file is no tokenizer, which its readers report."""
    try:
        content = json.loads(file.read_bytes())
        vocabulary = content["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))  # Unigram: a list
        return 1 + max([*ids, *(token["id"] for token in content.get("added_tokens") or [])])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
