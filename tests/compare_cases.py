"""Points and curves in a user's own CSV files, with gaps, effects and jumps that are known."""

import json

import numpy as np
import pandas as pd

from fvlm.__main__ import main

SIZES = ((1.0e8, 1.2e8), (3.0e8, 3.3e8), (1.0e9, 1.1e9))  # N of the foveated model, of the baseline


def line(n):
    return 5 - 0.15 * np.log(n)


def points(above=1.02, law=line, sizes=SIZES):
    """Two architectures whose curves lie `above` each other."""
    rows = [
        {"architecture": name, "N": n, "L": factor * law(n), "pair": f"p{place}"}
        for place, pair in enumerate(sizes)
        for name, n, factor in zip(("foveated", "pooled"), pair, (above, 1.0), strict=True)
    ]
    return pd.DataFrame(rows)


def curve(run, loss, every=6400, **columns):
    """Evaluations of one run; loss (n,)."""
    place = np.arange(1, len(loss) + 1)
    frame = pd.DataFrame({"run_id": run, "step": 200 * place, "samples_seen": every * place, "val_loss": loss})
    return frame.assign(**columns)


def smooth(n, rng, noise=0.005, every=8000):
    """A power law in D with a floor and independent noise of log loss."""
    samples = every * np.arange(1, n + 1)
    law = 1.05 + rng.uniform(5, 30) * samples ** -rng.uniform(0.2, 0.5)
    return law * np.exp(noise * rng.normal(size=n))


def ending(final, best=None, n=20, at=18):
    """A falling curve whose best and last values are given; the best at evaluation `at`."""
    loss = (final if best is None else best) + 0.5 * np.exp(-np.arange(n) / 3.0) + 1e-3
    loss[at - 1], loss[-1] = (final - 1e-4 if best is None else best), final
    return loss


def save(path, *frames):
    pd.concat(frames, ignore_index=True).to_csv(path, index=False)
    return str(path)


def run(*arguments):
    assert main([str(word) for word in arguments]) == 0


def made(out):
    """What a command wrote: strict JSON, where NaN is none."""

    def refuse(word):
        raise AssertionError(f"{out} holds {word}, which is no JSON")

    return json.loads(out.read_text(), parse_constant=refuse)


def samples_of(frame, n=400, own=0.02, shared=0.5, seed=0):
    """Losses by sample whose difficulty is common to all runs; their means are L up to the runs' own noise."""
    rng = np.random.default_rng(seed)
    difficulty, tokens = shared * rng.normal(size=n), rng.integers(20, 60, size=n)
    difficulty -= np.average(difficulty, weights=tokens)
    parts = []
    for row in frame.to_dict("records"):
        noise = own * rng.normal(size=n)
        loss = row["L"] + difficulty + noise - np.average(noise, weights=tokens)
        part = pd.DataFrame({"key": [f"k{i}" for i in range(n)], "loss_sum": loss * tokens, "tokens": tokens})
        parts.append(part.assign(architecture=row["architecture"], N=row["N"]))
    return pd.concat(parts)
