"""`fvlm caption FILE --run results/runs/stage3`: caption a video, or answer a question about it."""

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
    parser.add_argument(
        "--question", default="Say what happens in the video.", help="question or instruction (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=60, help="longest answer, in tokens (default: %(default)s)")
    parser.add_argument(
        "--mode",
        default=None,
        help="coarse_only, coarse_fine or autoregressive (default: autoregressive if the run has it)",
    )


def main(args) -> int:
    run, model, device = load_run(args.run)
    tokenizer = load_tokenizer(args.run.parent.parent / "tokenizer")
    mode = args.mode or run.model.variant.inference_mode
    ids = encode_prompt(tokenizer, args.question)
    question = 0
    if run.data.question_first > 0.5:  # as in most of the run's training samples
        question = int(np.flatnonzero(ids == tokenizer.token_to_id(START))[-1])  # all but the header of the answer
    for file in args.files:
        batch = prompt_batch(file, ids, run.data.static_frames, question)
        with torch.no_grad(), autocast(run, device):
            answer = generate(model, batch.to(device), tokenizer.token_to_id(END), args.tokens, mode)
        print(f"{file}: {tokenizer.decode(answer).strip()}")
    return 0


def prompt_batch(file: Path, ids: np.ndarray, static_frames: int, question: int) -> Batch:
    """Return a batch of one sample: the frames of a file, and a prompt.

    ids             (S,) tokens of the prompt, of which the first `question` stand before the frames
    static_frames   visual positions of an image
    raises          UserError if the file is no video or image that can be decoded
    """
    still = file.suffix.lower() in IMAGE_SUFFIXES
    try:
        frames = (decode_image(file) if still else decode_video(file)).frames
    except MediaError as error:
        raise UserError(f"{file} cannot be decoded ({error.reason}: {error}); expected a video or an image") from error
    positions = static_frames if still else len(frames)
    sample = {"frames": frames, "positions": positions, "ids": ids, "mask": np.zeros(len(ids), dtype=bool)}
    return pack([{**sample, "question": question, "key": file.name, "source": "yours"}])
