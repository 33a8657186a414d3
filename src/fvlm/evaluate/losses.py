"""Held-out losses of a finished run, per sample, mode and kind of frames.

Each sample is scored with its own frames in every mode, without frames (blind), and with the frames of another video.
A model uses its frames if the loss with its own frames is clearly the lowest of the three. Only answers are scored,
also of runs that train on all text, so that runs can be compared; of a preference pair, the chosen answer. A run that
trains with some questions before the frames is scored in both orders: all questions first, and all videos first.
The token that ends an answer, `<|im_end|>`, is scored. The loss without it is given too, since others do not score it.

A file beside the table keeps the scored batches until the table is written: a killed evaluation resumes from it.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

from fvlm import __version__
from fvlm.batch import Batch
from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps, data_files, open_held_out, steps_in_file_order
from fvlm.data.shards.text import END
from fvlm.device import autocast, precision_on
from fvlm.errors import UserError
from fvlm.evaluate.load import check_split, load_run
from fvlm.files import digest_of
from fvlm.model.foveated import Output
from fvlm.model.losses import sum_per_sample
from fvlm.records import MetricsLog, write_csv

BATCH = 8  # samples per forward pass
COLUMNS = (
    "run", "order", "mode", "frames", "source", "kind", "key", "group", "loss_sum", "tokens", "loss_sum_without_end",
    "tokens_without_end", "entropy",
)  # fmt: skip


def evaluate(folder: Path, study: Study, out: Path) -> None:
    """Score a finished run and write the table, with one row per sample, mode and kind of frames."""
    run, model, device = load_run(folder)
    check_split(run, study, folder)
    steps = held_out_samples(run, study)
    batches = batches_by_source(steps)
    end = steps.tokenizer.token_to_id(END)
    scored = Scored(out.with_suffix(".scored.jsonl"), identity(run, study, folder, steps, device))
    if scored:
        print(f"{run.name}: {len(scored)} of {len(batches)} batches were scored before", file=sys.stderr, flush=True)
    with torch.no_grad(), autocast(run, device):
        for places, videos in batches[len(scored) :]:
            scored.append(score(run, model, steps.batch(places).to(device), study, videos, end))
            print(f"{run.name}: batch {len(scored)} of {len(batches)} scored", file=sys.stderr, flush=True)
    write_csv(out, scored.rows)
    scored.delete()


def identity(run: Run, study: Study, folder: Path, steps: Steps, device: torch.device) -> str:
    """Return a hash of everything that the rows depend on: weights, samples, version, device and precision."""
    computed = (__version__, COLUMNS, BATCH, device.type, precision_on(run, device))
    corpus = steps.corpus
    kinds = [study.sources[name].kind for name in corpus.names]
    samples = (study.evaluation.samples, corpus.names, kinds, corpus.prompts, [rows.tolist() for rows in corpus.rows])
    weights = [folder / "model/run.json", folder / "model/best.safetensors"]
    return digest_of(repr((computed, samples)), [*data_files(run, study), *weights])


def held_out_samples(run: Run, study: Study) -> Steps:
    """Return the run's evaluation samples, source after source.

    If the run trains with any question before the frames, all questions stand there; `Batch.video_first` moves them.

    raises  UserError if no sample is held out
    """
    corpus = open_held_out(run, study, "evaluation", study.evaluation.samples)
    if not any(len(rows) for rows in corpus.rows):
        raise UserError(
            f"run {run.name!r}: no held-out sample in its sources ({', '.join(run.data.sources)}); raise their "
            "`held_out` in config/sources.yaml"
        )
    return steps_in_file_order(corpus, run, study, "answers", BATCH, float(run.data.question_first > 0))


def batches_by_source(steps: Steps) -> list[tuple[list[int], list[int]]]:
    """Return batches of about `BATCH` samples of one source, each sample in one batch, no two of the same video.

    The frames of "another sample" must be those of another video, but several samples may show the same video. The
    samples, sorted by video, are dealt in turn to at least as many batches as any video has samples.

    returns     per batch the samples' places in `steps.order`, and a number per sample that names its video
    """
    order, batches = steps.order, []
    for source, index in enumerate(steps.corpus.indices):
        places = np.flatnonzero(order.source == source)
        videos = index.group[order.row[places]]
        by_video = np.argsort(videos, kind="stable")
        places, videos = places[by_video], videos[by_video]
        samples_per_video = int(np.unique(videos, return_counts=True)[1].max(initial=1))
        count = min(max(1, len(places) // BATCH, samples_per_video), len(places))
        batches += [(places[k::count].tolist(), videos[k::count].tolist()) for k in range(count)]
    return batches


def score(run: Run, model, batch: Batch, study: Study, videos: list[int], end: int) -> list[dict]:
    """Return one row per sample, order, mode and kind of frames, with the COLUMNS.

    videos      of each sample a number that names its video: samples of one video are not independent
    end         id of the token that ends an answer
    returns     `loss_sum`: nats, summed over the `tokens` scored tokens, and both without the tokens `end`; `entropy`:
                nats, attention entropy, mean over the sample's visual positions; None if no query read a frame
    """
    rows = _score(run, model, batch.video_first(), study, videos, end, "video_first")
    if run.data.question_first > 0:
        rows += _score(run, model, batch, study, videos, end, "question_first")
    return rows


def _score(run: Run, model, batch: Batch, study: Study, videos: list[int], end: int, order: str) -> list[dict]:
    trained, foveated = run.model.training_mode, run.model.variant.queries
    # A batch of texts has no frames to exchange. It is scored as it is, so that all kinds of frames have equal samples.
    other = batch.with_frames_of_neighbour() if batch.frame_counts.any() else batch
    passes = [(mode, "own", mode, batch) for mode in run.model.modes]
    passes.append(("blind", "none", trained, batch.without_frames()))
    if other is not None:  # None: only one sample of the batch has frames
        passes.append((trained, "other", trained, other))
    rows = []
    for name, frames, mode, content in passes:
        output = model(content, mode, with_attention=foveated and frames == "own")
        losses, without_end = output.loss_sum_B.tolist(), _without(output, end)
        for i, (key, source, entropy) in enumerate(
            zip(batch.keys, batch.sources, _entropies(output, content), strict=True)
        ):
            values = (
                run.name, order, name, frames, source, study.sources[source].kind, key, videos[i], losses[i],
                int(output.count_B[i]), *without_end[i], entropy,
            )  # fmt: skip
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _without(output: Output, token: int) -> list[tuple[float, int]]:
    """Return of each sample the summed loss of its scored tokens other than `token`, and their number."""
    other_X, counts_B = output.targets_X != token, output.count_B.to(output.nats_X.device)
    kept = output.nats_X.where(other_X, 0), other_X.to(output.nats_X.dtype)
    sums, numbers = (sum_per_sample(values, counts_B).tolist() for values in kept)
    return list(zip(sums, map(int, numbers), strict=True))


def _entropies(output: Output, batch: Batch) -> list[float | None]:
    """Return the mean attention entropy of each sample; None for a sample without frames."""
    if output.entropy_P is None:
        return [None] * len(batch)
    per_sample = output.entropy_P.cpu().split(batch.frame_counts.tolist())
    return [entropy.mean().item() if len(entropy) else None for entropy in per_sample]


class Scored:
    """The rows of the batches that are scored already, in a file of JSON lines.

    identity    hash of everything that the rows depend on; a file with another one is emptied
    """

    def __init__(self, path: Path, identity: str):
        self.log = MetricsLog(path, math.inf)
        first, *batches = self.log.records() or [None]
        if first != {"step": 0, "identity": identity}:
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
        """raises   UserError if the file cannot be written"""
        self.batches.append(rows)
        self.log.append({"step": len(self), "rows": rows})

    def delete(self) -> None:
        self.log.path.unlink(missing_ok=True)
