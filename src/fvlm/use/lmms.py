"""An exported folder as the model `fvlm` of lmms-eval; runs in the environment of lmms-eval, not in this project's.

So it imports nothing else of this project. The code of the model is in the exported folder.
"""

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

MANIFEST = ModelManifest("fvlm", simple_class_path="fvlm.use.lmms.Fvlm")  # simple: a chat class has no losses
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# What a task may set of `generate`. Its other settings are for other models, such as image_aspect_ratio of LLaVA.
SETTINGS = ("max_new_tokens", "num_beams", "repetition_penalty")
DRAWING = ("temperature", "top_p", "top_k")


class Fvlm(lmms):
    """The arguments are those of --model_args, --device and --batch_size.

    pretrained  folder of `fvlm export`
    dtype       for example bfloat16; auto: that of the folder, float32
    mode        coarse_only, coarse_fine or autoregressive; None: the one of inference
    batch_size  answers that are generated at once
    """

    is_simple = True

    def __init__(self, pretrained, dtype="auto", mode=None, device=None, batch_size=1, max_batch_size=None):
        super().__init__()
        folder = Path(str(pretrained))
        if not (folder / "config.json").is_file():
            raise ValueError(f"pretrained={folder}: no such model; expected a folder of `fvlm export`")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size}; expected a number of at least 1")
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        self.device, self.mode, self.batch_size = torch.device(device or own), mode, int(batch_size)
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
        self.model = model.to(self.device).eval()

    @torch.no_grad()
    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the generated answer of each request."""
        places: dict[str, list[int]] = {}  # of requests with the same settings
        for place, request in enumerate(requests):
            places.setdefault(repr(request.args[1]), []).append(place)
        answers = [""] * len(requests)
        batches = [
            same[i : i + self.batch_size] for same in places.values() for i in range(0, len(same), self.batch_size)
        ]
        for batch in self._progress(batches):
            texts = self._generated([self._chat(requests[place]) for place in batch], requests[batch[0]].args[1])
            for place, text in zip(batch, texts, strict=True):
                answers[place] = text
        return answers

    @torch.no_grad()
    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Return (loss of the target in nats, whether each of its tokens is the most likely one) of each request.

        In spite of the name, lmms-eval takes the lowest value as the best. A GenerationResult is passed on as it is;
        of a plain pair, lmms-eval makes a text, which its own scoring cannot read.
        """
        results = []
        by_prompt = [list(same) for _, same in groupby(requests, lambda request: (request.args[0], request.args[3:]))]
        for same in self._progress(by_prompt):
            results += [GenerationResult(pair) for pair in self._losses(self._chat(same[0]), map(self._target, same))]
        return results

    def generate_until_multi_round(self, requests: list[Instance]):
        raise NotImplementedError("fvlm answers once; leave out tasks with output_type generate_until_multi_round")

    def _chat(self, request: Instance) -> list[dict]:
        context, _, doc_to_visual, doc, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc]) or []
        parts = _few([part for visual in visuals for part in _parts(visual)], self.processor.max_frames)
        return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]

    def _target(self, request: Instance) -> str:
        _, target, _, doc, task, split = request.args
        target = target(self.task_dict[task][split][doc]) if callable(target) else target
        target = target.removeprefix(" ")  # of tasks for continued texts; an answer in a chat starts without it
        if not target:
            raise ValueError(f"{task}, question {doc}: an option is empty; end the options with <|im_end|>")
        return target

    def _inputs(self, chats: list[list[dict]]):
        inputs = self.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
        return inputs.to(device=self.device, dtype=self.model.dtype)

    def _generated(self, chats: list[list[dict]], settings: dict) -> list[str]:
        kept = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
        kept["do_sample"] = bool(settings.get("temperature")) and settings.get("do_sample", True)
        if kept["do_sample"]:
            kept |= {name: settings[name] for name in DRAWING if settings.get(name) is not None}
        inputs = self._inputs(chats)
        ids = self.model.generate(**inputs, **kept, mode=self.mode)[:, inputs["input_ids"].shape[1] :]
        until = settings.get("until") or []
        ends = [until] if isinstance(until, str) else [end for end in until if end]
        return [_before(text, ends) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    def _losses(self, chat: list[dict], targets: Iterator[str]) -> list[tuple[float, bool]]:
        """Return (loss, greedy) of each target; the prompt is read once, and all targets continue its cache."""
        tokenizer = self.processor.tokenizer  # a target may end with <|im_end|>, so that the end of the answer counts
        ids = [torch.tensor(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in targets]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)
        prompt = self.model(**self._inputs([chat]), mode=self.mode, use_cache=True, logits_to_keep=1)
        logits = prompt.logits.expand(len(ids), -1, -1)
        if padded.shape[1] > 1:
            prompt.past_key_values.batch_repeat_interleave(len(ids))
            more = self.model(input_ids=padded[:, :-1], past_key_values=prompt.past_key_values).logits
            logits = torch.cat([logits, more], 1)
        nats = -logits.float().log_softmax(-1).gather(2, padded[..., None])[..., 0]
        greedy = logits.argmax(-1) == padded
        return [
            (float(nats[i, : len(target)].sum()), bool(greedy[i, : len(target)].all())) for i, target in enumerate(ids)
        ]

    def _progress(self, items: list):
        return tqdm(items, desc="fvlm", disable=self.rank > 0)


def _parts(visual) -> Iterator[dict]:
    """Yield the pictures or the video of what a task shows: a PIL image, a file, or a folder of frames."""
    if isinstance(visual, Image.Image):
        yield {"type": "image", "image": visual}
    elif not isinstance(visual, str | Path):
        raise NotImplementedError(
            f"a task shows a {type(visual).__name__}; expected images, whole videos or folders of frames: sound and "
            "parts of videos are not supported"
        )
    elif Path(visual).is_dir():
        files = sorted(file for file in Path(visual).iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise FileNotFoundError(f"{visual}: no frames; expected files that end in {', '.join(PICTURES)}")
        yield from ({"type": "image", "path": str(file)} for file in files)
    else:
        kind = "image" if Path(visual).suffix.lower() in PICTURES else "video"
        yield {"type": kind, "path": str(visual)}


def _few(parts: list[dict], most: int) -> list[dict]:
    """Return at most so many of several pictures, evenly spaced, as of a video."""
    if len(parts) <= most or any(part["type"] == "video" for part in parts):
        return parts
    return [parts[i * len(parts) // most] for i in range(most)]


def _before(text: str, ends: list[str]) -> str:
    for end in ends:
        text = text.split(end)[0]
    return text
