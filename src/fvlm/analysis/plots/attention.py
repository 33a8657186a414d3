"""Where the model looks: attention of the queries over the patches of a few held-out videos."""

import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fvlm.errors import UserError
from fvlm.style import WIDTH, NothingToDraw

VIDEOS, FRAMES = 3, 8  # at most, in the figure and in a row


@dataclass(frozen=True)
class Looked:
    """The attention of one run in one video: frames (T, H, W, 3); passes "fine" and "coarse", if the run has them,
    (T, side, side) each with sum 1, the first one gives the loss; entropy (T,) of that pass in nats."""

    run: str
    key: str
    source: str
    caption: str
    frames: np.ndarray
    passes: dict[str, np.ndarray]
    entropy: np.ndarray

    @property
    def final(self) -> np.ndarray:
        return next(iter(self.passes.values()))


def read_maps(path: Path, most: int) -> list[Looked]:
    """The first `most` videos of a run's attention file, evenly thinned to FRAMES frames.

    raises  UserError if it is no such file
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return [_looked(path.stem, content, k) for k in range(min(most, len(content["keys"])))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: expected attention maps of a run ({error}); delete the file and make it again"
        ) from error


def _looked(run: str, content, k: int) -> Looked:
    passes = {name: content[f"{name}_{k}"] for name in ("fine", "coarse") if f"{name}_{k}" in content}
    frames, entropy = content[f"frames_{k}"], content[f"entropy_fine_{k}"]
    chosen = _spread(len(entropy))
    return Looked(
        run,
        str(content["keys"][k]),
        str(content["sources"][k]),
        str(content["captions"][k]),
        frames[_spread(len(frames))],  # a file written while the run trains holds only the frames of the figure
        {name: maps[chosen] for name, maps in passes.items()},
        entropy[chosen],
    )


def _spread(count: int) -> np.ndarray:
    """At most FRAMES of the numbers below `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)


def heatmaps(attention: list[Path]) -> tuple[Figure, pd.DataFrame]:
    """Per video its frames, and over grey frames the fine and the coarse query; all share one scale."""
    attention = attention[:VIDEOS]
    videos = [video for path in attention for video in read_maps(path, max(1, VIDEOS // len(attention)))]
    videos = [video for video in videos if len(video.frames)]
    if not videos:
        raise NothingToDraw("no run has attention maps")
    columns = max(len(video.frames) for video in videos)
    figure = plt.figure(figsize=(WIDTH, len(videos) * (0.6 + 3 * (WIDTH - 1.2) / max(columns, 5))))
    blocks = figure.subfigures(len(videos), 1, squeeze=False)[:, 0]
    top = max(float(np.quantile(video.final * video.final[0].size, 0.995)) for video in videos)
    for block, video in zip(blocks, videos, strict=True):
        bar = block.colorbar(_draw_video(block, video, columns, top), ax=block.axes, pad=0.01, aspect=25)
        bar.set_label("attention / uniform", fontsize=7)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    return figure, pd.DataFrame([row for video in videos for row in _numbers(video)])


def _draw_video(block, video: Looked, columns: int, top: float):
    axes = block.subplots(1 + len(video.passes), columns, squeeze=False)
    heading = f"{video.run}, {video.source}: {' '.join(video.caption.split())}"
    block.suptitle("\n".join(textwrap.wrap(heading, 105)[:2]), fontsize=8, x=0.01, ha="left")
    height, width = video.frames.shape[1:3]
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    for column, frame in enumerate(video.frames):
        axes[0, column].imshow(frame)
        axes[1, column].set_title(
            f"{video.entropy[column]:.2f} nats", fontsize=6.5, loc="center", fontweight="normal", pad=2
        )
        for ax, maps in zip(axes[1:, column], video.passes.values(), strict=True):
            ax.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255)
            look = {"cmap": "inferno", "vmin": 0, "vmax": top, "alpha": 0.6, "interpolation": "nearest"}
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            picture = ax.imshow(maps[column] * maps[column].size, extent=extent, **look)
    for ax, name in zip(axes[:, 0], ("frame", *video.passes), strict=True):
        ax.set_ylabel(name, fontsize=8)
    return picture


def _numbers(video: Looked) -> list[dict]:
    rows = []
    coarse = video.passes.get("coarse", video.final)
    for t, (final, first, entropy) in enumerate(zip(video.final, coarse, video.entropy, strict=True)):
        peak = np.unravel_index(int(np.argmax(final)), final.shape)
        rows.append({
            "run": video.run, "key": video.key, "source": video.source, "column": t, "entropy_fine": float(entropy),
            "peak_row": int(peak[0]), "peak_column": int(peak[1]), "peak_over_uniform": float(final.max() * final.size),
            "coarse_peak_over_uniform": float(first.max() * first.size),
        })  # fmt: skip
    return rows
