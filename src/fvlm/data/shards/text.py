"""Tokenizer and ChatML: train a small byte-level BPE, and turn a sample into token ids and an answer mask.

Indexing and loading need only `tokenizers`, so this module does not import torch or transformers, which takes seconds.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fvlm.data.readers import Row, read_rows
from fvlm.errors import UserError, first_line
from fvlm.hub import only_local

LARGEST_TOKENIZER = 256 << 20  # bytes of a tokenizer.json; one with 260,000 entries has 40 MB
LONGEST_TEXT = 1 << 20  # characters of one sample; a tokenizer needs 200 bytes or more for each
SYSTEM_PROMPT = "You are a helpful assistant."
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int, out: Path) -> Tokenizer:
    """Train a byte-level BPE with at most `vocabulary` entries and save it in a form that `AutoTokenizer` loads.

    raises      UserError for a vocabulary below 259: 256 bytes and 3 special tokens
    """
    if vocabulary < 259:
        raise UserError(f"vocabulary {vocabulary} is too small; 256 bytes and 3 special tokens need at least 259")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
    }
    with _replaced(out) as folder:
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return tokenizer


def copy_tokenizer(name: str, out: Path) -> None:
    """Save a pretrained tokenizer, given by its hub name or folder, in `out`."""
    from transformers import AutoTokenizer

    _check_size(Path(name) / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=only_local(name))
    except Exception as error:  # the library has no specific exception
        raise UserError(
            f"tokenizer {name!r} cannot be loaded: {first_line(error)}; give a folder with tokenizer.json, or download "
            "it first where there is no network"
        ) from error
    with _replaced(out) as folder:
        tokenizer.save_pretrained(str(folder))


@contextlib.contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A folder to write, which then replaces `out`."""
    folder = out.with_name(out.name + ".part")
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(out, ignore_errors=True)
    os.replace(folder, out)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Return the tokenizer of a folder.

    raises      UserError if it is missing, cannot be read, or lacks the ChatML tokens
    """
    file = Path(folder) / "tokenizer.json"
    _check_size(file)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no specific exception
        raise UserError(f"{file}: no tokenizer ({first_line(error)}); make it with `fvlm tokenizer`") from error
    missing = [token for token in (START, END) if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(f"{file}: the tokenizer lacks {' and '.join(missing)}; use one with ChatML tokens")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Text that spells a special token stays text, so it cannot end the user's turn.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_size(file: Path) -> None:
    """Refuse a file that is too large for a tokenizer; raises UserError."""
    if file.is_file() and file.stat().st_size > LARGEST_TOKENIZER:
        size, most = file.stat().st_size >> 20, LARGEST_TOKENIZER >> 20
        raise UserError(f"{file}: {size} MiB, expected at most {most}; use another tokenizer")


def encode_chat(tokenizer: Tokenizer, sample: dict, max_tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return a sample as ChatML; not by a chat template, which may add a system prompt of its own.

    sample      {"messages"}, or {"user", "assistant"}, or already tokenized {"token_ids", "loss_mask"}
    max_tokens  a longer text is cut at its end; if no answer token would be left, the first turns are shortened
                instead, so that half of the tokens belong to the answer
    returns     ids (S,) int32 and answer mask (S,) bool, True for the assistant's text and its <|im_end|>
    raises      ValueError, KeyError, TypeError or OverflowError for any other sample
    """
    if "token_ids" in sample:
        ids = np.asarray(sample["token_ids"], np.int32)
        mask = np.asarray(sample.get("loss_mask", np.ones(len(ids))), bool)
        if ids.ndim != 1 or ids.shape != mask.shape:
            raise ValueError(f"token_ids of shape {ids.shape} and a loss_mask of shape {mask.shape}")
    else:
        ids, mask = _encode_messages(tokenizer, _messages(sample))
    if max_tokens is None or len(ids) <= max_tokens:
        return ids, mask
    first = int(np.argmax(mask)) if mask.any() else 0
    if first >= max_tokens:
        answer = slice(first, first + max(1, max_tokens // 2))
        kept = max_tokens - len(ids[answer])
        own = min(kept, len(_answer_header(tokenizer)))
        head = np.r_[0 : kept - own, first - own : first]  # keeps the header of the answer
        return np.concatenate([ids[head], ids[answer]]), np.concatenate([mask[head], mask[answer]])
    return ids[:max_tokens], mask[:max_tokens]


def question_length(tokenizer: Tokenizer, ids: np.ndarray, answer: np.ndarray) -> int:
    """Return the number of tokens before the header of the first answer, `<|im_start|>assistant` and a newline.

    ids, answer     results of `encode_chat`
    returns         0 if there is no answer, or if another header precedes it
    """
    header = _answer_header(tokenizer)
    start = int(np.argmax(answer)) - len(header)
    return start if start > 0 and ids[start : start + len(header)].tolist() == header else 0


def _answer_header(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.token_to_id(START), *tokenizer.encode("assistant\n", add_special_tokens=False).ids]


@cache
def largest_id(tokenizer: Tokenizer) -> int:
    """The largest token id. Ids may have holes, so it can be larger than the number of entries."""
    return max(tokenizer.get_vocab().values())


def encode_prompt(tokenizer: Tokenizer, question: str, earlier: Iterable[tuple[str, str]] = ()) -> np.ndarray:
    """Return a question with the header of its answer, for generation: ids (S,) int32.

    earlier     questions and answers of the conversation before it
    """
    messages = [{"role": "system", "content": SYSTEM_PROMPT}]
    for before, answer in earlier:
        messages += [{"role": "user", "content": before}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": question})
    ids, _ = _encode_messages(tokenizer, messages)
    return np.concatenate([ids, np.array(_answer_header(tokenizer), np.int32)])


def _messages(sample: dict) -> list[dict]:
    messages = sample.get("messages") or [
        {"role": "user", "content": sample["user"]},
        {"role": "assistant", "content": sample["assistant"]},
    ]
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, *messages]
    return messages


def _encode_messages(tokenizer: Tokenizer, messages: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    pieces = ["\n"] + [text for message in messages for text in (f"{message['role']}\n", message["content"])]
    encoded = _encode(tokenizer, pieces)
    newline, ids, mask = encoded[0], [], []
    for i, message in enumerate(messages):
        header, content = encoded[1 + 2 * i], encoded[2 + 2 * i]
        ids += [start, *header, *content, end, *newline]
        spoken = message["role"] == "assistant"
        mask += [False] * (1 + len(header)) + [spoken] * (len(content) + 1) + [False] * len(newline)
    return np.array(ids, np.int32), np.array(mask, bool)


def _encode(tokenizer: Tokenizer, pieces: list[str]) -> list[list[int]]:
    """Token ids of each text.

    raises      ValueError if the texts are too long, TypeError if one is no text, UserError if the tokenizer fails
    """
    for piece in pieces:
        if not isinstance(piece, str):
            raise TypeError(f"a content is {type(piece).__name__}, expected a text")
    length = sum(map(len, pieces))
    if length > LONGEST_TEXT:
        raise ValueError(f"a text of {length:,} characters, more than {LONGEST_TEXT:,}")
    try:
        return [piece.ids for piece in tokenizer.encode_batch_fast(pieces, add_special_tokens=False)]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # raised by Rust; it cannot be imported
            raise
        raise UserError(
            f"the tokenizer fails on a text of {length:,} characters ({first_line(error)}); use another tokenizer"
        ) from error


def texts_of(row: Row, prompt: str) -> Iterator[str]:
    """All texts of a row, to train a tokenizer."""
    for message in row.text.get("messages", ()):
        yield message["content"]
    for name in ("caption", "user", "assistant", "chosen", "rejected"):
        if name in row.text:
            yield row.text[name]
    yield row.prompt or prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tables", nargs="*", type=Path, help="tables (CSV, JSONL) with the texts to train on")
    parser.add_argument("--vocabulary", type=int, help="train a tokenizer with this many entries on the tables")
    parser.add_argument("--weights", help="copy this pretrained tokenizer instead (hub name or folder)")
    parser.add_argument("--prompt", default="Describe the video.", help="question for rows with only a caption")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def main(args: argparse.Namespace) -> None:
    if (args.weights is None) == (args.vocabulary is None):
        raise UserError("expected either --weights or --vocabulary with tables")
    if args.weights is not None:
        copy_tokenizer(args.weights, args.out)
        return
    rows = [row for table in args.tables for row in read_rows(table.parent, table.name) if row.problem is None]
    texts = [text for row in rows for text in texts_of(row, args.prompt)]
    if not texts:
        raise UserError(
            "no text to train a tokenizer on; give a table of reader `folder` or `demo`, or use a pretrained tokenizer "
            "(`tokenizer: {weights: NAME}` in the study)"
        )
    fixed = [f"{role}\n" for role in ("system", "user", "assistant")] + [SYSTEM_PROMPT]
    tokenizer = train_tokenizer(fixed + texts, args.vocabulary, args.out)
    print(f"tokenizer: {tokenizer.get_vocab_size()} entries from {len(texts)} texts", file=sys.stderr)
