"""The few videos whose attention is looked at, and where the queries look in them, as arrays."""

import numpy as np

from fvlm.batch import Batch
from fvlm.config.schema import Run, Study
from fvlm.data.batches.loader import Steps, open_held_out
from fvlm.data.batches.order import in_file_order
from fvlm.model.foveated import Output


def maps_of(batch: Batch, output: Output, side: int) -> dict[str, np.ndarray]:
    """Where the queries looked in a batch in host memory, from a forward pass with attention.

    side        patches per side of a frame
    returns     frames (P, 224, 224, 3) uint8; fine and coarse, where there is such a pass, (P, side, side) attention
                over patches; entropy_fine (P,) nats, of the pass that the loss comes from
    """
    arrays = {"frames": batch.frames[batch.frame_index].numpy()}
    for name, looked in (("fine", output.fine), ("coarse", output.coarse)):
        if looked is not None:
            arrays[name] = looked.patches.float().cpu().numpy().reshape(-1, side, side)
    return arrays | {"entropy_fine": output.entropy_P.float().cpu().numpy()}


def fixed_videos(run: Run, study: Study, count: int) -> Steps:
    """The same few held-out videos for every run with these sources: the first of each video source in turn.

    returns     at most `count` steps of one sample each; none where no video is held out. The questions stand where
                most of the run's do
    """
    corpus = open_held_out(run, study, "evaluation", study.evaluation.samples, kinds=("video",))
    for i, (index, rows) in enumerate(zip(corpus.indices, corpus.rows, strict=True)):
        moving = rows[index.frames[rows] > 1]
        # One sample per video: rows of the same group ask about the same frames.
        _, first = np.unique(index.group[moving], return_index=True)
        share = count // len(corpus.rows) + (i < count % len(corpus.rows))
        corpus.rows[i] = moving[np.sort(first)][:share]
    order = in_file_order(
        corpus.indices,
        corpus.rows,
        run.data.static_frames,
        run.data.max_text_tokens,
        question_first=float(run.data.question_first > 0.5),
    )
    return Steps(corpus, order, run, study, "answers", batch_size=1)
