"""What a study will do, before it does it: runs, parameters, samples, FLOPs, and whether the data suffice.

`fvlm plan` prints it; the Snakefile calls `check_data` and `check_memory` while it is parsed.
"""

import math

from fvlm.config import add_study_arguments, study_of
from fvlm.data.sources import sample_count, training_count
from fvlm.errors import UserError
from fvlm.flops import parameters, training_flops
from fvlm.memory import GB, operation_that_fits, predicted_bytes
from fvlm.schema import Kind, Run, Study


def mean_lengths(run: Run, study: Study) -> dict[Kind, tuple[float, float, float]]:
    """Expected (visual positions, distinct frames, text tokens) of a sample by kind, from the declared means."""
    result = {}
    for kind, sources in _by_kind(run, study).items():
        counts = [training_count(source, study.results) for source in sources]
        total = sum(counts)
        frames = sum(c * min(source.frames, 64) for c, source in zip(counts, sources, strict=True)) / total
        tokens = (
            sum(
                c * min(source.text_tokens, run.data.max_text_tokens) for c, source in zip(counts, sources, strict=True)
            )
            / total
        )
        shown = run.data.static_frames if kind in ("image", "preference") else frames
        result[kind] = (shown, frames, tokens)
    return result


def _by_kind(run: Run, study: Study) -> dict[Kind, list]:
    kinds: dict[Kind, list] = {}
    for name in run.data.sources:
        source = study.sources[name]
        if run.data.share.get(source.kind, 0) > 0:
            kinds.setdefault(source.kind, []).append(source)
    return kinds


def flops_per_sample(run: Run, study: Study) -> float:
    """Expected training FLOPs of one sample (two per multiply-add), averaged over the mixture."""
    return sum(
        run.data.share[kind]
        * float(training_flops(run.model, run.optim.freeze, shown, tokens, tokens, encoded_frames=frames))
        for kind, (shown, frames, tokens) in mean_lengths(run, study).items()
    )


def planned_samples(run: Run, study: Study) -> int:
    """Samples of a run: as set, or what its FLOP budget buys at the expected lengths."""
    if run.train.samples is not None:
        return run.train.samples
    return int(run.train.flops / flops_per_sample(run, study))


def check_data(study: Study) -> None:
    """Every source can be counted, and no run needs more samples of a kind than there are: none is trained on twice."""
    for name in study.used_sources:
        sample_count(study.sources[name], study.results)
    for run in study.runs.values():
        samples = planned_samples(run, study)
        for kind, sources in _by_kind(run, study).items():
            needed = samples * run.data.share[kind]
            found = sum(training_count(source, study.results) for source in sources)
            if needed > found:
                what = (
                    f"train.samples {samples:,}"
                    if run.train.samples
                    else f"train.flops {run.train.flops:.3g} = about {samples:,} samples"
                )
                raise UserError(
                    f"run {run.name!r}: {what} needs {needed:,.0f} {kind} samples, but "
                    f"{', '.join(s.name for s in sources)} hold {found:,.0f}, and no sample is trained on twice; lower "
                    f"it, lower data.share.{kind}, or add sources"
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
    print(plan_text(study))
    check_data(study)
    check_memory(study)
    return 0
