"""`fvlm caption VIDEO --run results/runs/stage3`: what a finished run says about a video or an image."""

from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.data.batches.loader import pack
from fvlm.data.decode.media import IMAGE_SUFFIXES, MediaError
from fvlm.data.decode.video import decode_image, decode_video
from fvlm.data.shards.text import END, START, encode_prompt, load_tokenizer
from fvlm.device import autocast
from fvlm.errors import UserError
from fvlm.evaluate.load import load_run
from fvlm.model.generate import generate


def add_arguments(parser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="videos or images")
    parser.add_argument(
        "--run", required=True, type=Path, help="folder of a finished run, for example results/runs/stage3"
    )
    parser.add_argument("--question", default="Say what happens in the video.", help="what to ask")
    parser.add_argument("--tokens", type=int, default=60, help="longest answer, in tokens")
    parser.add_argument(
        "--mode", default=None, help="coarse_only, coarse_fine or autoregressive (default: as at inference)"
    )


def main(args) -> int:
    run, model, device = load_run(args.run)
    tokenizer = load_tokenizer(args.run.parent.parent / "tokenizer")
    mode = args.mode or run.model.variant.inference_mode
    if mode not in run.model.modes:
        raise UserError(f"run {run.name!r} has no mode {mode!r}; it has {', '.join(run.model.modes)}")
    ids = encode_prompt(tokenizer, args.question)
    first = run.data.question_first > 0.5  # as most of what the run has seen
    asked = int(np.flatnonzero(ids == tokenizer.token_to_id(START))[-1]) if first else 0  # all but the answer's header
    for file in args.files:
        batch = prompt_batch(file, ids, run.data.static_frames, asked)
        with torch.no_grad(), autocast(run, device):
            answer = generate(model, batch.to(device), tokenizer.token_to_id(END), args.tokens, mode)
        print(f"{file}: {tokenizer.decode(answer).strip()}")
    return 0


def prompt_batch(file: Path, ids: np.ndarray, static_frames: int, asked: int) -> Batch:
    """A batch of one sample: the file's frames and the prompt, whose first `asked` tokens stand before them."""
    still = file.suffix.lower() in IMAGE_SUFFIXES
    try:
        frames = (decode_image(file) if still else decode_video(file)).frames
    except MediaError as error:
        raise UserError(f"{file} cannot be shown ({error.reason}: {error}); expected a video or an image") from error
    positions = static_frames if still else len(frames)
    sample = {"frames": frames, "positions": positions, "ids": ids, "mask": np.zeros(len(ids), dtype=bool)}
    return pack([{**sample, "question": asked, "key": file.name, "source": "yours"}])
