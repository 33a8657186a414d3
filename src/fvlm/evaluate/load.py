"""A finished run as a model ready to be asked: rebuilt from the configuration saved beside its weights."""

import json
from pathlib import Path

import torch

from fvlm.config.schema import Run
from fvlm.device import device_of
from fvlm.errors import UserError
from fvlm.model.build import build_model, load_weights
from fvlm.model.foveated import VideoLanguageModel


def load_run(folder: Path | str) -> tuple[Run, VideoLanguageModel, torch.device]:
    """The run, its best weights in evaluation mode, and the device they are on: the GPU if there is one.

    folder  results/runs/NAME
    raises  UserError if the run is not finished
    """
    folder = Path(folder)
    saved = folder / "model" / "run.json"
    if not saved.is_file():
        raise UserError(
            f"{folder}: no finished run here ({saved} is missing); train it first: snakemake --cores all "
            f"{folder}/run_summary.json"
        )
    try:
        run = Run.model_validate(json.loads(saved.read_text()))
    except ValueError as error:
        raise UserError(
            f"{saved}: not a run of this version ({' '.join(str(error).split())[:200]}); train it again"
        ) from error
    # The weights are loaded below, so pretrained ones need not be fetched again.
    unpretrained = run.model.model_copy(update={
        part: getattr(run.model, part).model_copy(update={"weights": None}) for part in ("encoder", "language")
    })  # fmt: skip
    model = build_model(unpretrained, run.train.seed)
    load_weights(model, folder / "model" / "best.safetensors")
    torch.set_num_threads(run.operation.threads)
    device = device_of(run)
    return run, model.to(device).eval(), device
