"""What a study will do, before it does it: runs, parameters, samples, FLOPs, and whether the data suffice.

`fvlm plan` prints it; the Snakefile calls `check_data`, `check_memory` and `check_results` while it is parsed.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from fvlm.config import add_study_arguments, study_of
from fvlm.data.sources import sample_count, training_count
from fvlm.errors import UserError
from fvlm.flops import parameters, preference_flops, training_flops
from fvlm.memory import GB, operation_that_fits, predicted_bytes
from fvlm.schema import Kind, Run, Source, Study


@dataclass(frozen=True)
class Stream:
    """A part of a run's mixture: sources of one kind whose samples are drawn evenly, or one source with a weight."""

    kind: Kind
    share: float  # of the run's samples
    sources: list[Source]


def streams(run: Run, study: Study) -> list[Stream]:
    """What a run draws from."""
    result = []
    for kind, share in run.data.share.items():
        sources = [study.sources[name] for name in run.data.sources if study.sources[name].kind == kind]
        weights = run.data.weights
        total = sum(weights.get(source.name, 0.0) for source in sources)
        if share and total:
            result += [Stream(kind, share * weights[source.name] / total, [source]) for source in sources]
        elif share:
            result.append(Stream(kind, share, sources))
    return result


def mean_lengths(stream: Stream, run: Run, study: Study) -> tuple[float, float, float]:
    """Expected (visual positions, distinct frames, text tokens) of a stream's sample, from the declared means."""
    counts = [training_count(source, study.results) for source in stream.sources]
    parts = [count / sum(counts) for count in counts]
    longest = run.data.max_text_tokens
    frames = sum(part * min(source.frames, 64) for part, source in zip(parts, stream.sources, strict=True))
    tokens = sum(part * min(source.text_tokens, longest) for part, source in zip(parts, stream.sources, strict=True))
    shown = run.data.static_frames if stream.kind in ("image", "preference") else frames
    return shown, frames, tokens


def flops_per_sample(run: Run, study: Study) -> float:
    """Expected training FLOPs of one sample (two per multiply-add), averaged over the mixture."""
    total = 0.0
    for stream in streams(run, study):
        total += stream.share * _flops_at(run, *mean_lengths(stream, run, study))
    return total


def _flops_at(run: Run, shown: float, frames: float, tokens: float) -> float:
    """Of a sample of these lengths. Of a text the plan does not know how much is the question: half is taken."""
    if run.data.loss == "preference":
        count, texts = preference_flops, (tokens,) * 4
    else:
        count, texts = training_flops, (tokens,) * 2
    first, last = (
        count(run.model, run.optim.freeze, shown, *texts, frames, question_tokens=question)
        for question in (tokens / 2, 0)
    )
    return run.data.question_first * first + (1 - run.data.question_first) * last


def planned_samples(run: Run, study: Study) -> int:
    """Samples of a run: as set, or what its FLOP budget buys at the expected lengths."""
    if run.train.samples is not None:
        return run.train.samples
    return int(run.train.flops / flops_per_sample(run, study))


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


def check_results(study: Study) -> None:
    """The finished results that a study names are there, each once."""
    for name in study.results_from:
        if not Path(name).exists():
            raise UserError(
                f"results_from: {name}: no such file or folder; expected finished results (several as '[A, B]')"
            )
        if study.results_from.count(name) > 1:
            raise UserError(f"results_from: {name} is there twice; give each file or folder once")


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
    runs = [run for run in study.runs.values() if run.operation.gpus]
    if study.gpu is None or not runs:
        return
    run = max(runs, key=predicted_bytes)
    needed, has = predicted_bytes(run) / GB, study.gpu.memory_gb
    if needed <= has:
        return
    lower = operation_that_fits(run, has * GB)
    remedy = " and ".join(f"operation.{name} to {value}" for name, value in lower.items())
    raise UserError(
        f"run {run.name!r}: training needs up to {needed:.1f} GB of GPU memory, but {study.gpu.name} has {has:g} GB; "
        f"{f'lower {remedy}, or ' if lower else ''}use a GPU with at least {math.ceil(needed)} GB (gpu: in the study)"
    )


def plan_rows(study: Study) -> list[dict]:
    rows = []
    for run in study.runs.values():
        samples = planned_samples(run, study)
        rows.append({
            "run": run.name, "family": run.family, "parent": run.parent or "", "N": parameters(run.model)["total"],
            "samples": samples, "steps": -(-samples // run.optim.batch_size),
            "flops": run.train.flops or samples * flops_per_sample(run, study),
            "memory_gb": predicted_bytes(run) / GB if run.operation.gpus else None,
        })  # fmt: skip
    return rows


def plan_text(study: Study) -> str:
    """The plan as aligned text, one line per run and a total."""
    rows = plan_rows(study)
    lines = [
        f"{'run':<16}{'family':<10}{'parent':<9}{'parameters':>15}{'samples':>12}{'steps':>9}{'FLOPs':>11}{'GPU GB':>8}"
    ]
    lines += [
        f"{r['run']:<16}{r['family']:<10}{r['parent']:<9}{r['N']:>15,}{r['samples']:>12,}{r['steps']:>9,}{r['flops']:>11.3g}"
        + (f"{r['memory_gb']:>8.1f}" if r["memory_gb"] else f"{'-':>8}")
        for r in rows
    ]
    total = sum(r["flops"] for r in rows)
    samples = sum(r["samples"] for r in rows)
    corpus = sum(sample_count(study.sources[name], study.results) for name in study.used_sources)
    lines.append(
        f"{len(rows)} runs, {samples:,} samples, {total:.3g} training FLOPs (two per multiply-add); "
        f"{corpus:,} samples in {len(study.used_sources)} sources"
    )
    return "\n".join(lines)


def add_arguments(parser) -> None:
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    check_sources(study)
    print(plan_text(study))
    check_data(study)
    check_memory(study)
    return 0
