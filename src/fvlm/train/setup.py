"""Setting up a training: data, order, model and reference, before the first step."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps, counted_split, data_files, open_training, validation_steps
from fvlm.device import autocast, device_of, peak_flops, precision_on
from fvlm.errors import UserError
from fvlm.files import digest_of, sweep
from fvlm.model.build import build_model, load_weights
from fvlm.model.elsewhere import load_elsewhere
from fvlm.model.foveated import VideoLanguageModel
from fvlm.records import weights_in
from fvlm.train.fsdp import DataParallel, FullySharded
from fvlm.train.order import planned_order, sample_flops
from fvlm.train.progress import TimeSpent
from fvlm.train.ranks import Ranks
from fvlm.train.reference import Reference, prepare_reference
from fvlm.train.state import FORMAT
from fvlm.train.summary import describe_fill, fill_of
from fvlm.train.trackers import require_packages


@dataclass
class Setup:
    """What a training needs before its first step.

    identity    hash of configuration, data and parent; a checkpoint with another identity is not resumed
    parallel    how the model lies on the ranks
    steps       training steps, and in them the order of the n samples; validation: held-out steps, or None
    flops       (n,) training FLOPs of each sample; work: without those of the reference
    fill        shares of the micro-batches' budgets that are used
    reference   of a preference run, else None
    peak        FLOP/s of all devices together; None if unknown
    """

    run: Run
    study: Study
    folder: Path
    device: torch.device
    ranks: Ranks
    spent: TimeSpent
    identity: str
    model: VideoLanguageModel
    parallel: DataParallel
    steps: Steps
    validation: Steps | None
    flops: np.ndarray
    work: np.ndarray
    fill: dict[str, float]
    reference: Reference | None
    peak: float | None

    @property
    def state(self) -> Path:
        """Folder of the checkpoints, logs and best weights. Snakemake does not know it, so a failed job keeps it."""
        return self.folder / "state"


def prepare(run: Run, study: Study, folder: Path, ranks: Ranks) -> Setup:
    """Return all that a training needs; all ranks call this. `folder` is the run's."""
    spent, device = TimeSpent(), device_of(run, ranks.local, ranks.count)
    ranks.at_first(lambda: sweep(folder))
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    torch.manual_seed(run.train.seed)
    with ranks.together():
        require_packages(run)
        corpus = open_training(run, study)
        order, flops = planned_order(run, corpus)
        model = build_model(run.model, run.train.seed)
        if run.parent is not None:
            weights = _parent_weights(run, folder)
            if run.parent_path:
                load_elsewhere(model, run.model, weights)
            else:
                load_weights(model, weights)
        share = {"rank": ranks.rank, "ranks": ranks.count}
        steps = Steps(corpus, order, run, study, run.data.loss, run.optim.batch_size, **share)
        validation = validation_steps(run, study, **share)
        hash_of_all = identity(run, study, folder, counted_split(study, corpus))
    if len(set(ranks.gather(hash_of_all))) > 1:
        raise ranks.common_error(
            f"run {run.name!r}: its ranks found different configurations, data or parents; let all nodes read the same "
            "files"
        )
    model.freeze(run.optim.freeze)
    model.recompute_layers(run.operation.recompute)
    split = run.operation.shard_weights and ranks.count > 1
    parallel = (FullySharded if split else DataParallel)(model, device, ranks)
    fill = fill_of(steps, flops)
    if ranks.first:
        for line in filter(None, (without_validation(run, study, validation), describe_fill(fill))):
            print(f"{run.name}: {line}", file=sys.stderr, flush=True)
    precision = precision_on(run, device)
    reference = None
    if run.data.loss == "preference":  # the model still has its parent's weights
        sets, workers = [part for part in (steps, validation) if part], run.operation.loader_workers
        cache, cache_identity = folder / "state/reference.npz", f"{hash_of_all} {precision}"
        reference = prepare_reference(parallel, sets, cache, cache_identity, device, autocast(run, device), workers)
    work = sample_flops(run, corpus, order, reference=False)
    peak = peak_flops(device, study.gpu, precision)
    peak = peak and peak * ranks.count
    return Setup(
        run=run, study=study, folder=folder, device=device, ranks=ranks, spent=spent, identity=hash_of_all,
        model=model, parallel=parallel, steps=steps, validation=validation, flops=flops, work=work, fill=fill,
        reference=reference, peak=peak,
    )  # fmt: skip


def identity(run: Run, study: Study, folder: Path, split: str = "") -> str:
    """Return a hash of all that the run's result depends on: configuration, tokenizer, data and parent's weights.

    split   what `counted_split` returns
    """
    files = data_files(run, study)
    if run.parent is not None:
        files.append(_parent_weights(run, folder))
    return digest_of(f"{FORMAT} {run.digest} {split}".strip(), files)


def without_validation(run: Run, study: Study, validation: Steps | None) -> str:
    """Return which sources of a run have no held-out sample; empty if all have some."""
    held = dict(zip(validation.corpus.names, validation.corpus.rows, strict=True)) if validation else {}
    used = [name for name in run.data.sources if run.data.share.get(study.sources[name].kind)]
    lacking = [name for name in used if not len(held.get(name, ()))]
    none = "; the training has no validation loss" if not validation else ""
    return f"no held-out sample of {', '.join(lacking)}{none} (`held_out` in config/sources.yaml)" if lacking else ""


def _parent_weights(run: Run, folder: Path) -> Path:
    """Return the weights that a run starts from; raises UserError if they are not there."""
    if run.parent_path:
        return weights_in(run.parent_path)
    path = folder.parent / run.parent / "model" / "best.safetensors"
    if not path.is_file():
        raise UserError(f"run {run.name!r} starts from {path}, which is not there; train {run.parent!r} first")
    return path
