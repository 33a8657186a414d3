"""SmolVLM2 as an answerer, by the class of transformers, from a local folder.

It reads the frames that the project's models read: 224 x 224, scaled up to its size. Published scores are of larger
frames. Its processor is not used, since that needs torchvision; the prompt has the processor's form.
"""

from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from fvlm.errors import UserError, first_line
from fvlm.evaluate.benchmarks.answerer import Sample
from fvlm.evaluate.benchmarks.shown import Shown

START, END = "<|im_start|>", "<end_of_utterance>"
IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty")


class SmolVLM2:
    """A folder with the weights of SmolVLM2; attributes and methods as those of `FinishedRun`."""

    modes, sees = ["direct"], True
    max_frames, static_frames = 64, 1

    def __init__(self, folder: Path):
        """raises   UserError if the folder holds another model, or no weights that can be read"""
        try:
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind != "smolvlm":
                raise UserError(f"{folder}: its model is {kind!r}; expected SmolVLM2, or the folder of a finished run")
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            precision = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=precision, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: no weights of SmolVLM2 ({first_line(error)}); download all its files"
            ) from error
        self.model, self.name = model.to(self.device).eval(), folder.resolve().name
        self.weights = sorted([folder / "config.json", *folder.glob("*.safetensors")])
        self.computed = ("smolvlm", self.device.type, str(precision))
        self.size = model.config.vision_config.image_size
        per_side = self.size // model.config.vision_config.patch_size // model.config.scale_factor
        self.tokens_per_frame = per_side**2
        self._seen: tuple[object, torch.Tensor] = (None, torch.empty(0))

    def crop(self, kind: str, default: bool) -> bool:
        return False  # its processor squashes frames to a square

    @torch.no_grad()
    def losses(self, samples: list[Sample], mode: str) -> list[list[float]]:
        """As `FinishedRun.losses`; a prompt that several samples share is read once."""
        result: list[list[float]] = []
        before, cache, last = None, None, None
        for sample in samples:
            if before is None or (sample.shown, sample.prompt) != (before.shown, before.prompt):
                cache, last = self._read(sample.shown, sample.prompt)
            before = sample
            ids = self._ids(f" {sample.answer}{END}")
            output = self.model(inputs_embeds=self._embed(ids), past_key_values=cache, use_cache=True)
            cache.crop(-len(ids))
            logits = torch.cat([last, output.logits[0, :-1]]).float()
            result.append(F.cross_entropy(logits, ids, reduction="none").tolist())
        return result

    @torch.no_grad()
    def generated(self, shown: Shown, prompt: str, tokens: int) -> str:
        cache, last = self._read(shown, prompt)
        end, answer = self.tokenizer.convert_tokens_to_ids(END), []
        while len(answer) < tokens and (token := int(last.argmax())) != end:
            answer.append(token)
            embedded = self._embed(torch.tensor([token], device=self.device))
            last = self.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).logits[0, -1:]
        return self.tokenizer.decode(answer).strip()

    def _read(self, shown: Shown, prompt: str):
        """Return the cache behind frames and prompt, and the logits (1, V) of the next token."""
        ids = self._ids(self.text_of(shown, prompt))
        embedded = self._embed(ids)
        if len(shown.frames):
            order = list(shown.order or range(len(shown.frames)))
            features = self._features(shown)[order].flatten(0, 1)
            embedded[0, ids == self.model.config.image_token_id] = features.to(embedded.dtype)
        output = self.model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1)
        return output.past_key_values, output.logits[0]

    def text_of(self, shown: Shown, prompt: str) -> str:
        """Return the prompt in the form of SmolVLM2's processor, with the places of the frames."""
        place = f"{AROUND}{WHOLE}{IMAGE * self.tokens_per_frame}{AROUND}"
        if shown.still:
            return f"{START}User:{place}{prompt}{END}\nAssistant:"
        frames = ""
        if len(shown.frames):
            last = int(shown.times_s[-1])
            clock = f"{last // 3600}:{last // 60 % 60:02d}:{last % 60:02d}"
            frames = DEFAULT_VIDEO_INTRO.format(frame_count=_in_words(len(shown.frames)), video_duration=clock)
            for time in map(int, shown.times_s):
                frames += FRAME_TIMESTAMP_MESSAGE.format(timestamp=f"{time // 60:02d}:{time % 60:02d}") + place
            frames += DEFAULT_MEDIA_OUTTRO
        return f"{START}User: {frames}{prompt}{END}\nAssistant:"

    def _features(self, shown: Shown) -> torch.Tensor:
        """Return the image tokens (T, tokens, E) of frames; those of the last frames are kept."""
        if self._seen[0] is not shown.frames:
            pixels = torch.from_numpy(shown.frames).to(self.device).movedim(-1, 1).float() / 127.5 - 1
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
            parts = [self.model.get_image_features(one[None]).pooler_output[0] for one in pixels.split(8)]
            self._seen = shown.frames, torch.cat(parts).unflatten(0, (len(pixels), -1))
        return self._seen[1]

    def _ids(self, text: str) -> torch.Tensor:
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), device=self.device)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.get_input_embeddings()(ids)[None]


def _in_words(number: int) -> str:
    """Return a number below 70 in words."""
    if number < len(ONES):
        return ONES[number]
    tens, ones = TENS[number // 10 - 2], number % 10
    return f"{tens}-{ONES[ones]}" if ones else tens
