"""A finished run, loaded for inference from the configuration and the weights that it saved."""

from pathlib import Path

import torch

from fvlm.config.schema import Run, Study
from fvlm.config.trained import ADOPTED, summary_in
from fvlm.data.batches.loader import counted_split, open_training
from fvlm.device import device_of
from fvlm.errors import UserError
from fvlm.evaluate.read import SPLIT, files_of, read_run
from fvlm.model.build import build_model, load_weights
from fvlm.model.elsewhere import load_elsewhere
from fvlm.model.foveated import VideoLanguageModel


def check_split(run: Run, study: Study, folder: Path) -> None:
    """Raise UserError if a run may have trained on samples that are held out now, or on sources of another study."""
    unknown = next((name for name in run.data.sources if name not in study.sources), None)
    if unknown is not None:
        raise UserError(
            f"{folder}: this run was trained on source {unknown!r}, which study {study.study!r} does not have; name "
            "the run's study with --study"
        )
    if not any(isinstance(study.sources[name].held_out, float) for name in run.data.sources):
        return
    _, beside = read_run(folder)
    split = counted_split(study, open_training(run, study))
    if beside[SPLIT] not in (split, ADOPTED):  # an adopted run has a split of its own
        raise UserError(
            f"run {run.name!r} was trained with another split of its sources into training and held-out samples (they "
            f"have more or fewer samples now, or the run is of an earlier version); train it again: delete "
            f"{folder / 'state'} and {folder / 'run_summary.json'}"
        )


def load_run(folder: Path | str) -> tuple[Run, VideoLanguageModel, torch.device]:
    """Return the run, a model with its best weights in evaluation mode, and the model's device: a GPU if there is one.

    folder  results/runs/NAME, or of `fvlm export`
    raises  UserError if the run is not finished, is of another version, or its weights are damaged
    """
    folder = Path(folder)
    run, _ = read_run(folder)
    trained_with = summary_in(folder).get("digest", run.digest)
    if run.model.variant.keeps == "last" and trained_with != run.digest:
        raise UserError(
            f"{folder}: this run has the shallow query of an earlier version, which this version computes in another "
            "way; train it again, or use the earlier version"
        )
    model = build_model(run.model, run.train.seed, pretrained=False)
    files = files_of(folder)
    if files.exported:
        load_elsewhere(model, run.model, files.weights)
    else:
        load_weights(model, files.weights)
    torch.set_num_threads(run.operation.threads)
    device = device_of(run)
    return run, model.to(device).eval(), device
