"""A training step on random samples of given lengths, with the real model, objective and optimizer."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fvlm.batch import Batch
from fvlm.config.schema import Run, Study
from fvlm.costs.amounts import mean_lengths, streams
from fvlm.costs.flops import training_flops
from fvlm.data.batches.dealing import micro_batches
from fvlm.data.batches.loader import pack
from fvlm.data.batches.order import interleave
from fvlm.device import autocast
from fvlm.model.build import build_model
from fvlm.model.foveated import VideoLanguageModel
from fvlm.train.objective import TextObjective
from fvlm.train.optim import make_optimizer, rates_at, set_rates


@dataclass(frozen=True)
class Lengths:
    """Lengths of a sample: visual positions, distinct frames and text tokens; and the source that it represents."""

    shown: int
    frames: int
    tokens: int
    source: str


def expected(run: Run, study: Study, count: int, seed: int = 0) -> list[Lengths]:
    """Return `count` samples in the run's mixture, with lengths of 0.5 to 1.5 times their sources' declared means."""
    parts, random = streams(run, study), np.random.default_rng(seed)
    turns = interleave([part.share for part in parts], [count] * len(parts))[:count]
    samples = []
    for turn in turns:
        shown, frames, tokens = mean_lengths(parts[turn], run, study)
        scatter = random.uniform(0.5, 1.5, 2)
        moving = parts[turn].kind == "video"
        frames = int(np.clip(round(frames * scatter[0]), 1, run.data.max_frames)) if moving else round(frames)
        shown = frames if moving else round(shown) * (frames > 0)
        tokens = int(np.clip(round(tokens * scatter[1]), 8, run.data.max_text_tokens))
        samples.append(Lengths(shown, frames, tokens, parts[turn].sources[0].name))
    return samples


def worst(run: Run, study: Study) -> list[Lengths]:
    """Return the samples of the largest micro-batch, for which the memory is predicted (largest_load in costs/memory).

    It has as many of the longest videos with the longest texts as its limits allow, then as many texts alone. A pair of
    answers counts as two samples.
    """
    operation, text, source = run.operation, run.data.max_text_tokens, run.data.sources[0]
    halves = 2 if run.data.loss == "preference" else 1
    of_rank = halves * -(-run.optim.batch_size // operation.total_ranks)
    count = max(halves, min(of_rank, operation.micro_tokens // text))
    longest = max(run.data.max_frames, run.data.static_frames)
    videos = max(halves, min(count, operation.micro_frames // longest))
    return [Lengths(longest, longest, text, source)] * videos + [Lengths(0, 0, text, source)] * (count - videos)


def batch_of(samples: list[Lengths], run: Run, seed: int = 0) -> Batch:
    """Return a batch of random frames and tokens. The loss is on the second half of each text, or on all of it."""
    random, side = np.random.default_rng(seed), run.model.encoder.image
    seeing = run.model.visual_tokens > 0
    content = []
    for number, sample in enumerate(samples):
        mask = np.arange(sample.tokens) >= (0 if run.data.loss == "all" else sample.tokens // 2)
        frames = sample.frames if seeing else 0
        content.append({
            "frames": random.integers(0, 256, (frames, side, side, 3), np.uint8), "key": f"random-{number}",
            "positions": sample.shown if seeing else 0, "source": sample.source, "mask": mask,
            "ids": random.integers(0, run.model.language.vocabulary, sample.tokens),
            "question": 0,
        })  # fmt: skip
    return pack(content)


def step_of(samples: list[Lengths], run: Run, seed: int = 0) -> list[Batch]:
    """Return the micro-batches of one step."""
    seeing = run.model.visual_tokens > 0
    shown = np.array([sample.shown * seeing for sample in samples])
    tokens = np.array([sample.tokens for sample in samples])
    groups = micro_batches(shown, tokens, run.operation.micro_frames, run.operation.micro_tokens)
    return [batch_of([samples[i] for i in group], run, seed) for group in groups]


def flops_of(samples: list[Lengths], run: Run) -> float:
    """Return the training FLOPs of some samples, counted as in `fvlm train`."""
    shown, frames, tokens = (np.array([getattr(s, name) for s in samples]) for name in ("shown", "frames", "tokens"))
    scored = tokens - 1 if run.data.loss == "all" else tokens - tokens // 2
    return float(np.sum(training_flops(run.model, run.optim.freeze, shown, tokens, scored, frames)))


class Trial:
    """Training of a run's model from random weights. Preference runs train on plain texts: pairs need a reference."""

    def __init__(self, run: Run, device: torch.device):
        self.run, self.device = run, device
        model = build_model(run.model, run.train.seed, pretrained=False)
        model.freeze(run.optim.freeze)
        model.recompute_layers(run.operation.recompute)
        self.model: VideoLanguageModel = model.to(device)
        self.objective = TextObjective(run, self.model)
        self.optimizer = make_optimizer(self.model.parameter_groups(), run.optim)
        set_rates(self.optimizer, rates_at(run.optim, 0, 100))
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, batches: list[Batch]) -> tuple[float, float]:
        """Do one update; return its seconds and the mean loss in nats."""
        self._wait()
        started = time.perf_counter()
        units, total = sum(self.objective.units(batch) for batch in batches), 0.0
        for batch in batches:
            with autocast(self.run, self.device):
                terms = self.objective(batch.to(self.device))
            if terms.objective.requires_grad:
                (terms.objective / units).backward()
            total = total + terms.objective.detach()
        nn.utils.clip_grad_norm_(self.trained, self.run.optim.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = float(total) / units
        self._wait()
        return time.perf_counter() - started, loss

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
