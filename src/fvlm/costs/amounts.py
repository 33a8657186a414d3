"""Samples, tokens and FLOPs of a run, expected from the declared means of its sources."""

from dataclasses import dataclass

from fvlm.config.schema import Kind, Run, Source, Study
from fvlm.costs.flops import forward_flops, preference_flops, training_flops
from fvlm.data.sources import sample_count, training_count


@dataclass(frozen=True)
class Stream:
    """A part of a run's mixture: sources of one kind whose samples are drawn evenly, or one source with a weight."""

    kind: Kind
    share: float  # of the run's samples
    sources: list[Source]


def streams(run: Run, study: Study) -> list[Stream]:
    """Return the streams that a run draws its samples from."""
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
    """Return the expected visual positions, distinct frames and text tokens of a stream's sample."""
    counts = [training_count(source, study.results) for source in stream.sources]
    parts = [count / sum(counts) for count in counts]
    most, longest = run.data.max_frames, run.data.max_text_tokens
    frames = sum(part * min(source.frames, most) for part, source in zip(parts, stream.sources, strict=True))
    tokens = sum(part * min(source.text_tokens, longest) for part, source in zip(parts, stream.sources, strict=True))
    shown = run.data.static_frames if stream.kind in ("image", "preference") else frames
    return shown, frames, tokens


def flops_per_sample(run: Run, study: Study) -> float:
    """Return the expected training FLOPs of one sample (two per multiply-add), averaged over the mixture."""
    total = 0.0
    for stream in streams(run, study):
        total += stream.share * _flops_at(run, *mean_lengths(stream, run, study))
    return total


def _flops_at(run: Run, shown: float, frames: float, tokens: float) -> float:
    """Return the training FLOPs of a sample of these lengths. Half of a text counts as its question."""
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
    """Return the samples of a run: as set, or as many of the expected lengths as its FLOP budget pays for."""
    if run.train.samples is not None:
        return run.train.samples
    return int(run.train.flops / flops_per_sample(run, study))


@dataclass(frozen=True)
class Amounts:
    """Totals of a training.

    visual_tokens, text_tokens   tokens that the language model reads; both halves of a preference pair count
    validation_flops             FLOPs of all evaluation points together; `flops` does not contain them
    """

    samples: int
    steps: int
    visual_tokens: float
    text_tokens: float
    flops: float
    validation_flops: float


def amounts_of(run: Run, study: Study) -> Amounts:
    """Return the expected totals of a run."""
    samples, halves = planned_samples(run, study), 2 if run.data.loss == "preference" else 1
    visual = text = 0.0
    for stream in streams(run, study):
        shown, _, tokens = mean_lengths(stream, run, study)
        visual += halves * samples * stream.share * shown * run.model.visual_tokens
        text += halves * samples * stream.share * tokens
    flops = run.train.flops or samples * flops_per_sample(run, study)
    steps = -(-samples // run.optim.batch_size)
    return Amounts(samples, steps, visual, text, flops, _validation_flops(run, study))


def _validation_flops(run: Run, study: Study) -> float:
    """Return the FLOPs of scoring held-out samples before the first step and at each evaluation point.

    Validation scores the coarse pass as well.
    """
    model = run.model
    if model.training_mode == "coarse_fine":
        model = model.model_copy(update={"lambda_coarse": 1.0})
    total, halves = 0.0, 2 if run.data.loss == "preference" else 1
    for name in run.data.sources:
        source = study.sources[name]
        if source.held_out is None or not run.data.share.get(source.kind):
            continue
        if isinstance(source.held_out, str):
            held = sample_count(study.sources[source.held_out], study.results)
        else:
            held = sample_count(source, study.results) * source.held_out
        shown, frames, tokens = mean_lengths(Stream(source.kind, 1.0, [source]), run, study)
        each = forward_flops(model, shown, tokens, tokens, frames)
        total += halves * each * min(run.train.validation_samples, held // 2)
    return total * (run.train.evaluations + 1)
