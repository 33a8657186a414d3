"""How likely the parent finds each answer: what a preference loss holds the trained model against, computed once."""

import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.data.batches.loader import Steps, load_steps
from fvlm.data.shards.arrays import open_arrays
from fvlm.files import write_beside
from fvlm.model.foveated import VideoLanguageModel
from fvlm.train.progress import clock
from fvlm.train.ranks import Ranks, told

SAVE_SECONDS = 60
ALONE = Ranks()


class Reference:
    """Log-probability in nats, summed over its scored tokens, of every sample that a run trains on or validates with.

    The cache on disk can be read back by steps: the samples of step after step of each set in turn, in float32.
    """

    def __init__(self, values: dict[tuple[bool, str, str], list[float]]):
        self.values = values

    def of(self, batch: Batch, validating: bool = False) -> torch.Tensor:
        """(B,) float32 in host memory, sample after sample: chosen, rejected, chosen, ..."""
        pairs = zip(batch.sources[::2], batch.keys[::2], strict=True)
        return torch.tensor([value for source, key in pairs for value in self.values[validating, source, key]])

    @classmethod
    def prepare(
        cls,
        model: VideoLanguageModel,
        step_sets: Sequence[Steps],
        path: Path,
        identity: str,
        device: torch.device,
        context,
        workers: int = 0,
        ranks: Ranks = ALONE,
    ) -> "Reference":
        """Ask the model, which must still have the parent's weights, about every pair, or read what `path` holds.

        step_sets   the training steps and, where anything is held out, the validation steps
        path        the cache, written every minute: a killed run goes on there
        identity    of configuration, data, parent's weights and precision; a cache of another one is thrown away
        context     the run's autocast, so that the values are those that the training starts from
        workers     threads that read ahead
        ranks       each asks about its share of the steps, and learns the others'; the first one writes
        """
        cache = _Cache(path, identity, reads=ranks.first)
        cache.steps, cache.rows = ranks.gather((cache.steps, cache.rows))[0]
        total = sum(len(steps) for steps in step_sets)
        if cache.steps < total:
            _fill(cache, model, step_sets, total, device, context, workers, ranks)
        return cls(cache.pairs())


class _Cache:
    """What is known so far: one row per pair, in the order in which the pairs were asked about."""

    def __init__(self, path: Path, identity: str, reads: bool = True):
        self.path, self.identity = path, identity
        self.steps, self.rows = 0, []  # rows: (validating, source, key, chosen, rejected)
        if reads:
            self._read()

    def _read(self) -> None:
        """What is on disk, if it is of this identity."""
        try:
            with open_arrays(self.path) as content:
                if str(content["identity"]) == self.identity:
                    columns = (
                        content[name].tolist() for name in ("validating", "sources", "keys", "chosen", "rejected")
                    )
                    self.rows = list(zip(*columns, strict=True))
                    self.steps = int(content["steps"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{self.path}: unreadable, asking the parent anew ({error})", file=sys.stderr, flush=True)

    def pairs(self) -> dict[tuple[bool, str, str], list[float]]:
        return {(validating, source, key): [*values] for validating, source, key, *values in self.rows}

    def save(self) -> None:
        validating, sources, keys, chosen, rejected = zip(*self.rows, strict=True)

        def write(beside: Path) -> None:
            with open(beside, "wb") as file:
                np.savez(
                    file,
                    identity=np.array(self.identity),
                    steps=np.array(self.steps),
                    validating=np.array(validating),
                    sources=np.array(sources),
                    keys=np.array(keys),
                    chosen=np.array(chosen, np.float32),
                    rejected=np.array(rejected, np.float32),
                )

        write_beside(self.path, write)


@torch.no_grad()
def _fill(
    cache: _Cache, model, step_sets: Sequence[Steps], total: int, device, context, workers: int, ranks: Ranks
) -> None:
    """Ask about all steps that the cache does not have yet."""
    training, started, first = model.training, time.monotonic(), cache.steps
    saved = started
    model.eval()
    before = 0  # steps of the sets already passed
    for validating, steps in enumerate(step_sets):
        for batches in told(load_steps(steps, max(0, cache.steps - before), workers, device.type == "cuda"), ranks):
            for rows in ranks.gather(_ask(model, batches, bool(validating), device, context)):
                cache.rows += rows
            cache.steps += 1
            if not ranks.first:
                continue
            if time.monotonic() - saved > SAVE_SECONDS or cache.steps == total:
                cache.save()
                saved = time.monotonic()
                left = (saved - started) / (cache.steps - first) * (total - cache.steps)
                print(
                    f"reference: {len(cache.rows):,} pairs, step {cache.steps:,}/{total:,}  {clock(left)} left",
                    file=sys.stderr,
                    flush=True,
                )
        before += len(steps)
    model.train(training)


def _ask(model, batches: list[Batch], validating: bool, device, context) -> list[tuple]:
    sums = [torch.zeros(0, device=device)]
    for batch in batches:
        with context:
            sums.append(-model(batch.to(device), model.config.training_mode).loss_sum_B.float())
    chosen, rejected = torch.cat(sums).unflatten(0, (-1, 2)).unbind(1)
    names = [name for batch in batches for name in zip(batch.sources[::2], batch.keys[::2], strict=True)]
    return [(validating, *name, *pair) for name, *pair in zip(names, chosen.tolist(), rejected.tolist(), strict=True)]
