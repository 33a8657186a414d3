"""The reference of a preference loss: the log-probabilities of all answers under the parent's weights."""

import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.data.batches.loader import Steps, load_steps
from fvlm.data.shards.arrays import open_arrays, save_arrays
from fvlm.train.fsdp import DataParallel
from fvlm.train.progress import clock

SAVE_SECONDS = 60


class Reference:
    """Log-probability in nats, summed over its scored tokens, of each answer in training and validation.

    values   (validating, source, key) of a pair -> [chosen, rejected], in the order of the steps
    steps    finished steps of all sets
    """

    def __init__(self, values: dict[tuple[bool, str, str], list[float]] | None = None):
        self.values, self.steps = values or {}, 0

    def of(self, batch: Batch, validating: bool = False) -> torch.Tensor:
        """Return (B,) float32 in host memory, in the order of the samples: chosen, rejected, chosen, ..."""
        pairs = zip(batch.sources[::2], batch.keys[::2], strict=True)
        return torch.tensor([value for source, key in pairs for value in self.values[validating, source, key]])

    def read(self, path: Path, identity: str) -> None:
        """Read a cache, if it exists, has this identity and is whole."""
        try:
            with open_arrays(path) as content:
                if str(content["identity"]) == identity:
                    names, scores = ("validating", "sources", "keys"), ("chosen", "rejected")
                    pairs = zip(*(content[name].tolist() for name in names), strict=True)
                    values = zip(*(content[name].tolist() for name in scores), strict=True)
                    self.values = dict(zip(pairs, map(list, values), strict=True))
                    self.steps = int(content["steps"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{path}: unreadable, scoring with the parent again ({error})", file=sys.stderr, flush=True)

    def save(self, path: Path, identity: str) -> None:
        validating, sources, keys = map(np.array, zip(*self.values, strict=True))
        chosen, rejected = np.array([*self.values.values()], np.float32).T
        names = {"validating": validating, "sources": sources, "keys": keys}
        arrays = {"identity": identity, "steps": self.steps, **names, "chosen": chosen, "rejected": rejected}
        save_arrays(path, arrays)


@torch.no_grad()
def prepare_reference(
    parallel: DataParallel,
    step_sets: Sequence[Steps],
    path: Path,
    identity: str,
    device: torch.device,
    context,
    workers: int = 0,
) -> Reference:
    """Score every pair with the model, which must still have its parent's weights, or read the scores from `path`.

    step_sets   the training steps and, if anything is held out, the validation steps
    path        the cache, written every minute: a killed run resumes from it
    identity    of configuration, data, parent's weights and precision; a cache with another identity is not used
    context     the run's autocast, so that the scores are those that the training starts from
    workers     threads that read ahead
    """
    model, ranks, reference = parallel.model, parallel.ranks, Reference()
    if ranks.first:
        reference.read(path, identity)
    reference.steps, reference.values = ranks.gather((reference.steps, reference.values))[0]
    total, first = sum(map(len, step_sets)), reference.steps
    training, started = model.training, time.monotonic()
    saved = started
    model.eval()
    before = 0  # steps of the sets already scored
    for validating, steps in enumerate(step_sets):
        skip = min(len(steps), max(0, reference.steps - before))
        for batches in parallel.in_step(load_steps(steps, skip, workers, device.type == "cuda")):
            for values in ranks.gather(_score(model, batches, bool(validating), device, context)):
                reference.values |= values
            reference.steps += 1
            if ranks.first and (time.monotonic() - saved > SAVE_SECONDS or reference.steps == total):
                reference.save(path, identity)
                saved = time.monotonic()
                left = clock((saved - started) / (reference.steps - first) * (total - reference.steps))
                pairs = len(reference.values)
                line = f"reference: {pairs:,} pairs, step {reference.steps:,}/{total:,}  {left} left"
                print(line, file=sys.stderr, flush=True)
        before += len(steps)
    model.train(training)
    return reference


def _score(model, batches: list[Batch], validating: bool, device, context) -> dict[tuple, list[float]]:
    sums = [torch.zeros(0, device=device)]
    for batch in batches:
        with context:
            sums.append(-model(batch.to(device), model.config.training_mode).loss_sum_B.float())
    pairs = torch.cat(sums).unflatten(0, (-1, 2)).tolist()
    names = [name for batch in batches for name in zip(batch.sources[::2], batch.keys[::2], strict=True)]
    return {(validating, *name): pair for name, pair in zip(names, pairs, strict=True)}
