"""Tokenizer and ChatML: train a small byte-level BPE, and turn a sample into token ids and an answer mask.

Imports neither torch nor transformers, which take seconds: indexing and loading need only `tokenizers`.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fvlm.data.readers import Row, read_rows
from fvlm.errors import UserError, first_line

LARGEST_TOKENIZER = 256 << 20  # bytes of a tokenizer.json; those with 260,000 entries have 40 MB
LONGEST_TEXT = 1 << 20  # characters of one sample: a tokenizer takes 200 bytes or more for each
SYSTEM_PROMPT = "You are a helpful assistant."
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int, out: Path) -> Tokenizer:
    """Train a byte-level BPE with at most `vocabulary` entries and save it where `AutoTokenizer` can load it.

    raises      UserError for a vocabulary below 259: 256 bytes and 3 special tokens
    """
    if vocabulary < 259:
        raise UserError(f"vocabulary {vocabulary} is too small: 256 bytes and 3 special tokens need at least 259")
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
    making = out.with_name(out.name + ".part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    tokenizer.save(str(making / "tokenizer.json"))
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
    (making / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    _install(making, out)
    return tokenizer


def copy_tokenizer(name: str, out: Path) -> None:
    """Save a pretrained tokenizer, by hub name or folder, into `out`."""
    from transformers import AutoTokenizer

    making = out.with_name(out.name + ".part")
    shutil.rmtree(making, ignore_errors=True)
    _check_size(Path(name) / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more exact
        raise UserError(f"tokenizer {name!r} cannot be loaded: {first_line(error)}") from error
    tokenizer.save_pretrained(str(making))  # not within: a full disk is no fault of the tokenizer's
    _install(making, out)


def _install(making: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    os.replace(making, out)


def load_tokenizer(folder_or_name: Path | str) -> Tokenizer:
    """The tokenizer of a folder, or of a hub name (which imports transformers).

    raises      UserError if there is none, it cannot be read, or it has no ChatML tokens
    """
    name, file = str(folder_or_name), Path(folder_or_name) / "tokenizer.json"
    _check_size(file)
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # tokenizers raises nothing more exact
        raise UserError(f"no tokenizer {name!r}: {first_line(error)}") from error
    missing = [token for token in (START, END) if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(f"tokenizer {folder_or_name} lacks {' and '.join(missing)}; use one with ChatML tokens")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Text that spells a special token stays text: nobody ends the user's turn from within it.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_size(file: Path) -> None:
    """Refuse a file that is too large for a tokenizer, before it is read; raises UserError."""
    if file.is_file() and file.stat().st_size > LARGEST_TOKENIZER:
        raise UserError(
            f"{file}: {file.stat().st_size >> 20} MiB, more than {LARGEST_TOKENIZER >> 20}; that is no tokenizer: name "
            "another"
        )


def encode_chat(
    tokenizer: Tokenizer, sample: dict, max_tokens: int | None = None, system_prompt: str = SYSTEM_PROMPT
) -> tuple[np.ndarray, np.ndarray]:
    """A sample as ChatML, which is written out here so that no template adds a system prompt of its own.

    sample      {"messages"}, or {"user", "assistant"}, or {"token_ids", "loss_mask"} (tokenized already)
    max_tokens  a longer text is cut at its end; where that would leave no answer token, the first turns are
                shortened instead so that half of the tokens are answer
    returns     ids (S,) int32 and answer mask (S,) bool, True on what the assistant says and its <|im_end|>
    raises      ValueError, KeyError, TypeError or OverflowError for a sample that is none of these
    """
    if "token_ids" in sample:
        ids = np.asarray(sample["token_ids"], np.int32)
        mask = np.asarray(sample.get("loss_mask", np.ones(len(ids))), bool)
        if ids.ndim != 1 or ids.shape != mask.shape:
            raise ValueError(f"token_ids of shape {ids.shape} and a loss_mask of shape {mask.shape}")
    else:
        ids, mask = _encode_messages(tokenizer, _messages(sample, system_prompt))
    if max_tokens is None or len(ids) <= max_tokens:
        return ids, mask
    first = int(np.argmax(mask)) if mask.any() else 0
    if first >= max_tokens:
        answer = slice(first, first + max(1, max_tokens // 2))
        kept = max_tokens - len(ids[answer])
        own = min(kept, len(_answer_header(tokenizer)))
        head = np.r_[0 : kept - own, first - own : first]  # the turn's own header stays
        return np.concatenate([ids[head], ids[answer]]), np.concatenate([mask[head], mask[answer]])
    return ids[:max_tokens], mask[:max_tokens]


def question_length(tokenizer: Tokenizer, ids: np.ndarray, answer: np.ndarray) -> int:
    """How many tokens stand before the first answer's header, `<|im_start|>assistant` and a newline.

    ids, answer     as `encode_chat` gives them
    returns         0 where there is no answer, or another header before it
    """
    header = _answer_header(tokenizer)
    start = int(np.argmax(answer)) - len(header)
    return start if start > 0 and ids[start : start + len(header)].tolist() == header else 0


def _answer_header(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.token_to_id(START), *tokenizer.encode("assistant\n", add_special_tokens=False).ids]


def encode_prompt(tokenizer: Tokenizer, question: str, system_prompt: str = SYSTEM_PROMPT) -> np.ndarray:
    """A question up to where the assistant begins to speak: ids (S,) int32, for generation."""
    asked = [{"role": "system", "content": system_prompt}, {"role": "user", "content": question}]
    ids, _ = _encode_messages(tokenizer, asked)
    return np.concatenate([ids, np.array(_answer_header(tokenizer), np.int32)])


def _messages(sample: dict, system_prompt: str) -> list[dict]:
    messages = sample.get("messages") or [
        {"role": "user", "content": sample["user"]},
        {"role": "assistant", "content": sample["assistant"]},
    ]
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
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

    raises      ValueError for more text than a sample may have, TypeError for what is no text, UserError if the
                tokenizer gives up
    """
    length = sum(map(len, pieces))
    if length > LONGEST_TEXT:
        raise ValueError(f"a text of {length:,} characters, more than {LONGEST_TEXT:,}")
    try:
        return [piece.ids for piece in tokenizer.encode_batch_fast(pieces, add_special_tokens=False)]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, which nothing can import
            raise
        raise UserError(
            f"the tokenizer gives up on a text of {length:,} characters ({first_line(error)}); take another tokenizer"
        ) from error


def texts_of(row: Row, prompt: str) -> Iterator[str]:
    """Everything of a row that is said, for training a tokenizer."""
    for message in row.text.get("messages", ()):
        yield message["content"]
    for name in ("caption", "user", "assistant", "chosen", "rejected"):
        if name in row.text:
            yield row.text[name]
    yield row.prompt or prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tables", nargs="*", type=Path, help="tables (CSV, JSONL) whose texts are learnt from")
    parser.add_argument("--vocabulary", type=int, help="entries of a tokenizer trained on the tables")
    parser.add_argument("--weights", help="copy this pretrained tokenizer instead (hub name or folder)")
    parser.add_argument("--prompt", default="Describe the video.")
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
            "no text to learn a vocabulary from; it is learnt from tables of readers `folder` and `demo`: give one, or "
            "take a pretrained tokenizer (`tokenizer: {weights: NAME}` in the study)"
        )
    fixed = [f"{role}\n" for role in ("system", "user", "assistant")] + [SYSTEM_PROMPT]
    tokenizer = train_tokenizer(fixed + texts, args.vocabulary, args.out)
    print(f"tokenizer: {tokenizer.get_vocab_size()} entries from {len(texts)} texts", file=sys.stderr)
