"""A finished run that answers: the losses of given answers, and generated ones."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.data.batches.loader import pack
from fvlm.data.shards.text import END, START, encode_chat, encode_prompt, load_tokenizer, question_length
from fvlm.device import autocast, precision_on
from fvlm.evaluate.benchmarks.shown import Shown
from fvlm.evaluate.load import load_run
from fvlm.evaluate.read import SOURCES, read_run
from fvlm.model.generate import generate

TOKENS = 16_384  # visual and text tokens of one forward pass


@dataclass(frozen=True)
class Sample:
    """A prompt with one given answer, behind frames."""

    shown: Shown
    prompt: str
    answer: str


class FinishedRun:
    """A finished run. Any model with these attributes and methods can answer benchmarks.

    name            in tables
    modes           of evaluation; the first of them is the one of inference, which answers and controls are in
    sees            False: a model without frames, which has no controls
    weights         files that the answers depend on
    computed        further settings that they depend on
    """

    def __init__(self, folder: Path, tokenizer: Path | None = None):
        """folder: results/runs/NAME; tokenizer: its folder, by default that of the same results"""
        self.run, self.model, self.device = load_run(folder)
        self.tokenizer = load_tokenizer(tokenizer or folder.parent.parent / "tokenizer")
        self.name, variant = self.run.name, self.run.model.variant
        self.modes = sorted(variant.modes, key=lambda mode: mode != variant.inference_mode)
        self.sees = variant.sees
        self.weights = [folder / "model/run.json", folder / "model/best.safetensors"]
        self.computed = (self.device.type, precision_on(self.run, self.device), TOKENS)
        self.max_frames, self.static_frames = self.run.data.max_frames, self.run.data.static_frames
        self._encoded = lru_cache(maxsize=256)(self._encode)  # modes and controls have the same texts
        self._sources = read_run(folder)[1][SOURCES]

    def crop(self, kind: str, default: bool) -> bool:
        """Return whether the run's samples of a kind (video or image) showed the centre of each frame."""
        alike = [source["crop"] for source in self._sources.values() if source["kind"] == kind]
        return alike[0] if alike else default

    @torch.no_grad()
    def losses(self, samples: list[Sample], mode: str) -> list[list[float]]:
        """Return the loss of each answer's tokens in nats, of each sample; the last token is the one that ends it."""
        result: list[list[float]] = []
        for part in self._passes(samples):
            with autocast(self.run, self.device):
                output = self.model(self._batch(part).to(self.device), mode)
            result += [one.tolist() for one in output.nats_X.cpu().split(output.count_B.tolist())]
        return result

    @torch.no_grad()
    def generated(self, shown: Shown, prompt: str, tokens: int) -> str:
        """Return the generated answer, of at most so many tokens, in the mode of inference."""
        ids = encode_prompt(self.tokenizer, prompt)
        start = self.tokenizer.token_to_id(START)
        first = int(np.flatnonzero(ids == start)[-1]) if self._question_first else 0
        sample = self._about(shown) | {"ids": ids, "mask": np.zeros(len(ids), bool), "question": first}
        batch = _in_order([shown], pack([sample]))
        with autocast(self.run, self.device):
            end = self.tokenizer.token_to_id(END)
            answer = generate(self.model, batch.to(self.device), end, tokens, self.modes[0])
        return self.tokenizer.decode(answer).strip()

    @property
    def _question_first(self) -> bool:
        return self.run.data.question_first > 0.5  # as in most of its training samples

    def _passes(self, samples: list[Sample]) -> list[list[Sample]]:
        """Return samples by forward pass; neighbours share a pass, and with it the encoded frames."""
        passes, size = [], TOKENS
        for sample in samples:
            own = sample.shown.positions * self.run.model.visual_tokens + len(sample.prompt) // 2
            if size + own > TOKENS:
                passes.append([])
                size = 0
            passes[-1].append(sample)
            size += own
        return passes

    def _batch(self, samples: list[Sample]) -> Batch:
        encoded, before = [], None
        for sample in samples:
            about = self._about(sample.shown) | self._encoded(sample.prompt, sample.answer)
            if sample.shown.frames is before:
                about["frames"] = None  # those of the sample before
            encoded.append(about)
            before = sample.shown.frames
        return _in_order([sample.shown for sample in samples], pack(encoded))

    def _encode(self, prompt: str, answer: str) -> dict:
        ids, mask = encode_chat(self.tokenizer, {"user": prompt, "assistant": answer})
        first = question_length(self.tokenizer, ids, mask) if self._question_first else 0
        return {"ids": ids, "mask": mask, "question": first}

    def _about(self, shown: Shown) -> dict:
        return {"frames": shown.frames, "positions": shown.positions, "key": self.name, "source": "benchmark"}


def _in_order(shown: list[Shown], batch: Batch) -> Batch:
    """Return the batch with shuffled positions where a sample's frames are shown in another order."""
    pieces = list(batch.frame_index.split(batch.frame_counts.tolist()))
    for i, one in enumerate(shown):
        if one.order is not None:
            pieces[i] = pieces[i][list(one.order)]
    return replace(batch, frame_index=torch.cat(pieces))
