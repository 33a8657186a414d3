"""Answers of a finished run about a video, an image or a stream, shown as the run's samples were."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.data.batches.loader import pack
from fvlm.data.shards.text import END, START, encode_prompt, load_tokenizer
from fvlm.device import autocast
from fvlm.errors import UserError, first_line
from fvlm.evaluate.load import load_run
from fvlm.evaluate.read import files_of
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
    """

    def __init__(self, folder: Path, mode: str | None, tokens: int, temperature: float = 0.0, seed: int = 0):
        self.run, self.model, self.device = load_run(folder)
        self.tokenizer = load_tokenizer(files_of(folder).tokenizer)
        self.mode, self.tokens = mode or self.run.model.variant.inference_mode, tokens
        self.end = self.tokenizer.token_to_id(END)
        self.temperature, self.seed = temperature, seed

    def choose(self) -> Choose:
        """Return the function that chooses the tokens of one answer."""
        return sampled(self.temperature, self.seed) if self.temperature else most_likely

    def prompt(self, question: str, earlier: Iterable[tuple[str, str]] = ()) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt before the frames and behind them.

        The first question stands before the frames if it did so in most of the run's training samples.

        raises   UserError if the question is too long for a tokenizer, or has characters that are no text
        """
        try:
            ids = encode_prompt(self.tokenizer, question, earlier)
        except (ValueError, TypeError) as error:
            raise UserError(f"a question cannot be read ({first_line(error)}); shorten it, in UTF-8") from error
        if self.run.data.question_first <= 0.5:
            return [], ids.tolist()
        starts = np.flatnonzero(ids == self.tokenizer.token_to_id(START))  # of system, user, assistant, ...
        return ids[: starts[2]].tolist(), ids[starts[2] :].tolist()

    def video(self, frames: np.ndarray, positions: int | None = None) -> "Video":
        """Return a video to ask about; arguments as in `Video.show`."""
        video = Video(self)
        video.show(frames, positions)
        return video


class Video:
    """A video to ask about. Each frame is encoded once, and read once as long as nothing before it changes.

    The cache of the language model holds at most as many frames as the run was trained with, `data.max_frames`. If one
    more comes, the model forgets the older half, and reads the newer half as if the video began there.

    count   frames that were shown so far
    """

    def __init__(self, answers: Answers):
        self.answers, self.count = answers, 0
        self.max_frames = answers.run.data.max_frames
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
        if not answers.run.model.variant.sees:
            return
        with autocast(answers.run, answers.device):
            states = model.encode(torch.from_numpy(frames).to(answers.device))
        if positions and positions != len(frames):
            states = states.select(torch.arange(positions, device=answers.device) % len(frames))
        self.states.append(states)
        reads = self.reading is not None or answers.run.data.question_first <= 0.5  # else it waits for the question
        if self.kept > self.max_frames and len(self.states) > 1:
            while self.kept > self.max_frames // 2 and len(self.states) > 1:
                self.states.pop(0)
            self.reading = None
        if reads:
            self._read(self.before)

    def ask(self, question: str, earlier: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
        """Yield the answer in pieces of whole characters, as they are generated.

        earlier     questions and answers of the conversation before it
        raises      UserError if the prompt is longer than the language model's positions
        """
        before, behind = self.answers.prompt(question, earlier)
        self._read(before)
        with self._context():
            self.reading.read_text(behind)
        return pieces(self._tokens(), self.answers.tokenizer.decode)

    def fits(self, question: str, earlier: Iterable[tuple[str, str]]) -> bool:
        """Whether a prompt and its longest answer fit into the language model's positions."""
        config = self.answers.run.model
        text = sum(map(len, self.answers.prompt(question, earlier)))
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

    def _context(self):
        return autocast(self.answers.run, self.answers.device)

    def _read(self, before: list[int]) -> None:
        """Bring `reading` up to date: this text, then all frames."""
        reading, unread = self.reading, self.states[self.parts_read :]
        self.reading = None  # Ctrl-C leaves nothing half read
        with self._context():
            if reading is None or self.before != before or (unread and self.answers.mode == "coarse_fine"):
                text = torch.tensor(before, device=self.answers.device)
                reading, unread = Reading(self.answers.model, self.answers.mode, text), self.states
            if unread and self.answers.mode == "coarse_fine":
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
        return model.visual_tokens(batch, text_SE, model.plan(batch), "coarse_fine", states=states)[0]


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
