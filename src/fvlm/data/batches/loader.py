"""From a run's order to batches: read from the shards, decode JPEGs, tokenize, and pack without padding."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.config.schema import Run, Source, Study
from fvlm.data.batches.dealing import micro_batches, rank_shares
from fvlm.data.batches.order import Order, in_file_order, is_ranked, split_held_out
from fvlm.data.shards.index import Index, check_tokenizer, load_index
from fvlm.data.shards.samples import decode_frames, image_suffixes, rejected_text, sample_text
from fvlm.data.shards.text import encode_chat, load_tokenizer, question_length
from fvlm.errors import UserError

IMAGE = 224  # pixels; side of a frame


@dataclass
class Corpus:
    """The indices of some sources, with the rows to use and the prompt of each."""

    names: list[str]
    indices: list[Index]
    rows: list[np.ndarray]
    prompts: list[str]


def data_files(run: Run, study: Study) -> list[Path]:
    """Return the tokenizer and all indices of a run, including those of held-out sources."""
    results = Path(study.results)
    partners = [study.sources[name].held_out for name in run.data.sources]
    names = [*run.data.sources, *(name for name in partners if isinstance(name, str))]
    return [results / "tokenizer" / "tokenizer.json", *(results / "index" / f"{name}.npz" for name in names)]


def open_training(run: Run, study: Study) -> Corpus:
    """Return a run's sources without their held-out samples."""
    sources = [study.sources[name] for name in run.data.sources]
    indices = [_open(source, run, study) for source in sources]
    rows = []
    for source, index in zip(sources, indices, strict=True):
        share = source.held_out if isinstance(source.held_out, float) else 0.0
        rows.append(split_held_out(index, share)[0])
    return Corpus([s.name for s in sources], indices, rows, [s.prompt for s in sources])


def counted_split(study: Study, corpus: Corpus) -> str:
    """A hash of the rows to train on, of sources whose held-out share is counted; empty if there is none."""
    rows = [
        rows.tobytes()
        for name, index, rows in zip(corpus.names, corpus.indices, corpus.rows, strict=True)
        if isinstance(study.sources[name].held_out, float) and is_ranked(index)
    ]
    return hashlib.sha256(b"".join(rows)).hexdigest() if rows else ""


def open_held_out(run: Run, study: Study, part: str, samples: int, kinds: tuple[str, ...] | None = None) -> Corpus:
    """Return at most `samples` held-out samples of each of the run's sources, always the same ones.

    part    "validation" (during training, chooses the best weights) or "evaluation"; a video is in only one of them,
            unless there is no other
    kinds   only sources of these kinds; None: the kinds with a share in the run
    """
    kinds = kinds or tuple(kind for kind, share in run.data.share.items() if share > 0)
    corpus = Corpus([], [], [], [])
    for name in run.data.sources:
        source = study.sources[name]
        if source.kind not in kinds or source.held_out is None:
            continue
        if isinstance(source.held_out, str):
            partner = study.sources[source.held_out]
            index = _open(partner, run, study)
            rows, prompt = np.arange(len(index)), partner.prompt
        else:
            index = _open(source, run, study)
            rows, prompt = split_held_out(index, source.held_out)[1], source.prompt
        shuffled, videos = _by_video(index, rows)
        cut = min(run.train.validation_samples, len(rows) // 2)
        cut = np.searchsorted(videos, videos[cut]) if cut else 0  # the first row of a video
        parts = {"validation": shuffled[:cut], "evaluation": shuffled[cut:]}
        only_one = len(rows) > 0 and videos[0] == videos[-1]
        chosen = (shuffled if only_one else parts[part])[:samples]
        corpus.names.append(name)
        corpus.indices.append(index)
        corpus.rows.append(np.sort(chosen))
        corpus.prompts.append(prompt)
    return corpus


def _by_video(index: Index, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a fixed random order that keeps the rows of a video together, and the place of each row's video."""
    videos, of_row = np.unique(index.group[rows], return_inverse=True)
    place = np.random.default_rng(0).permutation(len(videos))[of_row]
    order = np.argsort(place, kind="stable")
    return rows[order], place[order]


def _open(source: Source, run: Run, study: Study) -> Index:
    """Return the index of a source, with the numbers of frames that the run reads of its samples."""
    index = load_index(Path(study.results) / "index" / f"{source.name}.npz")
    if index.kind != source.kind:
        raise UserError(
            f"source {source.name!r}: its index has kind {index.kind}, config/sources.yaml has {source.kind}; make the "
            f"index again with `fvlm index {source.name}`"
        )
    check_tokenizer(index, Path(study.results) / "tokenizer")
    return replace(index, frames=np.minimum(index.frames, run.data.max_frames))


class Steps:
    """The steps of an order; item i is the list of micro-batches of step i.

    loss            the scored text tokens, as in `data.loss`. With "preference" a sample of the order becomes two
                    neighbours in its batch, the chosen answer before the rejected one, with the same frames
    rank, ranks     this process loads the share of data-parallel rank `rank` of `ranks`
    raises          ValueError if the loss needs pairs, but the order was drawn without them
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
        self.max_tokens, self.max_frames = run.data.max_text_tokens, run.data.max_frames
        self.results = Path(study.results)
        self.visual_tokens = run.model.visual_tokens
        self.most_positions, self.most_tokens = run.operation.micro_frames, run.operation.micro_tokens
        self.tokenizer = load_tokenizer(self.results / "tokenizer")

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, step: int) -> list[Batch]:
        return [self.batch(group) for group in self.groups_by_rank(step)[self.rank]]

    def batch(self, places: list[int]) -> Batch:
        """Return the samples at these places of the order as one batch; frames are decoded to their place in it."""
        counts = [self._frames(i) for i in places]
        # From NumPy, which uses huge pages; with torch.empty a third of the time would be page faults.
        frames = np.empty((sum(counts), IMAGE, IMAGE, 3), np.uint8)
        parts = np.split(frames, np.cumsum(counts)[:-1])
        samples = [sample for i, part in zip(places, parts, strict=True) for sample in self.samples(i, part)]
        return pack(samples, frames)

    def _frames(self, i: int) -> int:
        """Number of distinct frames of sample i; 0 if the model has no visual tokens."""
        source, row = int(self.order.source[i]), int(self.order.row[i])
        return int(self.corpus.indices[source].frames[row]) if self.order.positions[i] else 0

    def groups_by_rank(self, step: int) -> list[list[list[int]]]:
        """For each rank the places in the order of the samples of its micro-batches; a rank may have none."""
        low = step * self.batch_size
        samples = self.order.at(slice(low, low + self.batch_size))
        result = []
        for share in rank_shares(samples.positions, samples.text_tokens, self.ranks):
            places = np.array(share, np.int64)
            lengths = samples.at(places)
            groups = micro_batches(lengths.positions, lengths.text_tokens, self.most_positions, self.most_tokens)
            result.append([(low + places[group]).tolist() for group in groups])
        return result

    def samples(self, i: int, out: np.ndarray) -> list[dict]:
        """Return sample i of the order, or the two halves of a pair, in the form of `pack`.

        out     (T, 224, 224, 3) uint8, receives the distinct frames; T = 0: they are not decoded
        """
        place, row = int(self.order.source[i]), int(self.order.row[i])
        index, name = self.corpus.indices[place], self.corpus.names[place]
        key, members = str(index.keys[row]), index.read(row, self.results)
        where = f"{index.file_of(row, self.results)}: sample {key!r}"
        count = min(len(image_suffixes(members)), self.max_frames)
        if count != index.frames[row]:
            raise UserError(
                f"{where} has {count} images, expected {index.frames[row]} as in its index; delete the index of source "
                f"{name!r}, and Snakemake makes it again"
            )
        try:
            frames = decode_frames(members, out) if len(out) else out
        except ValueError as error:
            raise UserError(f"{where}: a frame cannot be decoded ({error}); make the shard again") from error
        texts = [sample_text(members, self.corpus.prompts[place])]
        if self.loss == "preference":
            texts.append(rejected_text(texts[0]))
        if texts[-1] is None:
            raise UserError(
                f"{where} has no rejected answer, but its index has one; delete the index of source {name!r}, and "
                "Snakemake makes it again"
            )
        about = {"positions": int(self.order.positions[i]) // len(texts), "key": key, "source": name}
        first = bool(self.order.question_first[i])
        # None: the second half of a pair has the frames of the first half
        return [
            about | {"frames": None if half else frames} | self._encoded(text, first) for half, text in enumerate(texts)
        ]

    def _encoded(self, text: dict, question_first: bool) -> dict:
        """Ids and loss mask of a text, and the number of its tokens before the frames."""
        ids, answer = encode_chat(self.tokenizer, text, self.max_tokens)
        question = question_length(self.tokenizer, ids, answer) if question_first else 0
        mask = np.ones(len(ids), dtype=bool) if self.loss == "all" else answer.copy()
        mask[0] = False  # in a text-only sample nothing precedes the first token, so it is never scored
        return {"ids": ids, "mask": mask, "question": question}


def pack(samples: list[dict], frames: np.ndarray | None = None) -> Batch:
    """Return one batch of samples, end to end, without padding. A still image's frame is repeated by its index.

    samples     dicts of frames (T, 224, 224, 3) uint8, or None for those of the sample before; positions; ids and mask
                (S,); key; source; and question, the number of ids before the frames (default 0)
    frames      (U, 224, 224, 3), the samples' frames if they are end to end already; None: they are copied
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
    """Steps `first`, `first` + 1, ... in order.

    workers     number of threads that read ahead. They release Python's lock while they read, decode and tokenize;
                processes would need as much time again to hand over their batches. 0: no reading ahead
    pin         True: in pinned memory, from which copies to a GPU are asynchronous
    """

    def read(step: int) -> list[Batch]:
        return [batch.pin_memory() for batch in steps[step]] if pin else steps[step]

    remaining = range(first, len(steps))
    if not workers:
        yield from map(read, remaining)
        return
    ahead: deque[Future[list[Batch]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for step in remaining:
            ahead.append(pool.submit(read, step))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def validation_steps(run: Run, study: Study, batch_size: int = 8, **share) -> Steps | None:
    """Return the run's validation samples as steps, or None if its sources hold out too few.

    share   rank and ranks, as in `Steps`
    """
    corpus = open_held_out(run, study, "validation", run.train.validation_samples)
    if not sum(len(rows) for rows in corpus.rows):
        return None
    return steps_in_file_order(corpus, run, study, run.data.loss, batch_size, run.data.question_first, **share)


def steps_in_file_order(
    corpus: Corpus, run: Run, study: Study, loss: str, batch_size: int, question_first: float, **share
) -> Steps:
    """Return the rows of a corpus as steps, source after source; arguments as in `Steps` and `draw_order`."""
    order = in_file_order(
        corpus.indices,
        corpus.rows,
        run.data.static_frames,
        run.data.max_text_tokens,
        question_first=question_first,
        frames_seen=run.model.visual_tokens > 0,
        pairs=loss == "preference",
    )
    return Steps(corpus, order, run, study, loss, batch_size, **share)
