"""Text generation behind a prompt and a video, in either order, with the language model's cache."""

from collections.abc import Callable, Iterator
from itertools import takewhile

import torch

from fvlm.errors import UserError
from fvlm.model.encoder import FrameStates, Visits
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.language import Cache

Choose = Callable[[torch.Tensor], int]  # from logits (V,) to a token


def most_likely(logits_V: torch.Tensor) -> int:
    return int(logits_V.argmax())


def sampled(temperature: float, seed: int) -> Choose:
    """Return a function that draws each token from softmax(logits / temperature); equal seeds draw equal tokens."""
    draw = torch.Generator().manual_seed(seed)

    def choose(logits_V: torch.Tensor) -> int:
        logits_V = logits_V.double().cpu()
        shares = ((logits_V - logits_V.max()) / temperature).softmax(-1)  # at most 0, so that no quotient is infinite
        return int(torch.multinomial(shares, 1, generator=draw))

    return choose


def check_length(tokens: int, model: VideoLanguageModel) -> None:
    """Raise UserError if frames and text have more tokens than the language model has positions."""
    most = model.config.language.max_positions
    if tokens > most:
        raise UserError(
            f"frames and text have {tokens:,} tokens; the language model has {most:,} positions: shorten the question"
        )


class Reading:
    """One sequence in the language model's cache: perhaps a question, frames, then text that can be taken back.

    A frame that comes later is read as if the text behind the earlier frames was not there.

    mode         one of the model's modes
    question_S   text tokens before the frames; None: the frames come first
    """

    def __init__(self, model: VideoLanguageModel, mode: str, question_S: torch.Tensor | None = None):
        self.model, self.mode, self.cache = model, model.check_mode(mode), Cache()
        self.text: list[int] = []  # tokens behind the frames that are in the cache
        self.waiting: int | None = None  # the last token that was generated, which is not in the cache
        self.hidden_E: torch.Tensor | None = None  # of the last token in the cache
        if question_S is not None and len(question_S):
            self._append(model.llm.embed(question_S))
        self.behind_frames, self.hidden_of_frames_E = self.cache.length, self.hidden_E

    @property
    def length(self) -> int:
        """Tokens in the cache, of frames and text."""
        return self.cache.length

    @torch.no_grad()
    def read_frames(self, states: FrameStates) -> None:
        """Read further frames in mode autoregressive, coarse_only or direct.

        states    of the frames, from `VideoLanguageModel.encode`
        """
        connector, each_frame = self.model.connector, Visits(None, 1)
        if self.mode == "direct":
            self.take_frames(connector.project(states.features).flatten(0, 1))
            return
        count = len(states.keys[0])
        if self.mode == "coarse_only":
            query_UQ = connector.q_static.expand(count, -1)
            self.take_frames(self.model.read(query_UQ, states, each_frame, with_attention=False)[0])
            return
        self._return_to_frames()
        for number in range(count):
            one = states.select(slice(number, number + 1))
            self.take_frames(self.model.read(self.query()[None], one, each_frame, with_attention=False)[0])

    def query(self) -> torch.Tensor:
        """The query (Q,) of the next frame: from the token before it, or the initial one."""
        connector = self.model.connector
        return connector.q_init if self.hidden_E is None else connector.llm_to_query(self.hidden_E)

    @torch.no_grad()
    def take_frames(self, visual_PE: torch.Tensor) -> None:
        """Append visual tokens that were read already."""
        self._return_to_frames()
        self._append(visual_PE)
        self.behind_frames, self.hidden_of_frames_E = self.cache.length, self.hidden_E

    @torch.no_grad()
    def read_text(self, ids: list[int]) -> None:
        """Make `ids` the text behind the frames. Tokens at its start that the cache holds already are not read again.

        raises   UserError if frames and text have more tokens than the language model has positions
        """
        # the last token is read in any case: its hidden state gives the first token of the answer
        shared = len([*takewhile(lambda pair: pair[0] == pair[1], zip(self.text, ids[:-1], strict=False))])
        self.cache.cut(self.behind_frames + shared)
        self.text, self.waiting, self.hidden_E = self.text[:shared], None, self.hidden_of_frames_E
        if ids:
            self._append(self.model.llm.embed(torch.tensor(ids[shared:], device=self._device)))
        self.text = list(ids)

    @torch.no_grad()
    def next_token(self, choose: Choose = most_likely) -> int | None:
        """Return the next token of the text, None if the language model has no position left."""
        if self.waiting is not None:
            if self.length == self.model.config.language.max_positions:
                return None
            self._append(self.model.llm.embed(torch.tensor([self.waiting], device=self._device)))
            self.text.append(self.waiting)
        self.waiting = choose(self.model.llm.logits(self.hidden_E))
        return self.waiting

    @property
    def _device(self) -> torch.device:
        return self.model.llm.llama.norm.weight.device

    def _append(self, tokens_SE: torch.Tensor) -> None:
        check_length(self.length + len(tokens_SE), self.model)
        embedded = tokens_SE.to(self.model.llm.llama.embed_tokens.weight.dtype)[None]
        self.hidden_E = self.model.llm.run_next(embedded, self.length, self.cache)[0, -1]

    def _return_to_frames(self) -> None:
        self.cache.cut(self.behind_frames)
        self.text, self.waiting, self.hidden_E = [], None, self.hidden_of_frames_E


def written(reading: Reading, end_id: int | None, most: int, choose: Choose = most_likely) -> Iterator[int]:
    """Yield the tokens of an answer to what was read: at most `most`, and without the one that ends it."""
    for _ in range(most):
        token = reading.next_token(choose)
        if token is None or token == end_id:
            return
        yield token
