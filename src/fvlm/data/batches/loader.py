"""From a run's order to ready batches: seek in the shards, decode JPEGs, tokenize, lay end to end, unpadded."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.config.schema import Run, Source, Study
from fvlm.data.batches.dealing import micro_batches, rank_shares
from fvlm.data.batches.order import Order, in_file_order, split_held_out
from fvlm.data.shards.index import Index, check_tokenizer, load_index
from fvlm.data.shards.samples import decode_frames, image_suffixes, rejected_text, sample_text
from fvlm.data.shards.tar import read_sample
from fvlm.data.shards.text import encode_chat, load_tokenizer, question_length
from fvlm.errors import UserError

IMAGE = 224  # pixels; side of a frame


@dataclass
class Corpus:
    """The opened indices of some sources, with the rows that each may use."""

    names: list[str]
    indices: list[Index]
    rows: list[np.ndarray]
    prompts: list[str]


def data_files(run: Run, study: Study) -> list[Path]:
    """The files that say which samples a run has, also those held out: tokenizer and indices."""
    results = Path(study.results)
    partners = [study.sources[name].held_out for name in run.data.sources]
    names = [*run.data.sources, *(name for name in partners if isinstance(name, str))]
    return [results / "tokenizer" / "tokenizer.json", *(results / "index" / f"{name}.npz" for name in names)]


def open_training(run: Run, study: Study) -> Corpus:
    """A run's sources without what is held out."""
    sources = [study.sources[name] for name in run.data.sources]
    indices = [_open(source, study) for source in sources]
    rows = []
    for source, index in zip(sources, indices, strict=True):
        share = source.held_out if isinstance(source.held_out, float) else 0.0
        rows.append(split_held_out(index, share)[0])
    return Corpus([s.name for s in sources], indices, rows, [s.prompt for s in sources])


def open_held_out(run: Run, study: Study, part: str, samples: int, kinds: tuple[str, ...] | None = None) -> Corpus:
    """At most `samples` held-out samples for each of the run's sources, always the same ones.

    part    "validation" (while training: the best weights are chosen by it) or "evaluation"; a video is in one of them
    kinds   only sources of these kinds; None: those the run has a share for
    """
    kinds = kinds or tuple(kind for kind, share in run.data.share.items() if share > 0)
    corpus = Corpus([], [], [], [])
    for name in run.data.sources:
        source = study.sources[name]
        if source.kind not in kinds or source.held_out is None:
            continue
        if isinstance(source.held_out, str):
            partner = study.sources[source.held_out]
            index = _open(partner, study)
            rows, prompt = np.arange(len(index)), partner.prompt
        else:
            index = _open(source, study)
            rows, prompt = split_held_out(index, source.held_out)[1], source.prompt
        shuffled, videos = _by_video(index, rows)
        cut = min(run.train.validation_samples, len(rows) // 2)
        cut = np.searchsorted(videos, videos[cut]) if cut else 0  # where a video begins
        chosen = (shuffled[:cut] if part == "validation" else shuffled[cut:])[:samples]
        corpus.names.append(name)
        corpus.indices.append(index)
        corpus.rows.append(np.sort(chosen))
        corpus.prompts.append(prompt)
    return corpus


def _by_video(index: Index, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a fixed random order in which those of one video follow each other; and the place of each one's video."""
    videos, of_row = np.unique(index.group[rows], return_inverse=True)
    place = np.random.default_rng(0).permutation(len(videos))[of_row]
    order = np.argsort(place, kind="stable")
    return rows[order], place[order]


def _open(source: Source, study: Study) -> Index:
    index = load_index(Path(study.results) / "index" / f"{source.name}.npz")
    if index.kind != source.kind:
        raise UserError(
            f"source {source.name!r}: its index says {index.kind}, config/sources.yaml says {source.kind}; make it "
            f"again with `fvlm index {source.name}`"
        )
    check_tokenizer(index, Path(study.results) / "tokenizer")
    return index


class Steps:
    """Item i is step i of an order: its micro-batches, ready for the model.

    loss            which text tokens are scored, as `data.loss` says. With "preference" each sample of the order is two
                    neighbours in its batch, the chosen answer before the rejected one, which share their frames
    rank, ranks     which share of every step this process takes, of how many
    raises          ValueError if the order was not drawn with pairs, but the loss wants them
    """

    def __init__(
        self,
        corpus: Corpus,
        order: Order,
        run: Run,
        study: Study,
        loss: str,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        if loss == "preference" and not order.rejected_tokens.all():
            raise ValueError("loss 'preference' needs an order that was drawn with pairs=True")
        self.rank, self.ranks = rank, ranks
        self.corpus, self.order, self.batch_size, self.loss = corpus, order, batch_size, loss
        self.max_tokens, self.results = run.data.max_text_tokens, Path(study.results)
        self.visual_tokens = run.model.visual_tokens
        self.most_positions, self.most_tokens = run.operation.micro_frames, run.operation.micro_tokens
        self.tokenizer = load_tokenizer(self.results / "tokenizer")

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, step: int) -> list[Batch]:
        return [self.batch(group) for group in self.groups(step)]

    def batch(self, places: list[int]) -> Batch:
        """The samples at some places of the order, each decoded to where it lies in the batch."""
        counts = [self._shown(i) for i in places]
        # NumPy asks for huge pages, torch.empty does not: without them a third of the time goes into page faults.
        frames = np.empty((sum(counts), IMAGE, IMAGE, 3), np.uint8)
        parts = np.split(frames, np.cumsum(counts)[:-1])
        samples = [sample for i, part in zip(places, parts, strict=True) for sample in self.samples(i, part)]
        return pack(samples, frames)

    def _shown(self, i: int) -> int:
        """Distinct frames of sample i: none for a model that sees nothing."""
        place, row = int(self.order.source[i]), int(self.order.row[i])
        return int(self.corpus.indices[place].frames[row]) if self.order.positions[i] else 0

    def groups(self, step: int) -> list[list[int]]:
        """Places in the order of the samples of each micro-batch of this rank, which may have none."""
        return self.groups_by_rank(step)[self.rank]

    def groups_by_rank(self, step: int) -> list[list[list[int]]]:
        low = step * self.batch_size
        here = self.order.at(slice(low, low + self.batch_size))
        result = []
        for share in rank_shares(here.positions, here.text_tokens, self.ranks):
            mine = np.array(share, np.int64)
            lengths = here.at(mine)
            groups = micro_batches(lengths.positions, lengths.text_tokens, self.most_positions, self.most_tokens)
            result.append([(low + mine[group]).tolist() for group in groups])
        return result

    def samples(self, i: int, out: np.ndarray) -> list[dict]:
        """Sample i of the order, or the two halves of a pair, as `pack` takes them.

        out     (T, 224, 224, 3) uint8, where to put its distinct frames; T = 0: they are not decoded
        """
        place, row = int(self.order.source[i]), int(self.order.row[i])
        index, name = self.corpus.indices[place], self.corpus.names[place]
        file = self.results / index.shards[index.shard[row]]
        key = str(index.keys[row])
        members = read_sample(file, int(index.offset[row]), int(index.length[row]), key)
        found = len(image_suffixes(members))
        if found != index.frames[row]:
            raise UserError(
                f"{file}: sample {key!r} has {found} images, its index says {index.frames[row]}; delete the index of "
                f"source {name!r} so that it is made again"
            )
        try:
            frames = decode_frames(members, out) if len(out) else out
        except ValueError as error:
            raise UserError(
                f"{file}: sample {key!r}: a frame cannot be decoded ({error}); make the shard again"
            ) from error
        texts = self._texts(sample_text(members, self.corpus.prompts[place]), f"{file}: sample {key!r}", name)
        about = {"positions": int(self.order.positions[i]) // len(texts), "key": key, "source": name}
        first = bool(self.order.question_first[i])
        shown = (frames, None)  # both halves of a pair show the same
        return [about | {"frames": shown[k]} | self._encoded(text, first) for k, text in enumerate(texts)]

    def _texts(self, text: dict, where: str, source: str) -> list[dict]:
        """A sample's text; of a pair with the chosen and with the rejected answer."""
        if self.loss != "preference":
            return [text]
        worse = rejected_text(text)
        if worse is None:
            raise UserError(
                f"{where} has no rejected answer, its index says it has; delete the index of source {source!r} so that "
                "it is made again"
            )
        return [text, worse]

    def _encoded(self, text: dict, question_first: bool) -> dict:
        """Ids and loss mask of a text, and how many of its tokens stand before the frames."""
        ids, answer = encode_chat(self.tokenizer, text, self.max_tokens)
        question = question_length(self.tokenizer, ids, answer) if question_first else 0
        mask = np.ones(len(ids), dtype=bool) if self.loss == "all" else answer.copy()
        mask[0] = False  # nothing stands before it in a text-only sample, so it is scored in none
        return {"ids": ids, "mask": mask, "question": question}


def pack(samples: list[dict], frames: np.ndarray | None = None) -> Batch:
    """One batch of the given samples, end to end. A still image's one frame is named once per position.

    samples     frames (T, 224, 224, 3) uint8, or None: those of the sample before; positions; ids and mask (S,); key
                and source; question, how many ids stand before the frames (without it none)
    frames      (U, 224, 224, 3), where the samples' frames lie end to end already; None: they are copied together
    """
    frame_index, start, distinct = [], 0, 0
    for s in samples:
        if s["frames"] is not None:
            start, distinct = start + distinct, len(s["frames"])
        frame_index.append(start + np.arange(s["positions"]) % max(distinct, 1))
    if frames is None:
        frames = np.concatenate([s["frames"] for s in samples if s["frames"] is not None])
    return Batch(
        frames=torch.from_numpy(frames),
        frame_index=torch.from_numpy(np.concatenate(frame_index).astype(np.int64)),
        frame_counts=torch.tensor([s["positions"] for s in samples]),
        token_ids=torch.from_numpy(np.concatenate([s["ids"] for s in samples]).astype(np.int64)),
        token_counts=torch.tensor([len(s["ids"]) for s in samples]),
        loss_mask=torch.from_numpy(np.concatenate([s["mask"] for s in samples])),
        keys=[s["key"] for s in samples],
        sources=[s["source"] for s in samples],
        question_counts=torch.tensor([s.get("question", 0) for s in samples]),
    )


def load_steps(steps: Steps, first: int = 0, workers: int = 0, pin: bool = False) -> Iterator[list[Batch]]:
    """Steps `first`, `first` + 1, ... in order, read ahead by `workers` threads (0: read when asked for).

    Threads rather than processes: reading, decoding and tokenizing let go of Python's lock, and a batch that changes
    hands between processes costs as much again.
    pin   in memory that a GPU copies from without waiting
    """

    def read(step: int) -> list[Batch]:
        return [batch.pin_memory() for batch in steps[step]] if pin else steps[step]

    rest = range(first, len(steps))
    if not workers:
        yield from map(read, rest)
        return
    ahead: deque[Future[list[Batch]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for step in rest:
            ahead.append(pool.submit(read, step))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def validation_steps(run: Run, study: Study, batch_size: int = 8, **share) -> Steps | None:
    """The run's validation samples as steps, or None where its sources hold out too few.

    share   rank and ranks, as `Steps` takes them
    """
    corpus = open_held_out(run, study, "validation", run.train.validation_samples)
    if not sum(len(rows) for rows in corpus.rows):
        return None
    order = in_file_order(
        corpus.indices,
        corpus.rows,
        run.data.static_frames,
        run.data.max_text_tokens,
        question_first=run.data.question_first,
        frames_seen=run.model.visual_tokens > 0,
        pairs=run.data.loss == "preference",
    )
    return Steps(corpus, order, run, study, run.data.loss, batch_size, **share)
