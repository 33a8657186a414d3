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

    values   (validating, source, key) of a pair -> [chosen, rejected]
    """

    def __init__(self, values: dict[tuple[bool, str, str], list[float]]):
        self.values = values

    def of(self, batch: Batch, validating: bool = False) -> torch.Tensor:
        """Return (B,) float32 in host memory, in the order of the samples: chosen, rejected, chosen, ..."""
        pairs = zip(batch.sources[::2], batch.keys[::2], strict=True)
        return torch.tensor([value for source, key in pairs for value in self.values[validating, source, key]])


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
    model, ranks = parallel.model, parallel.ranks
    cache = Cache(path, identity)
    if ranks.first:
        cache.read()
    cache.steps, cache.rows = ranks.gather((cache.steps, cache.rows))[0]
    total, first = sum(map(len, step_sets)), cache.steps
    training, started = model.training, time.monotonic()
    saved = started
    model.eval()
    before = 0  # steps of the sets already scored
    for validating, steps in enumerate(step_sets):
        skip = min(len(steps), max(0, cache.steps - before))
        for batches in parallel.in_step(load_steps(steps, skip, workers, device.type == "cuda")):
            for rows in ranks.gather(_score(model, batches, bool(validating), device, context)):
                cache.rows += rows
            cache.steps += 1
            if ranks.first and (time.monotonic() - saved > SAVE_SECONDS or cache.steps == total):
                cache.save()
                saved = time.monotonic()
                left = clock((saved - started) / (cache.steps - first) * (total - cache.steps))
                line = f"reference: {len(cache.rows):,} pairs, step {cache.steps:,}/{total:,}  {left} left"
                print(line, file=sys.stderr, flush=True)
        before += len(steps)
    model.train(training)
    return Reference({(validating, source, key): [*scores] for validating, source, key, *scores in cache.rows})


def _score(model, batches: list[Batch], validating: bool, device, context) -> list[tuple]:
    sums = [torch.zeros(0, device=device)]
    for batch in batches:
        with context:
            sums.append(-model(batch.to(device), model.config.training_mode).loss_sum_B.float())
    chosen, rejected = torch.cat(sums).unflatten(0, (-1, 2)).unbind(1)
    names = [name for batch in batches for name in zip(batch.sources[::2], batch.keys[::2], strict=True)]
    return [(validating, *name, *pair) for name, *pair in zip(names, chosen.tolist(), rejected.tolist(), strict=True)]


class Cache:
    """The pairs scored so far, in the order of the steps.

    steps   finished steps of all sets
    rows    (validating, source, key, chosen, rejected) of each pair
    """

    def __init__(self, path: Path, identity: str):
        self.path, self.identity = path, identity
        self.steps, self.rows = 0, []

    def read(self) -> None:
        """Read the file, if it exists, has this identity and is whole."""
        try:
            with open_arrays(self.path) as content:
                if str(content["identity"]) == self.identity:
                    names = ("validating", "sources", "keys", "chosen", "rejected")
                    self.rows = list(zip(*(content[name].tolist() for name in names), strict=True))
                    self.steps = int(content["steps"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{self.path}: unreadable, scoring with the parent again ({error})", file=sys.stderr, flush=True)

    def save(self) -> None:
        validating, sources, keys, chosen, rejected = map(np.array, zip(*self.rows, strict=True))
        scores = {"chosen": chosen.astype(np.float32), "rejected": rejected.astype(np.float32)}
        names = {"validating": validating, "sources": sources, "keys": keys}
        save_arrays(self.path, {"identity": self.identity, "steps": self.steps, **names, **scores})
