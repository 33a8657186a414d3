"""A program that uses exported folders with transformers alone: `python use_exported.py CHATS.json FOLDER...`.

It stops if anything imports this project. The chats are asked one by one and all together, in several ways; what comes
out is written beside each folder.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline

TRUSTED = {"trust_remote_code": True, "local_files_only": True}
PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}


def answers(model, inputs, **options) -> list[list[int]]:
    """The generated tokens of each row up to the one that ends an answer."""
    found = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in found]


def use(folder: str, chats: list) -> dict:
    """Everything that a test compares."""
    config = AutoConfig.from_pretrained(folder, **TRUSTED)
    processor = AutoProcessor.from_pretrained(folder, **TRUSTED)
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **TRUSTED)
    problems = {key: sorted(map(str, names)) for key, names in info.items() if names}
    used = {"architecture": config.architecture, "problems": problems}

    alone = [processor.apply_chat_template(chat, **PROMPT) for chat in chats]
    together = processor.apply_chat_template(chats, **PROMPT)
    used["ids"] = [inputs["input_ids"][0].tolist() for inputs in alone]
    used["pixels"] = [inputs["pixel_values"][0] if "pixel_values" in inputs else None for inputs in alone]
    used["alone"] = [answers(model, inputs)[0] for inputs in alone]
    used["texts"] = [processor.decode(tokens, skip_special_tokens=True).strip() for tokens in used["alone"]]
    used["together"] = answers(model, together)
    used["uncached"] = answers(model, together, use_cache=False)
    used["static"] = answers(model, together, cache_implementation="static")
    used["some beams"] = [len(row) for row in answers(model, together, num_beams=3)]
    eager = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", **TRUSTED)
    used["eager"] = answers(eager, together)

    pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
    used["pipeline"] = [pipe(text=chat, return_full_text=False)[0]["generated_text"].strip() for chat in chats]

    half = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, **TRUSTED)
    used["bfloat16"] = half(**together.to(dtype=torch.bfloat16)).logits
    used["float32"] = model(**processor.apply_chat_template(chats, **PROMPT)).logits

    again = Path(folder).with_suffix(".again")
    model.save_pretrained(again)
    processor.save_pretrained(again)
    reloaded = AutoModelForImageTextToText.from_pretrained(again, **TRUSTED)
    inputs = AutoProcessor.from_pretrained(again, **TRUSTED).apply_chat_template(chats, **PROMPT)
    used["saved again"] = answers(reloaded, inputs)
    return used


if __name__ == "__main__":
    sys.modules["fvlm"] = None  # an import of it fails
    questions = json.loads(Path(sys.argv[1]).read_text())
    with torch.no_grad():
        for path in sys.argv[2:]:
            torch.save(use(path, questions), Path(path).with_suffix(".used"))
