"""`fvlm attention RUN`: where the queries look in a few fixed held-out videos, as arrays."""

from pathlib import Path

import numpy as np
import torch

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.data.batches.loader import Steps
from fvlm.data.shards.samples import sample_text
from fvlm.data.shards.tar import read_sample
from fvlm.device import autocast
from fvlm.errors import UserError
from fvlm.evaluate.load import load_run
from fvlm.evaluate.maps import fixed_videos, maps_of
from fvlm.files import write_beside


def add_arguments(parser) -> None:
    parser.add_argument("run", help="a finished foveated run")
    parser.add_argument("--out", required=True, type=Path, help=".npz with frames, attention maps and captions")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    run, model, device = load_run(Path(study.results) / "runs" / args.run)
    if not run.model.variant.queries:
        raise UserError(f"run {run.name!r} has no query ({run.model.architecture}); name a foveated run")
    steps = fixed_videos(run, study, study.evaluation.attention_videos)
    if not len(steps):
        raise UserError(f"run {run.name!r}: none of its video sources holds anything out, so there is no video to show")
    arrays: dict[str, np.ndarray] = {}
    keys, sources, captions = [], [], []
    with torch.no_grad(), autocast(run, device):
        for k in range(len(steps)):
            (batch,) = steps[k]
            output = model(batch.to(device), run.model.training_mode, with_attention=True)
            side = round(run.model.encoder.patches**0.5)
            arrays |= {f"{name}_{k}": array for name, array in maps_of(batch, output, side).items()}
            keys.append(batch.keys[0])
            sources.append(batch.sources[0])
            captions.append(_caption(steps, k))
    arrays |= {"keys": np.array(keys), "sources": np.array(sources), "captions": np.array(captions)}

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            np.savez_compressed(file, **arrays)

    write_beside(args.out, write)
    return 0


def _caption(steps: Steps, i: int) -> str:
    """What the sample's text says, as one line: the question or prompt, and the answer."""
    place, row = int(steps.order.source[i]), int(steps.order.row[i])
    index = steps.corpus.indices[place]
    members = read_sample(
        steps.results / index.shards[index.shard[row]], int(index.offset[row]), int(index.length[row])
    )
    text = sample_text(members, steps.corpus.prompts[place])
    if "messages" in text:
        return " ".join(message["content"] for message in text["messages"])
    return f"{text['user']} {text['assistant']}"
