"""Train a run or continue it, and write its artefacts.

Declared to Snakemake: run_summary.json, metrics.csv, validation.csv, model/. Beside them and not declared, so that a
failed or killed job keeps them: state/ with checkpoints, their configuration, metrics logs, a preference run's
reference and the lock; attention/, wandb/ and tensorboard/.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

from fvlm.config.changes import STARTED, configuration_of, report_changes
from fvlm.config.schema import Run, Study
from fvlm.costs.flops import forward_flops, preference_flops, training_flops
from fvlm.costs.limits import check_run_memory
from fvlm.data.batches.dealing import balanced
from fvlm.data.batches.loader import Corpus, Steps, data_files, open_training, validation_steps
from fvlm.data.batches.order import Order, cut_to_flops, cut_to_samples, draw_order
from fvlm.device import autocast, device_of, gpu_of, peak_flops, precision_on
from fvlm.errors import Stopped, UserError
from fvlm.files import digest_of, sweep, write_json
from fvlm.model.build import build_model, load_weights
from fvlm.records import write_csv
from fvlm.train.fsdp import shard
from fvlm.train.loop import Trainer
from fvlm.train.progress import Spent
from fvlm.train.ranks import Ranks, ToldElsewhere
from fvlm.train.reference import Reference
from fvlm.train.signals import StopRequest
from fvlm.train.state import FORMAT, RunLock, write_weights
from fvlm.train.summary import fill_of, said_of, summary_of
from fvlm.train.trackers import Mirrors, require_packages
from fvlm.train.watch import Watch


def train_here(run: Run, study: Study, stop: StopRequest) -> int:
    """`train`, alone or as one of the ranks that torchrun has started; returns the exit status.

    raises  Stopped where a signal ended it, in the first rank alone
    """
    torch.set_num_threads(run.operation.threads)
    folder, ranks = Path(study.results) / "runs" / run.name, Ranks.of_environment()
    try:
        device = device_of(run, ranks.local, ranks.count)
        with ranks.joined(device):
            refused = [said for said in ranks.gather(_too_large(run, study, device)) if said]
            if refused:
                raise ranks.refusal(refused[0])
            with RunLock(folder / "state", ranks, run.digest):
                train(run, study, folder, ranks, stop)
    except ToldElsewhere:
        return 2
    except Stopped as stopped:
        if ranks.first:
            raise
        return stopped.status
    return 0


def _too_large(run: Run, study: Study, device: torch.device) -> str | None:
    """Why the run does not fit the GPU that is here, or without one the study's."""
    try:
        check_run_memory(run, study, gpu_of(device))
    except UserError as error:
        return str(error)
    return None


def train(run: Run, study: Study, folder: Path, ranks: Ranks | None = None, stop: StopRequest | None = None) -> None:
    """Train `run` from its last checkpoint to the end and write its artefacts into `folder`.

    ranks   the processes that do it, all of which call this; None: this one alone
    stop    whether a signal wants it to end; None: nobody listens
    """
    ranks, stop = ranks or Ranks(), stop or StopRequest()
    spent, device, state = Spent(), device_of(run, ranks.local, ranks.count), folder / "state"
    ranks.at_first(lambda: sweep(folder))
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    torch.manual_seed(run.train.seed)
    split = run.operation.shard_weights and ranks.count > 1
    share = {"rank": ranks.rank, "ranks": ranks.count, "even": split}
    with ranks.together():
        require_packages(run)
        corpus = open_training(run, study)
        order, flops = planned_order(run, corpus)
        model = build_model(run.model, run.train.seed)
        if run.parent is not None:
            load_weights(model, _parent_weights(run, folder))
        steps = Steps(corpus, order, run, study, run.data.loss, run.optim.batch_size, **share)
        validation = validation_steps(run, study, **share)
        depends = identity(run, study, folder)
    _check_same_everywhere(depends, run, ranks)
    model.freeze(run.optim.freeze)
    model.recompute_layers(run.operation.recompute)
    if split:
        shard(model, device)
    else:
        model.to(device)
    fill = fill_of(steps, flops)
    if ranks.first:
        print(f"{run.name}: {said_of(fill)}", file=sys.stderr, flush=True)
    reference = None
    if run.data.loss == "preference":  # the model still has its parent's weights
        sets, workers = [part for part in (steps, validation) if part], run.operation.loader_workers
        cache, about = state / "reference.npz", f"{depends} {precision_on(run, device)}"
        reference = Reference.prepare(model, sets, cache, about, device, autocast(run, device), workers, ranks)
    work = flops - reference_flops(run, corpus, order)
    peak = peak_flops(device, study.gpu, precision_on(run, device))
    peak = peak and peak * ranks.count
    ranks.at_first(lambda: report_changes(run, folder))
    trainer = Trainer(run, model, steps, validation, np.cumsum(flops), np.cumsum(work), state, depends, device,
                      reference, spent, peak, ranks, stop)  # fmt: skip
    ranks.at_first(lambda: write_json(folder / STARTED, configuration_of(run)))
    if trainer.resume_step is None:
        ranks.at_first(lambda: _forget(folder))
    # trained anew it is another run there, which would not take its first steps a second time
    about = run, study.study, folder, f"{depends[:16]}{spent.begun:016x}", trainer.resume_step
    mirrors = Mirrors.first_of(ranks, *about)
    trainer.train(mirrors, Watch(run, study, folder))
    mirrors.close()
    _write_artefacts(trainer, folder, order, flops, fill)


def identity(run: Run, study: Study, folder: Path) -> str:
    """A hash of all that the run's result depends on: its configuration, tokenizer, data and parent's weights."""
    files = data_files(run, study)
    if run.parent is not None:
        files.append(_parent_weights(run, folder))
    return digest_of(f"{FORMAT} {run.digest}", files)


def _check_same_everywhere(depends: str, run: Run, ranks: Ranks) -> None:
    """raises   UserError if the ranks read different configurations, data or parents"""
    if len(set(ranks.gather(depends))) > 1:
        raise ranks.refusal(
            f"run {run.name!r}: its ranks find different configurations, data or parents; all nodes must see the same "
            "files"
        )


def _parent_weights(run: Run, folder: Path) -> Path:
    """Where a run starts; raises UserError if its parent has not been trained."""
    path = folder.parent / run.parent / "model" / "best.safetensors"
    if not path.is_file():
        raise UserError(f"run {run.name!r} starts from {path}, which is not there; train {run.parent!r} first")
    return path


def drawn_order(run: Run, corpus: Corpus) -> Order:
    """The run's samples as its seed draws them, as many as there are."""
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
    """The run's samples in training order, rearranged so that steps cost the same, and the training FLOPs of each."""
    order = drawn_order(run, corpus)
    flops = sample_flops(run, corpus, order)
    if run.train.samples is not None:
        order = cut_to_samples(order, run.train.samples, run.name)
    else:
        order = cut_to_flops(order, flops, run.train.flops, run.name)
    places = balanced(order, flops[: len(order)], run.optim.batch_size)
    return order.at(places), flops[places]


def sample_flops(run: Run, corpus: Corpus, order: Order) -> np.ndarray:
    """(n,) training FLOPs of each sample, exact for its own lengths; of a pair with the reference's forward passes.

    Of a text that is cut the index does not say how many answer tokens are left: all that may be, are counted; and how
    long a question is that was cut itself is known only but for its answer's header.
    """
    positions, encoded, question, texts = lengths_of(run, corpus, order)
    model, freeze = run.model, run.optim.freeze
    if run.data.loss != "preference":
        ((text, scored),) = texts
        return training_flops(model, freeze, positions, text, scored, encoded, question)
    (chosen, scored), (rejected, scored_rejected) = texts
    return preference_flops(
        model, freeze, positions, chosen, rejected, scored, scored_rejected, encoded, question_tokens=question
    )


def reference_flops(run: Run, corpus: Corpus, order: Order) -> np.ndarray:
    """(n,) of these the FLOPs that are spent before the first step, on the reference of a preference loss."""
    if run.data.loss != "preference":
        return np.zeros(len(order))
    positions, encoded, question, texts = lengths_of(run, corpus, order)
    return sum(
        forward_flops(run.model, positions, text, scored, frames, question_tokens=question)
        for (text, scored), frames in zip(texts, (encoded, 0 * encoded), strict=True)  # frames are encoded once
    )


def lengths_of(run: Run, corpus: Corpus, order: Order) -> tuple:
    """What FLOPs are counted from, arrays (n,): visual positions, distinct frames and text tokens before them, of a
    sample or of one half of a pair; and of each half its text tokens and how many of them are scored."""
    frames, whole, answers, questions, rejected = np.zeros((5, len(order)), np.int64)
    for i, index in enumerate(corpus.indices):
        mine = order.source == i
        rows = order.row[mine]
        frames[mine], whole[mine], answers[mine], questions[mine] = (
            column[rows] for column in (index.frames, index.text_tokens, index.answer_tokens, index.question_tokens)
        )
        # both halves of a pair ask the same
        rejected[mine] = index.rejected_tokens[rows] - whole[mine] + answers[mine]
    pairs = run.data.loss == "preference"
    chosen = order.text_tokens - order.rejected_tokens
    texts = [(chosen, np.minimum(chosen if run.data.loss == "all" else answers, chosen - 1))]
    if pairs:
        texts.append((order.rejected_tokens, np.minimum(rejected, order.rejected_tokens - 1)))
    # a question longer than the whole text may be is cut, to leave up to half of the text to the answer
    asked = np.where(questions < chosen, questions, chosen - np.minimum(whole - questions, chosen // 2))
    question = np.where(order.question_first, asked, 0)
    return order.positions // (1 + pairs), np.where(order.positions, frames, 0), question, texts


def _forget(folder: Path) -> None:
    """What an earlier training left and this one may not replace: its pictures, and the word that it is finished."""
    (folder / "run_summary.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "attention", ignore_errors=True)


def _write_artefacts(trainer: Trainer, folder: Path, order: Order, flops: np.ndarray, fill: dict) -> None:
    """run_summary.json comes last: where it stands, everything else does."""
    with trainer.averaged():
        trainer.write_weights(folder / "model/final.safetensors")
    trainer.ranks.at_first(lambda: _write_texts(trainer, folder, order, flops, fill))


def _write_texts(trainer: Trainer, folder: Path, order: Order, flops: np.ndarray, fill: dict) -> None:
    write_csv(folder / "metrics.csv", trainer.metrics.records())
    write_csv(folder / "validation.csv", trainer.validations.records())
    best = trainer.path_of(trainer.best)
    write_weights(folder / "model/best.safetensors", lambda beside: shutil.copyfile(best, beside))
    write_json(folder / "model/run.json", trainer.run.model_dump(mode="json"))
    write_json(folder / "run_summary.json", summary_of(trainer, order, flops) | {"fill": fill})
