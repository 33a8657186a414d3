"""The samples of a run in training order, and the FLOPs of each."""

from typing import NamedTuple

import numpy as np

from fvlm.config.schema import Run
from fvlm.costs.flops import preference_flops, training_flops
from fvlm.data.batches.dealing import balanced
from fvlm.data.batches.loader import Corpus
from fvlm.data.batches.order import Order, cut_to_flops, cut_to_samples, draw_order


def drawn_order(run: Run, corpus: Corpus) -> Order:
    """Return all samples of the corpus in the order that the run's seed draws."""
    return draw_order(
        corpus.indices,
        corpus.rows,
        run.data.share,
        run.data.weights,
        run.data.static_frames,
        run.data.max_text_tokens,
        run.train.seed,
        run.train.epoch,
        question_first=run.data.question_first,
        frames_seen=run.model.visual_tokens > 0,
        pairs=run.data.loss == "preference",
    )


def planned_order(run: Run, corpus: Corpus) -> tuple[Order, np.ndarray]:
    """Return the run's samples in training order and the training FLOPs of each, (n,).

    The samples are rearranged so that all steps have about the same FLOPs.
    """
    order = drawn_order(run, corpus)
    flops = sample_flops(run, corpus, order)
    if run.train.samples is not None:
        order = cut_to_samples(order, run.train.samples, run.name)
    else:
        order = cut_to_flops(order, flops, run.train.flops, run.name)
    places = balanced(order, flops[: len(order)], run.optim.batch_size)
    return order.at(places), flops[places]


def sample_flops(run: Run, corpus: Corpus, order: Order, reference: bool = True) -> np.ndarray:
    """Return the training FLOPs of each sample, (n,), exact for its own lengths.

    A pair of answers includes the forward passes of the `reference` before the first step, unless that is False. Two
    numbers are not in the index and are estimated: of a truncated text all tokens that may belong to the answer count
    as scored, and the length of a truncated question may be off by the answer's header.
    """
    positions, frames, question, texts = lengths_of(run, corpus, order)
    model, freeze = run.model, run.optim.freeze
    if run.data.loss != "preference":
        ((text, scored),) = texts
        return training_flops(model, freeze, positions, text, scored, frames, question)
    (chosen, scored), (rejected, scored_rejected) = texts
    return preference_flops(
        model, freeze, positions, chosen, rejected, scored, scored_rejected, frames, question, reference
    )


class Lengths(NamedTuple):
    """Lengths of each sample, arrays (n,); of a pair of answers `positions` and `question` are those of one half.

    positions   visual positions
    frames      distinct frames
    question    text tokens before the frames
    texts       (text tokens, scored tokens) of the sample, or of the chosen and the rejected answer
    """

    positions: np.ndarray
    frames: np.ndarray
    question: np.ndarray
    texts: list[tuple[np.ndarray, np.ndarray]]


def lengths_of(run: Run, corpus: Corpus, order: Order) -> Lengths:
    """Return the lengths from which FLOPs are counted."""
    frames, full_texts, answers, questions, rejected = np.zeros((5, len(order)), np.int64)
    for i, index in enumerate(corpus.indices):
        places = order.source == i
        rows = order.row[places]
        frames[places], full_texts[places] = index.frames[rows], index.text_tokens[rows]
        answers[places], questions[places] = index.answer_tokens[rows], index.question_tokens[rows]
        # both halves of a pair have the same question
        rejected[places] = index.rejected_tokens[rows] - full_texts[places] + answers[places]
    pairs = run.data.loss == "preference"
    chosen = order.text_tokens - order.rejected_tokens
    texts = [(chosen, np.minimum(chosen if run.data.loss == "all" else answers, chosen - 1))]
    if pairs:
        texts.append((order.rejected_tokens, np.minimum(rejected, order.rejected_tokens - 1)))
    # a question longer than the maximum length is cut so that up to half of the text is left to the answer
    cut = np.where(questions < chosen, questions, chosen - np.minimum(full_texts - questions, chosen // 2))
    question = np.where(order.question_first, cut, 0)
    return Lengths(order.positions // (1 + pairs), np.where(order.positions, frames, 0), question, texts)
