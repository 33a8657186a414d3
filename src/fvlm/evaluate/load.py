"""A finished run, loaded for inference from the configuration and the weights that it saved."""

from pathlib import Path

import torch

from fvlm.config.schema import Run
from fvlm.device import device_of
from fvlm.evaluate.read import read_run
from fvlm.model.build import build_model, load_weights
from fvlm.model.foveated import VideoLanguageModel


def load_run(folder: Path | str) -> tuple[Run, VideoLanguageModel, torch.device]:
    """Return the run, a model with its best weights in evaluation mode, and the model's device: a GPU if there is one.

    folder  results/runs/NAME
    raises  UserError if the run is not finished, is of another version, or its weights are damaged
    """
    folder = Path(folder)
    run, _ = read_run(folder)
    model = build_model(run.model, run.train.seed, pretrained=False)
    load_weights(model, folder / "model" / "best.safetensors")
    torch.set_num_threads(run.operation.threads)
    device = device_of(run)
    return run, model.to(device).eval(), device
