"""`fvlm evaluate RUN`: held-out losses of a finished run, sample by sample, in every mode and by what it sees.

Each sample is scored with its own frames in all modes, with no frames (blind), and with another sample's frames. Only
a model whose own-frames loss is clearly the lowest of the three has learnt to see. Answers alone are scored, also of
runs that were trained on all text, so that runs can be compared; of preference pairs the chosen one. A run that was
trained with questions before the frames is scored with all of them there and with none.

What is scored is kept batch by batch beside the table until that is written: a killed evaluation goes on there.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

from fvlm import __version__
from fvlm.batch import Batch
from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps, data_files, open_held_out
from fvlm.data.batches.order import in_file_order
from fvlm.device import autocast, precision_on
from fvlm.errors import UserError
from fvlm.evaluate.load import load_run
from fvlm.files import digest_of
from fvlm.model.foveated import Output
from fvlm.records import MetricsLog, write_csv

BATCH = 8  # samples per forward pass


def add_arguments(parser) -> None:
    parser.add_argument("run", help="a finished run")
    parser.add_argument("--out", required=True, type=Path, help="CSV with one row per sample, mode and kind of frames")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    folder = Path(study.results) / "runs" / args.run
    run, model, device = load_run(folder)
    steps = held_out_samples(run, study)
    samples = batches_by_source(steps)
    scored = Scored(args.out.with_suffix(".scored.jsonl"), identity(run, study, folder, steps, device))
    if scored:
        print(f"{run.name}: {len(scored)} of {len(samples)} batches were scored before", file=sys.stderr, flush=True)
    with torch.no_grad(), autocast(run, device):
        for members, videos in samples[len(scored) :]:
            scored.append(score(run, model, steps.batch(members).to(device), study, videos))
            print(f"{run.name}: batch {len(scored)} of {len(samples)} scored", file=sys.stderr, flush=True)
    write_csv(args.out, scored.rows)
    scored.forget()
    return 0


def identity(run: Run, study: Study, folder: Path, steps: Steps, device: torch.device) -> str:
    """A hash of all that the rows depend on: weights, samples, and how they are computed."""
    how = (__version__, BATCH, device.type, precision_on(run, device))
    corpus = steps.corpus
    kinds = [study.sources[name].kind for name in corpus.names]
    samples = (study.evaluation.samples, corpus.names, kinds, corpus.prompts, [rows.tolist() for rows in corpus.rows])
    weights = [folder / "model/run.json", folder / "model/best.safetensors"]
    return digest_of(repr((how, samples)), [*data_files(run, study), *weights])


def held_out_samples(run: Run, study: Study) -> Steps:
    """The run's evaluation samples, source after source; UserError if there is none.

    The questions stand before the frames if the run was trained with any there; `Batch.video_first` puts them behind.
    """
    corpus = open_held_out(run, study, "evaluation", study.evaluation.samples)
    if not any(len(rows) for rows in corpus.rows):
        raise UserError(
            f"run {run.name!r}: its sources ({', '.join(run.data.sources)}) hold out no sample to evaluate on; raise "
            "their `held_out` in config/sources.yaml"
        )
    order = in_file_order(
        corpus.indices,
        corpus.rows,
        run.data.static_frames,
        run.data.max_text_tokens,
        question_first=float(run.data.question_first > 0),
        frames_seen=run.model.visual_tokens > 0,
    )
    return Steps(corpus, order, run, study, "answers", BATCH)


def batches_by_source(steps: Steps) -> list[tuple[list[int], list[int]]]:
    """Every sample in one batch of about `BATCH`, each batch of one source and of different videos.

    Several samples may ask about one video, and the frames of 'another sample' must be another video's: with samples
    sorted by video and dealt to at least as many batches as a video has samples, no batch gets a video twice.

    returns     per batch the places in `steps.order` and the video of each, as a number
    """
    order, result = steps.order, []
    for place, index in enumerate(steps.corpus.indices):
        members = np.flatnonzero(order.source == place)
        videos = index.group[order.row[members]]
        by_video = np.argsort(videos, kind="stable")
        members, videos = members[by_video], videos[by_video]
        most = int(np.unique(videos, return_counts=True)[1].max(initial=1))
        count = min(max(1, len(members) // BATCH, most), len(members))
        result += [(members[k::count].tolist(), videos[k::count].tolist()) for k in range(count)]
    return result


def score(run: Run, model, batch: Batch, study: Study, videos: list[int]) -> list[dict]:
    """One row per sample, order, mode and kind of frames: summed loss and attention entropy in nats, scored tokens.

    videos  which video each sample is of: samples of one video are not independent
    """
    rows = _score(run, model, batch.video_first(), study, videos, "video_first")
    if run.data.question_first > 0:
        rows += _score(run, model, batch, study, videos, "question_first")
    return rows


def _score(run: Run, model, batch: Batch, study: Study, videos: list[int], order: str) -> list[dict]:
    rows = []
    looks = [(mode, "own", batch) for mode in run.model.modes]
    looks.append(("blind", "none", batch.without_frames()))
    # Texts have no frames to exchange; they count as they are, so that every look is taken over the same samples.
    other = batch.with_frames_of_neighbour() if batch.frame_counts.any() else batch
    looks.append((run.model.training_mode, "other", other))
    for mode, frames, seen in looks:
        if seen is None:
            continue  # a batch in which a single sample has frames: there is no other's
        attended = frames == "own" and run.model.variant.queries
        output = model(seen, run.model.training_mode if mode == "blind" else mode, with_attention=attended)
        entropies, losses = _entropies(output, seen), output.loss_sum_B.tolist()
        for i, (key, name) in enumerate(zip(batch.keys, batch.sources, strict=True)):
            rows.append({
                "run": run.name, "order": order, "mode": mode, "frames": frames, "source": name,
                "kind": study.sources[name].kind, "key": key, "group": videos[i],
                "loss_sum": losses[i], "tokens": int(output.count_B[i]), "entropy": entropies[i],
            })  # fmt: skip
    return rows


def _entropies(output: Output, batch: Batch) -> list[float | None]:
    """Mean attention entropy of each sample; None where nothing looked."""
    if output.entropy_P is None:
        return [None] * len(batch)
    pieces = output.entropy_P.cpu().split(batch.frame_counts.tolist())
    return [piece.mean().item() if len(piece) else None for piece in pieces]


class Scored:
    """The rows of the batches that are scored already, in the order in which they are scored.

    path        JSON lines: the identity, and then the rows of batch after batch
    identity    of all that they depend on; what another one has left is thrown away
    """

    def __init__(self, path: Path, identity: str):
        self.log = MetricsLog(path, math.inf)
        begin, *batches = self.log.records() or [None]
        if begin != {"step": 0, "identity": identity}:
            batches = []
            self.log = MetricsLog(path, None)
            self.log.append({"step": 0, "identity": identity})
        self.batches = [batch["rows"] for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def rows(self) -> list[dict]:
        return [row for batch in self.batches for row in batch]

    def append(self, rows: list[dict]) -> None:
        """raises   UserError if they cannot be written"""
        self.batches.append(rows)
        self.log.append({"step": len(self), "rows": rows})

    def forget(self) -> None:
        self.log.path.unlink(missing_ok=True)
