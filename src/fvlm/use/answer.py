"""Answers of a finished run about a video, an image or a stream, shown as the run's samples were."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from fvlm.batch import Batch
from fvlm.data.batches.loader import pack
from fvlm.data.shards.text import END, START, encode_prompt, load_tokenizer
from fvlm.device import autocast, precision_on
from fvlm.errors import UserError, first_line
from fvlm.evaluate.frames import Frames
from fvlm.evaluate.load import load_run
from fvlm.evaluate.read import SOURCES, files_of, read_run, shown_like
from fvlm.model.encoder import FrameStates
from fvlm.model.generate import Choose, Reading, most_likely, sampled, written

# At the end of a text: bytes of a character whose last byte is not there yet, and white space.
UNFINISHED = re.compile(r"[\s\ufffd]*\Z")


class Answers:
    """A finished run that answers.

    folder          results/runs/NAME, or of `fvlm export`
    mode            of evaluation; None: the run's inference mode, autoregressive if it has that
    tokens          longest answer
    temperature     0: each token is the most likely one; above: it is drawn from softmax(logits / temperature)
    seed            of the draws; the same question gets the same answer

    Attributes for benchmarks, which any other class with these and with `crop` and `video` can answer:

    name            in tables
    modes           of evaluation; the first is the one of inference
    sees            False: a model without frames
    max_frames      most frames of a video
    static_frames   visual positions of an image
    both_orders     True: trained with the question before the frames and behind them
    weights         files that the answers depend on
    settings        what else of the model they depend on
    """

    def __init__(self, folder: Path, mode: str | None, tokens: int, temperature: float = 0.0, seed: int = 0):
        self.run, self.model, self.device = load_run(folder)
        files, variant = files_of(folder), self.run.model.variant
        self.tokenizer = load_tokenizer(files.tokenizer)
        self.mode, self.tokens = mode or variant.inference_mode, tokens
        self.end = self.tokenizer.token_to_id(END)
        self.temperature, self.seed = temperature, seed
        self.name, self.sees = self.run.name, variant.sees
        self.modes = sorted(variant.modes, key=lambda mode: mode != variant.inference_mode)
        self.max_frames, self.static_frames = self.run.data.max_frames, self.run.data.static_frames
        share = self.run.data.question_first
        self.question_first, self.both_orders = share > 0.5, 0 < share < 1  # the first as in most training samples
        self.weights = [files.configuration, files.weights]
        self.settings = (self.device.type, precision_on(self.run, self.device))
        self._sources = read_run(folder)[1][SOURCES]

    def crop(self, kind: str, default: bool) -> bool:
        """Return whether the run's samples of a kind (video or image) showed the centre of each frame."""
        return shown_like(self._sources, kind, self.name).get("crop", default)

    def choose(self) -> Choose:
        """Return the function that chooses the tokens of one answer."""
        return sampled(self.temperature, self.seed) if self.temperature else most_likely

    def prompt(
        self,
        question: str,
        earlier: Iterable[tuple[str, str]] = (),
        start: str = "",
        question_first: bool | None = None,
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt before the frames and behind them.

        earlier         questions and answers of the conversation before it
        start           beginning of the answer
        question_first  whether the first question stands before the frames; None: as in most training samples
        raises   UserError if the question is too long for a tokenizer, or has characters that are no text
        """
        try:
            ids = np.concatenate([encode_prompt(self.tokenizer, question, earlier), self.encoded(start)])
        except (ValueError, TypeError) as error:
            raise UserError(f"a question cannot be read ({first_line(error)}); shorten it, in UTF-8") from error
        if not (self.question_first if question_first is None else question_first):
            return [], ids.tolist()
        starts = np.flatnonzero(ids == self.tokenizer.token_to_id(START))  # of system, user, assistant, ...
        return ids[: starts[2]].tolist(), ids[starts[2] :].tolist()

    def encoded(self, text: str) -> np.ndarray:
        """Return the tokens (S,) int32 of a part of an answer."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def video(self, frames: Frames) -> "Video":
        """Return a video or an image to ask about."""
        video = self.stream()
        video.show(frames.frames, frames.positions)
        return video

    def stream(self) -> "Video":
        """Return a video without frames, to which some will be shown."""
        return Video(self)


class Video:
    """A video to ask about. Each frame is encoded once, and read once as long as nothing before it changes.

    The cache of the language model holds at most as many frames as the run was trained with, `data.max_frames`. If one
    more comes, the model forgets the older half, and reads the newer half as if the video began there.

    mode            of evaluation; None: that of `answers`
    question_first  whether the first question stands before the frames; None: as in `answers`
    count           frames that were shown so far
    """

    def __init__(self, answers: Answers, mode: str | None = None, question_first: bool | None = None):
        self.answers, self.mode, self.count = answers, mode or answers.mode, 0
        self.question_first = answers.question_first if question_first is None else question_first
        self.states: list[FrameStates] = []  # of the frames that are kept, in the order of showing
        self.reading: Reading | None = None
        self.before: list[int] = []  # the text before the frames in `reading`
        self.parts_read = 0  # entries of `states` that `reading` holds

    @property
    def kept(self) -> int:
        """Number of frames that the answer depends on."""
        return sum(len((part.keys or [part.features])[0]) for part in self.states)

    @torch.no_grad()
    def show(self, frames: np.ndarray, positions: int | None = None) -> None:
        """Take further frames (T, 224, 224, 3) uint8; an image fills `positions` visual positions."""
        answers, model = self.answers, self.answers.model
        self.count += len(frames)
        if not answers.sees or not len(frames):
            return
        with autocast(answers.run, answers.device):
            states = model.encode(torch.from_numpy(frames).to(answers.device))
        if positions and positions != len(frames):
            states = states.select(torch.arange(positions, device=answers.device) % len(frames))
        self.states.append(states)
        reads = self.reading is not None or not self.question_first  # else it waits for the question
        if self.kept > answers.max_frames and len(self.states) > 1:
            while self.kept > answers.max_frames // 2 and len(self.states) > 1:
                self.states.pop(0)
            self.reading = None
        if reads:
            self._read(self.before)

    def seen_in(self, mode: str, order: Sequence[int] | None = None, question_first: bool | None = None) -> "Video":
        """Return the same video for another mode, perhaps with its frames in another order; none is encoded again."""
        video = Video(self.answers, mode, question_first)
        order = None if order is None else torch.tensor(order, device=self.answers.device)
        video.states = [states if order is None else states.select(order) for states in self.states]
        video.count = self.count
        return video

    def ask(self, question: str, earlier: Iterable[tuple[str, str]] = (), start: str = "") -> Iterator[str]:
        """Yield the answer in pieces of whole characters, as they are generated; arguments as in `Answers.prompt`.

        raises      UserError if the prompt is longer than the language model's positions
        """
        self._read_prompt(question, earlier, start)
        return pieces(self._tokens(), self.answers.tokenizer.decode)

    @torch.no_grad()
    def losses(self, question: str, answers: Iterable[str], start: str = "") -> list[list[float]]:
        """Return the loss in nats of each token of some given answers; the last token is the one that ends an answer.

        answers     texts that are not empty
        start       beginning of each answer, which is not scored
        """
        self._read_prompt(question, (), start)
        reading, llm, result = self.reading, self.answers.model.llm, []
        behind_prompt = reading.length
        for answer in answers:
            ids = torch.tensor([*self.answers.encoded(answer), self.answers.end], device=self.answers.device)
            with self._context():
                hidden_SE = llm.run_next(llm.embed(ids[:-1])[None], behind_prompt, reading.cache)[0]
                logits_SV = llm.logits(torch.cat([reading.hidden_E[None], hidden_SE]))
            reading.cache.cut(behind_prompt)
            result.append(F.cross_entropy(logits_SV.float(), ids, reduction="none").tolist())
        return result

    def fits(self, question: str, earlier: Iterable[tuple[str, str]]) -> bool:
        """Whether a prompt and its longest answer fit into the language model's positions."""
        config = self.answers.run.model
        text = sum(map(len, self.answers.prompt(question, earlier, "", self.question_first)))
        return text + self.kept * config.visual_tokens + self.answers.tokens <= config.language.max_positions

    def _tokens(self) -> Iterator[int]:
        answers = self.answers
        tokens = written(self.reading, answers.end, answers.tokens, answers.choose())
        while True:
            with self._context():
                token = next(tokens, None)
            if token is None:
                return
            yield token

    def _read_prompt(self, question: str, earlier: Iterable[tuple[str, str]], start: str) -> None:
        before, behind = self.answers.prompt(question, earlier, start, self.question_first)
        self._read(before)
        with self._context():
            self.reading.read_text(behind)

    def _context(self):
        return autocast(self.answers.run, self.answers.device)

    def _read(self, before: list[int]) -> None:
        """Bring `reading` up to date: this text, then all frames."""
        reading, unread = self.reading, self.states[self.parts_read :]
        self.reading = None  # Ctrl-C leaves nothing half read
        with self._context():
            if reading is None or self.before != before or (unread and self.mode == "coarse_fine"):
                text = torch.tensor(before, device=self.answers.device)
                reading, unread = Reading(self.answers.model, self.mode, text), self.states
            if unread and self.mode == "coarse_fine":
                reading.take_frames(self._two_passes(before))
            else:
                for states in unread:
                    reading.read_frames(states)
        self.reading, self.before, self.parts_read = reading, before, len(self.states)

    @torch.no_grad()
    def _two_passes(self, before: list[int]) -> torch.Tensor:
        """Return the visual tokens (P, E) of all frames in mode coarse_fine, which needs them at once."""
        (states,), model = self.states, self.answers.model
        encoded = np.zeros((self.kept, 0, 0, 3), np.uint8)  # their pixels are not needed any more
        batch = prompt_batch(encoded, self.kept, before, len(before)).to(self.answers.device)
        text_SE = model.llm.embed(batch.token_ids)
        return model.visual_tokens(batch, text_SE, model.plan(batch), self.mode, states=states)[0]


def pieces(tokens: Iterable[int], decode) -> Iterator[str]:
    """Yield the text of some tokens piece by piece, without the white space around it.

    A piece holds whole characters, although the bytes of one may be split over tokens. Control characters, which could
    command a terminal, become blanks.

    decode      from a list of tokens to their text
    """
    ids, shown, text = [], 0, ""
    for token in tokens:
        ids.append(token)
        text = decode(ids).lstrip()
        ready = UNFINISHED.search(text).start()
        if ready > shown:
            yield _printable(text[shown:ready])
            shown = ready
    if rest := text.rstrip()[shown:]:
        yield _printable(rest)


def _printable(text: str) -> str:
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else " " for c in text)


def prompt_batch(frames: np.ndarray, positions: int, ids: list[int], question: int) -> Batch:
    """Return a batch of one sample: distinct frames at so many positions, and a prompt.

    ids         tokens of the prompt, of which the first `question` stand before the frames
    """
    sample = {"frames": frames, "positions": positions, "ids": np.array(ids), "mask": np.zeros(len(ids), dtype=bool)}
    return pack([{**sample, "question": question, "key": "yours", "source": "yours"}])
