"""Attention maps of a few fixed held-out videos."""

from pathlib import Path

import numpy as np
import torch

from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps, open_held_out, steps_in_file_order
from fvlm.data.shards.samples import sample_text
from fvlm.errors import UserError
from fvlm.files import write_beside
from fvlm.model.foveated import VideoLanguageModel


def fixed_videos(run: Run, study: Study, count: int) -> Steps:
    """Return at most `count` held-out videos, one per step: the same ones for every run with these sources.

    The video sources share them evenly, and no two samples show the same video. The question stands before the frames
    if it does so in most samples of the run.
    """
    corpus = open_held_out(run, study, "evaluation", study.evaluation.samples, kinds=("video",))
    for i, (index, rows) in enumerate(zip(corpus.indices, corpus.rows, strict=True)):
        moving = rows[index.frames[rows] > 1]
        _, first = np.unique(index.group[moving], return_index=True)
        share = count // len(corpus.rows) + (i < count % len(corpus.rows))
        corpus.rows[i] = moving[np.sort(first)][:share]
    return steps_in_file_order(corpus, run, study, "answers", 1, float(run.data.question_first > 0.5))


def videos_to_show(run: Run, study: Study) -> Steps:
    """Return the `fixed_videos` of a study; raises UserError if a run has none."""
    if run.data.max_frames == 1:
        raise UserError(
            f"run {run.name!r}: data.max_frames is 1, so the model reads one frame of a video, which has no maps; "
            "name a run with 2 or more"
        )
    videos = fixed_videos(run, study, study.evaluation.attention_videos)
    if not len(videos):
        raise UserError(
            f"run {run.name!r}: no held-out video to show; set `held_out` of one of its video sources in "
            "config/sources.yaml"
        )
    return videos


@torch.no_grad()
def attention_maps(
    run: Run, model: VideoLanguageModel, videos: Steps, device: torch.device, context
) -> dict[str, np.ndarray]:
    """Return the attention maps of some videos in the run's training mode.

    videos      one sample per step; for video k (counted from 0) the result has
    frames_k    (T, 224, 224, 3) uint8
    fine_k, coarse_k    (T, side, side) attention of each query over the patches; absent if the run has no such pass
    entropy_fine_k      (T,) nats, attention entropy of the pass that the loss comes from
    keys, sources, captions     one text per video; a caption is the sample's text
    context     the run's autocast
    """
    arrays, keys, sources, captions = {}, [], [], []
    side = round(run.model.encoder.patches**0.5)
    for k in range(len(videos)):
        (batch,) = videos[k]
        with context:
            output = model(batch.to(device), run.model.training_mode, with_attention=True)
        arrays[f"frames_{k}"] = batch.frames[batch.frame_index].numpy()
        for name, attention in (("fine", output.fine), ("coarse", output.coarse)):
            if attention is not None:
                arrays[f"{name}_{k}"] = attention.patches.float().cpu().numpy().reshape(-1, side, side)
        arrays[f"entropy_fine_{k}"] = output.entropy_P.float().cpu().numpy()
        keys.append(batch.keys[0])
        sources.append(batch.sources[0])
        captions.append(_text_of(videos, k))
    return arrays | {"keys": np.array(keys), "sources": np.array(sources), "captions": np.array(captions)}


def _text_of(steps: Steps, i: int) -> str:
    """Return question and answer of sample i, in one line."""
    place, row = int(steps.order.source[i]), int(steps.order.row[i])
    text = sample_text(steps.corpus.indices[place].read(row, steps.results), steps.corpus.prompts[place])
    if "messages" in text:
        return " ".join(message["content"] for message in text["messages"])
    return f"{text['user']} {text['assistant']}"


def write_maps(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(beside: Path) -> None:
        with beside.open("wb") as file:  # with a path, NumPy would change the suffix
            np.savez_compressed(file, **arrays)

    write_beside(path, write)
