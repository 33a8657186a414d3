"""SmolVLM2 as a model that answers benchmarks, by the class of transformers, from a local folder.

It reads the frames that the project's models read: 224 x 224, scaled up to its size. Published scores are of larger
frames. Its processor is not used, since that needs torchvision; the prompt has the processor's form.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoTokenizer, PretrainedConfig
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from fvlm.errors import UserError, first_line
from fvlm.evaluate.frames import Frames

START, END = "<|im_start|>", "<end_of_utterance>"
IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty")


class SmolVLM2:
    """A folder with the weights of SmolVLM2; attributes and methods as those of `fvlm.use.answer.Answers`."""

    modes, sees, both_orders = ["direct"], True, False
    max_frames, static_frames = 64, 1

    def __init__(self, folder: Path, tokens: int):
        """raises   UserError if the folder holds another model, or no weights that can be read"""
        try:
            kind = PretrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
            if kind != "smolvlm":
                raise UserError(
                    f"{folder}: its model is {kind!r}; expected SmolVLM2, a finished run, or a folder of `fvlm export` "
                    "with its run.json"
                )
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            precision = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=precision, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: no weights of SmolVLM2 ({first_line(error)}); download all its files"
            ) from error
        self.model, self.name, self.tokens = model.to(self.device).eval(), folder.resolve().name, tokens
        self.weights = sorted([folder / "config.json", *folder.glob("*.safetensors")])
        self.settings = ("smolvlm", self.device.type, str(precision))
        self.size = model.config.vision_config.image_size
        per_side = self.size // model.config.vision_config.patch_size // model.config.scale_factor
        self.tokens_per_frame = per_side**2

    def crop(self, kind: str, default: bool) -> bool:
        return False  # its processor squashes frames to a square

    @torch.no_grad()
    def video(self, frames: Frames) -> "SmolVideo":
        """Return a video to ask about; its frames are encoded once."""
        pixels = torch.from_numpy(frames.frames).to(self.device).movedim(-1, 1).float() / 127.5 - 1
        parts = []
        for part in pixels.split(8) if len(pixels) else ():
            part = F.interpolate(part, (self.size, self.size), mode="bicubic", antialias=True)
            parts.append(self.model.get_image_features(part[None]).pooler_output[0])
        return SmolVideo(self, frames, torch.cat(parts).unflatten(0, (len(pixels), -1)) if parts else None)

    def text_of(self, frames: Frames, prompt: str) -> str:
        """Return the prompt in the form of SmolVLM2's processor, with the places of the frames."""
        place = f"{AROUND}{WHOLE}{IMAGE * self.tokens_per_frame}{AROUND}"
        if frames.still:
            return f"{START}User:{place}{prompt}{END}\nAssistant:"
        video = ""
        if len(frames.frames):
            last = int(frames.times_s[-1])
            clock = f"{last // 3600}:{last // 60 % 60:02d}:{last % 60:02d}"
            video = DEFAULT_VIDEO_INTRO.format(frame_count=_in_words(len(frames.frames)), video_duration=clock)
            for time in map(int, frames.times_s):
                video += FRAME_TIMESTAMP_MESSAGE.format(timestamp=f"{time // 60:02d}:{time % 60:02d}") + place
            video += DEFAULT_MEDIA_OUTTRO
        return f"{START}User: {video}{prompt}{END}\nAssistant:"

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), device=self.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.get_input_embeddings()(ids)[None]


class SmolVideo:
    """A video to ask about; the methods are those of `fvlm.use.answer.Video`.

    features    image tokens (T, tokens, E); None: no frames
    """

    def __init__(self, smol: SmolVLM2, frames: Frames, features: torch.Tensor | None):
        self.smol, self.frames, self.features = smol, frames, features

    def seen_in(self, mode: str, order: list[int]) -> "SmolVideo":
        return SmolVideo(self.smol, self.frames, self.features[order])

    @torch.no_grad()
    def losses(self, question: str, answers: Iterable[str], start: str = "") -> list[list[float]]:
        smol, result = self.smol, []
        output = smol.model(inputs_embeds=self._prompt(question, start), use_cache=True, logits_to_keep=1)
        cache, first = output.past_key_values, output.logits[0]
        for answer in answers:
            ids = smol.ids(f"{answer}{END}" if start else f" {answer}{END}")
            output = smol.model(inputs_embeds=smol.embed(ids), past_key_values=cache, use_cache=True)
            cache.crop(-len(ids))
            logits = torch.cat([first, output.logits[0, :-1]]).float()
            result.append(F.cross_entropy(logits, ids, reduction="none").tolist())
        return result

    @torch.no_grad()
    def ask(self, question: str, start: str = "") -> str:
        smol, prompt = self.smol, self._prompt(question, start)
        end = smol.tokenizer.convert_tokens_to_ids(END)
        options = {"max_new_tokens": smol.tokens, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        (ids,) = smol.model.generate(inputs_embeds=prompt, attention_mask=prompt.new_ones(prompt.shape[:2]), **options)
        return smol.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _prompt(self, question: str, start: str) -> torch.Tensor:
        """Return the embedded prompt (1, S, E): frames, question and the beginning of the answer."""
        smol = self.smol
        ids = smol.ids(smol.text_of(self.frames, question) + (f" {start}" if start else ""))
        embedded = smol.embed(ids)
        if self.features is not None:
            places = ids == smol.model.config.image_token_id
            embedded[0, places] = self.features.flatten(0, 1).to(embedded.dtype)
        return embedded


def _in_words(number: int) -> str:
    """Return a number below 70 in words."""
    if number < len(ONES):
        return ONES[number]
    tens, ones = TENS[number // 10 - 2], number % 10
    return f"{tens}-{ONES[ones]}" if ones else tens
