"""Attention maps of a few fixed held-out videos, saved while a run trains."""

from pathlib import Path

import numpy as np
import torch

from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps
from fvlm.evaluate.maps import fixed_videos, maps_of
from fvlm.evaluate.overlay import Row, overlay
from fvlm.files import write_beside
from fvlm.model.foveated import VideoLanguageModel
from fvlm.train.ranks import Ranks


class Watch:
    """Saves `attention/step_XXXXXXXX.npz` and `.png` in the run's folder whenever it is called.

    It draws no random number and leaves the model as it was, so it does not change the training. It does nothing for a
    model without queries, if `operation.attention_videos` is 0, or if no video is held out.
    """

    def __init__(self, run: Run, study: Study, folder: Path):
        self.run, self.folder = run, folder / "attention"
        self.videos = _videos(run, study)

    @torch.no_grad()
    def __call__(self, model: VideoLanguageModel, step: int, device: torch.device, context, ranks: Ranks) -> None:
        """Save the maps after `step` steps, in the autocast `context`. All ranks call this; the first one writes."""
        if self.videos is None:
            return
        training = model.training
        model.eval()
        side = round(self.run.model.encoder.patches**0.5)
        rows, arrays = [], {}
        for k in range(len(self.videos)):
            (batch,) = self.videos[k]
            with context:
                output = model(batch.to(device), self.run.model.training_mode, with_attention=True)
            maps = maps_of(batch, output, side)
            attention = maps.get("fine", maps.get("coarse"))
            arrays |= {f"{name}_{k}": maps[name] for name in ("fine", "coarse", "entropy_fine") if name in maps}
            entropy = float(maps["entropy_fine"].mean())
            rows.append(Row(maps["frames"], attention, f"{batch.sources[0]}   {batch.keys[0]}   {entropy:.2f} nats"))
            arrays |= {f"key_{k}": np.array(batch.keys[0]), f"source_{k}": np.array(batch.sources[0])}
        model.train(training)
        ranks.at_first(lambda: self._write(step, rows, arrays))

    def _write(self, step: int, rows: list[Row], arrays: dict[str, np.ndarray]) -> None:
        picture = overlay(rows, f"{self.run.name}, step {step:,}: where the query looks")
        name = f"step_{step:08d}"
        write_beside(self.folder / f"{name}.npz", lambda part: _save(part, arrays))
        write_beside(self.folder / f"{name}.png", lambda part: picture.save(part, format="PNG", compress_level=1))


def _videos(run: Run, study: Study) -> Steps | None:
    if not run.model.variant.queries or not run.operation.attention_videos:
        return None
    videos = fixed_videos(run, study, run.operation.attention_videos)
    return videos if len(videos) else None


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
