"""`fvlm evaluate RUN`: held-out losses of a finished run, sample by sample, in every mode and by what it sees.

Each sample is scored with its own frames in all modes, with no frames (blind), and with another sample's frames. Only
a model whose own-frames loss is clearly the lowest of the three has learnt to see. Answers alone are scored, also of
runs that were trained on all text, so that runs can be compared.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.config import add_study_arguments, study_of
from fvlm.data.loader import Steps, load_steps, open_held_out
from fvlm.data.order import in_file_order
from fvlm.errors import UserError
from fvlm.evaluate.load import load_run
from fvlm.schema import Run, Study
from fvlm.train.loop import autocast
from fvlm.train.state import write_csv

BATCH = 8  # samples per forward pass


def add_arguments(parser) -> None:
    parser.add_argument("run", help="a finished run")
    parser.add_argument("--out", required=True, type=Path, help="CSV with one row per sample, mode and kind of frames")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    run, model, device = load_run(Path(study.results) / "runs" / args.run)
    steps = held_out_by_source(run, study, study.evaluation.samples)
    groups = videos_of(steps)
    rows = []
    with torch.no_grad(), autocast(run, device):
        for i, batches in enumerate(load_steps(steps)):
            rows += [row for batch in batches for row in score(run, model, batch.to(device), study, groups)]
            print(f"{run.name}: batch {i + 1} of {len(steps)} scored", file=sys.stderr, flush=True)
    write_csv(args.out, rows)
    return 0


def held_out_by_source(run: Run, study: Study, samples: int) -> Steps:
    """Held-out samples in batches of one source each.

    A batch takes rows far apart, because neighbouring rows may ask about the same video, and the frames of 'another
    sample' must be another video's.
    """
    corpus = open_held_out(run, study, "evaluation", samples)
    if not any(len(rows) for rows in corpus.rows):
        raise UserError(
            f"run {run.name!r}: its sources ({', '.join(run.data.sources)}) hold out no sample to evaluate on; raise "
            "their `held_out` in config/sources.yaml"
        )
    for i, rows in enumerate(corpus.rows):
        corpus.rows[i] = rows[: len(rows) // BATCH * BATCH or len(rows)]
    spread = [
        np.concatenate([rows[k :: max(1, len(rows) // BATCH)] for k in range(max(1, len(rows) // BATCH))])
        for rows in corpus.rows
    ]
    order = in_file_order(corpus.indices, spread, run.data.static_frames, run.data.max_text_tokens)
    return Steps(corpus, order, run, study, "answers", BATCH, whole=True)


def videos_of(steps: Steps) -> dict[str, int]:
    """Key of each sample -> its original file, as a number: samples of one file are not independent."""
    places = zip(steps.order.source.tolist(), steps.order.row.tolist(), strict=True)
    indices = steps.corpus.indices
    return {str(indices[place].keys[row]): int(indices[place].group[row]) for place, row in places}


def score(run: Run, model, batch: Batch, study: Study, groups: dict[str, int]) -> list[dict]:
    """One row per sample, mode and kind of frames: summed loss in nats, scored tokens, attention entropy in nats."""
    rows = []
    looks = [(mode, "own", batch) for mode in run.model.modes]
    looks.append(("blind", "none", batch.without_frames()))
    # Texts have no frames to exchange; they count as they are, so that every look is taken over the same samples.
    other = batch.with_frames_of_neighbour() if batch.frame_counts.any() else batch
    looks.append((run.model.training_mode, "other", other))
    for mode, frames, seen in looks:
        if seen is None:
            continue  # a batch in which a single sample has frames: there is no other's
        attended = frames == "own" and run.model.architecture == "foveated"
        output = model(seen, run.model.training_mode if mode == "blind" else mode, with_attention=attended)
        entropies = [None] * len(seen)
        if attended and output.entropy_P is not None:
            pieces = output.entropy_P.split(seen.frame_counts.tolist())
            entropies = [piece.mean().item() if len(piece) else None for piece in pieces]
        for i, (key, name) in enumerate(zip(batch.keys, batch.sources, strict=True)):
            rows.append({
                "run": run.name, "mode": mode, "frames": frames, "source": name, "kind": study.sources[name].kind,
                "key": key, "group": groups[key], "loss_sum": output.loss_sum_B[i].item(),
                "tokens": int(output.count_B[i]),
                "entropy": entropies[i],
            })  # fmt: skip
    return rows
