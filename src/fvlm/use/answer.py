"""Answers of a finished run about a video or an image, shown as the run's samples were."""

from pathlib import Path

import numpy as np
import torch

from fvlm.batch import Batch
from fvlm.config.schema import Data
from fvlm.data.batches.loader import pack
from fvlm.data.decode.media import MediaError
from fvlm.data.decode.video import decode_image, decode_video
from fvlm.data.shards.samples import evenly_spaced
from fvlm.data.shards.text import END, START, encode_prompt, load_tokenizer
from fvlm.device import autocast
from fvlm.errors import UserError
from fvlm.evaluate.load import load_run
from fvlm.model.generate import generate


class Answers:
    """A finished run that answers.

    folder  results/runs/NAME
    mode    of evaluation; None: autoregressive if the run has it
    tokens  longest answer
    """

    def __init__(self, folder: Path, mode: str | None, tokens: int):
        self.run, self.model, self.device = load_run(folder)
        self.tokenizer = load_tokenizer(folder.parent.parent / "tokenizer")
        self.mode, self.tokens = mode or self.run.model.variant.inference_mode, tokens

    @torch.no_grad()
    def answer(self, file: Path, question: str, still: bool, crop: bool) -> str:
        """Return the answer to a question about a file; `still` and `crop` as in `prompt_batch`."""
        ids = encode_prompt(self.tokenizer, question)
        first = 0
        if self.run.data.question_first > 0.5:  # as in most of the run's training samples
            first = int(np.flatnonzero(ids == self.tokenizer.token_to_id(START))[-1])  # all but the answer's header
        batch = prompt_batch(file, ids, self.run.data, first, still, crop)
        with autocast(self.run, self.device):
            end = self.tokenizer.token_to_id(END)
            answer = generate(self.model, batch.to(self.device), end, self.tokens, self.mode)
        return self.tokenizer.decode(answer).strip()


def prompt_batch(
    file: Path, ids: np.ndarray, data: Data, question: int, still: bool = False, crop: bool = True
) -> Batch:
    """Return a batch of one sample: the frames of a file, and a prompt.

    ids             (S,) tokens of the prompt, of which the first `question` stand before the frames
    data            settings of the run: the positions of an image, the most frames of a video
    still           the file is an image
    crop            the centre of each frame; False: the whole frame squashed to a square
    raises          UserError if the file is no video or image that can be decoded
    """
    try:
        frames = (decode_image(file, crop) if still else decode_video(file, crop=crop)).frames
    except MediaError as error:
        raise UserError(f"{file} cannot be decoded ({error.reason}: {error}); expected a video or an image") from error
    frames = frames[evenly_spaced(len(frames), data.max_frames)]
    positions = data.static_frames if still else len(frames)
    sample = {"frames": frames, "positions": positions, "ids": ids, "mask": np.zeros(len(ids), dtype=bool)}
    return pack([{**sample, "question": question, "key": file.name, "source": "yours"}])
