"""Attention maps of a few fixed held-out videos, saved while a run trains."""

from pathlib import Path

import numpy as np
import torch

from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps
from fvlm.evaluate.maps import attention_maps, fixed_videos, write_maps
from fvlm.model.foveated import VideoLanguageModel
from fvlm.train.ranks import Ranks

FRAMES = 8  # at most, of each video: as many as the figure shows


class Watch:
    """Writes `attention/step_XXXXXXXX.npz` in the run's folder at each call.

    It draws no random number and leaves the model unchanged. It does nothing for a model without queries, if
    `operation.attention_videos` is 0, or if no video is held out.
    """

    def __init__(self, run: Run, study: Study, folder: Path):
        self.run, self.folder = run, folder / "attention"
        self.videos = _videos(run, study)

    def __call__(self, model: VideoLanguageModel, step: int, device: torch.device, context, ranks: Ranks) -> None:
        """Write the maps after `step` steps, in the autocast `context`. All ranks call this; the first one writes."""
        if self.videos is None:
            return
        training = model.training
        model.eval()
        maps = attention_maps(self.run, model, self.videos, device, context)
        model.train(training)
        # The frames are those of every step, so few and small ones are stored; the attention of all frames is.
        frames = {name: _few_and_small(array) for name, array in maps.items() if name.startswith("frames_")}
        ranks.at_first(lambda: write_maps(self.folder / f"step_{step:08d}.npz", maps | frames))


def _few_and_small(frames: np.ndarray) -> np.ndarray:
    """Return at most FRAMES evenly spaced frames (T, 224, 224, 3), with every second pixel of each."""
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    return frames[chosen, ::2, ::2]


def _videos(run: Run, study: Study) -> Steps | None:
    if not run.model.variant.queries or not run.operation.attention_videos:
        return None
    videos = fixed_videos(run, study, run.operation.attention_videos)
    return videos if len(videos) else None
