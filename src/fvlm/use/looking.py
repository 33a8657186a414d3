"""Where a run looks in a video while it answers a question, and on which frames each token of the answer depends.

Letters: P visual positions, N patches of a frame, A tokens of the answer, E language width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.config.schema import Run, Study
from fvlm.data.shards.samples import decode_frames, evenly_spaced, sample_text
from fvlm.device import autocast
from fvlm.evaluate.maps import videos_to_show
from fvlm.model.encoder import Attention
from fvlm.model.generate import Reading, check_length, written
from fvlm.use.answer import Answers, prompt_batch


@dataclass(frozen=True)
class Sample:
    """A video or an image, and what to ask about it.

    frames       (T, 224, 224, 3) uint8
    times_s      (T,) seconds of the frames; None: unknown
    still        it is an image
    question     what to ask
    reference    the answer that the data have; empty: none
    about        where it is from
    """

    name: str
    frames: np.ndarray
    times_s: np.ndarray | None
    still: bool
    question: str
    reference: str = ""
    about: str = ""


@dataclass(frozen=True)
class Looked:
    """What one run did with a sample.

    shown        (P,) the frame of the sample at each visual position; empty for a run without encoder
    passes       "fine" and "coarse": attention of each query over the patches (P, N) and its entropy (P,) in nats
    tokens       (A,) the text of each token of the answer
    depends      (A, P) share of each position in the gradient of the token's log-odds; a row sums to 1, or to 0
    """

    run: Run
    mode: str
    shown: np.ndarray
    passes: dict[str, tuple[np.ndarray, np.ndarray]]
    tokens: list[str]
    depends: np.ndarray


def held_out_samples(run: Run, study: Study) -> Iterator[Sample]:
    """Yield the held-out videos of `fvlm attention`, each with its first question; errors as in `videos_to_show`."""
    videos = videos_to_show(run, study)
    for place, row in zip(videos.order.source.tolist(), videos.order.row.tolist(), strict=True):
        index, prompt = videos.corpus.indices[place], videos.corpus.prompts[place]
        members = index.read(row, Path(study.results))
        text = sample_text(members, prompt)
        frames, times = decode_frames(members), text.get("frame_times")
        known = isinstance(times, list) and len(times) == len(frames) and all(isinstance(t, int | float) for t in times)
        yield Sample(
            str(index.keys[row]),
            frames,
            np.array(times, float) if known else None,
            False,
            *_first_turns(text, prompt),
            videos.corpus.names[place],
        )


def _first_turns(text: dict, prompt: str) -> tuple[str, str]:
    """Return the first question of a sample and its answer; of tokenized text the prompt and nothing."""
    turns = text.get("messages") or [{"role": role, "content": text.get(role, "")} for role in ("user", "assistant")]
    first = {turn["role"]: turn["content"] for turn in reversed(turns)}
    return first.get("user") or prompt, first.get("assistant", "")


def look(answers: Answers, sample: Sample) -> Looked:
    """Answer a sample's question and return where the run looked.

    raises   UserError if the longest answer does not fit into the language model's positions
    """
    run, model = answers.run, answers.model
    shown = _positions(sample, run)
    before, behind = answers.prompt(sample.question)
    check_length(len(shown) * run.model.visual_tokens + len(before) + len(behind) + answers.tokens, model)
    frames = sample.frames[np.unique(shown)]
    batch = prompt_batch(frames, len(shown), before + behind, len(before)).to(answers.device)
    with torch.no_grad(), autocast(run, answers.device):
        plan, text_SE = model.plan(batch), model.llm.embed(batch.token_ids)
        queries = run.model.variant.queries
        states = model.encode(batch.frames) if len(shown) else None
        visual_PE, _, fine, coarse = model.visual_tokens(batch, text_SE, plan, answers.mode, queries, states)
        if queries and coarse is None:
            coarse = model.visual_tokens(batch, text_SE, plan, "coarse_only", True, states)[3]
        reading = Reading(model, answers.mode, batch.token_ids[: len(before)])
        if len(visual_PE):
            reading.take_frames(visual_PE)
        reading.read_text(behind)
        answer = list(written(reading, answers.end, answers.tokens, answers.choose()))
    passes = {name: _numbers(attention) for name, attention in (("fine", fine), ("coarse", coarse)) if attention}
    scored = prompt_batch(frames, len(shown), before + behind + answer, len(before)).to(answers.device)
    depends = _dependence(answers, visual_PE, scored, len(answer), len(shown))
    return Looked(run, answers.mode, shown, passes, added_text(answer, answers.tokenizer.decode), depends)


def _positions(sample: Sample, run: Run) -> np.ndarray:
    """Return the frame at each visual position, as in a training sample of this run."""
    if not run.model.variant.sees:
        return np.zeros(0, np.int64)
    if sample.still:
        return np.zeros(run.data.static_frames, np.int64)
    return evenly_spaced(len(sample.frames), run.data.max_frames)


def _numbers(attention: Attention) -> tuple[np.ndarray, np.ndarray]:
    return attention.patches.float().cpu().numpy(), attention.entropy.float().cpu().numpy()


def _dependence(answers: Answers, visual: torch.Tensor, batch: Batch, tokens: int, positions: int) -> np.ndarray:
    """Return for each of the last tokens the norm of its gradient at each position's visual tokens (A, P), as shares.

    The gradient is that of the token's log-odds log(p / (1 - p)). That of log p has the same shares, but is lost to
    rounding where p is nearly 1. The visual tokens are as they are: that a frame also changes the queries of later
    frames is not in it.

    visual      visual tokens of all positions, (P x tokens per frame, E)
    """
    norms_AP = np.zeros((tokens, positions))
    if not (tokens and positions):
        return norms_AP
    model, plan = answers.model, answers.model.plan(batch)
    leaf = visual.detach().to(model.llm.llama.norm.weight.dtype).requires_grad_()
    with torch.enable_grad():
        hidden = model.hidden(leaf, model.llm.embed(batch.token_ids).detach(), plan)
        cells = plan.rows.cells[-tokens:]
        # a token is predicted in the cell before its own
        logits_AV = model.llm.logits(hidden[cells - 1])
        for number, token in enumerate(batch.token_ids[-tokens:].tolist()):
            others = torch.cat([logits_AV[number, :token], logits_AV[number, token + 1 :]])
            odds = logits_AV[number, token] - others.logsumexp(0)
            (gradient,) = torch.autograd.grad(odds, leaf, retain_graph=True)
            norms_AP[number] = gradient.unflatten(0, (positions, -1)).flatten(1).norm(dim=1).cpu().numpy()
    return norms_AP / np.maximum(norms_AP.sum(1, keepdims=True), np.finfo(float).tiny)


def added_text(tokens: list[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Return what each token adds to the text; the last byte of a character adds it whole, the others nothing."""
    parts, shown = [], 0
    for count in range(1, len(tokens) + 1):
        text = decode(tokens[:count])
        ready = len(text) if count == len(tokens) else len(text.rstrip("\ufffd"))
        parts.append(text[shown:ready])
        shown = max(shown, ready)
    return parts
