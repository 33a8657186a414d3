"""The index of one shard, stored in a file of its own, so that a stopped index resumes with the other shards."""

import hashlib
import json
import mmap
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from fvlm.data.decode.media import MAX_FRAMES, MAX_IMAGE_BYTES, MAX_SAMPLE_BYTES, MAX_TEXT_BYTES, MediaError
from fvlm.data.decode.video import image_errors
from fvlm.data.shards.arrays import open_arrays, save_arrays
from fvlm.data.shards.ledger import ledger_line
from fvlm.data.shards.perceptual import perceptual_hash
from fvlm.data.shards.samples import check_image, image_suffixes, rejected_text, sample_text, video_suffixes
from fvlm.data.shards.tar import Entry, mapped, samples_of
from fvlm.data.shards.text import SYSTEM_PROMPT, encode_chat, largest_id, load_tokenizer, question_length
from fvlm.errors import UserError

LONGEST_KEY = 255  # characters; an index stores all keys with the length of the longest one
FORMAT = 5  # raise it after each change that changes the index of a shard
COLUMNS = {
    "offset": np.int64,
    "length": np.int64,
    "frames": np.int32,
    "text_tokens": np.int32,
    "answer_tokens": np.int32,
    "question_tokens": np.int32,
    "rejected_tokens": np.int32,
    "group": np.int64,
    "hashes": np.uint64,
    "keys": np.str_,
}


@dataclass(frozen=True)
class Work:
    """The settings for all shards of a source.

    prompt      the user's question if a sample has only a caption
    tokenizer   digest of the tokenizer in `tokenizer_folder`
    root        results folder
    parts       folder for the indices of the shards
    foreign     the shards were downloaded: their images are checked, and the ledger lists the kept samples too
    """

    source: str
    kind: str
    prompt: str
    tokenizer_folder: Path
    tokenizer: str
    root: Path
    parts: Path
    foreign: bool

    def name_of(self, shard: Path) -> str:
        """Name of a shard in indices: relative to the results folder, or absolute if it is outside."""
        path, home = Path(os.path.abspath(shard)), Path(os.path.abspath(self.root))
        if not path.is_relative_to(home):
            path, home = shard.resolve(), self.root.resolve()
        return str(path.relative_to(home) if path.is_relative_to(home) else path)

    def part_of(self, shard: Path) -> Path:
        """Path of a shard's index, with a digest of the path, since shards of several folders may have equal names."""
        folder = hashlib.sha256(self.name_of(shard).encode()).hexdigest()[:8]
        return self.parts / f"{shard.stem}-{folder}.npz"


def tokenizer_digest(folder: Path | str) -> str:
    """Return the SHA-256 of a folder's tokenizer.json; raises UserError if it is missing."""
    file = Path(folder) / "tokenizer.json"
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: no tokenizer ({error.strerror}); make it with `fvlm tokenizer`") from error


def index_shard(shard: Path, work: Work) -> "Part":
    """Return the index of a shard, and write it unless a current one exists.

    raises      UserError for a damaged tar, or one that differs from the checksum beside it
    """
    identity = _identity(shard, work)
    current = _read_part(work.part_of(shard), identity)
    if current is not None:
        return current
    name = work.name_of(shard) if work.foreign else shard.name
    about = {"source": work.source, "kind": work.kind, "shard": name}
    tokenizer = _tokenizer(work.tokenizer_folder, work.tokenizer)
    rows, lines, rejected = [], [], Counter()
    with mapped(shard) as data:
        check_sum(shard, data)
        for entry in _with_copies(samples_of(data, str(shard))):
            original, result = _describe(data, entry, tokenizer, work)
            about |= {"row": len(rows) + rejected.total(), "file": original, "key": entry.key}
            if isinstance(result, MediaError):
                rejected[result.reason] += 1
                lines.append(ledger_line(**about, reason=result.reason, message=str(result)))
                continue
            rows.append((entry.offset, entry.length, *result, entry.key))
            if work.foreign:
                lines.append(ledger_line(**about, frames=result[0]))
    values = {"identity": np.array(identity), "ledger": np.frombuffer("".join(lines).encode(), np.uint8)}
    values["rejected"] = np.array(json.dumps(rejected))
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    for (name, kind), column in zip(COLUMNS.items(), columns, strict=True):
        values[name] = np.array(column, kind)
    values["hashes"] = values["hashes"].reshape(-1, 2)
    save_arrays(work.part_of(shard), values)
    return _read_part(work.part_of(shard), identity)


@dataclass(frozen=True)
class Part:
    """The index of one shard: columns as in `Index`, and the number of rejected samples by reason."""

    path: Path
    columns: dict[str, np.ndarray]
    rejected: Counter

    def entries(self) -> list[dict]:
        """Entries of its ledger, with rows from 0. Not kept in memory: those of a large source need gigabytes."""
        with open_arrays(self.path) as stored:
            return [json.loads(line) for line in stored["ledger"].tobytes().splitlines()]


def _read_part(path: Path, identity: str) -> Part | None:
    """Return a stored index, or None if there is none with this identity."""
    try:
        with open_arrays(path) as stored:
            if str(stored["identity"]) != identity:
                return None
            columns = {name: stored[name] for name in COLUMNS}
            return Part(path, columns, Counter(json.loads(str(stored["rejected"]))))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _identity(shard: Path, work: Work) -> str:
    """Everything that the index of a shard depends on; raises UserError if the shard is missing or empty."""
    if not shard.is_file() or not shard.stat().st_size:
        raise UserError(f"{shard}: missing, or 0 bytes; make or copy the shard again")
    status = shard.stat()
    settings = {
        name: value for name, value in asdict(work).items() if name not in ("tokenizer_folder", "root", "parts")
    }
    about = {"shard": work.name_of(shard), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    about |= {"checksum": expected_sum(shard), "system_prompt": SYSTEM_PROMPT, "format": FORMAT}
    return json.dumps(settings | about)


@cache
def _tokenizer(folder: Path, digest: str) -> Tokenizer:
    return load_tokenizer(folder)


def expected_sum(shard: Path) -> str | None:
    """Return the SHA-256 in `{shard}.sha256`, a file of sha256sum, or None if there is no such file.

    raises      UserError if the file holds no SHA-256
    """
    file = shard.with_name(shard.name + ".sha256")
    if not os.path.lexists(file):
        return None
    words = []
    if file.is_file():  # reading a FIFO would block for ever
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                words = lines.read(4096).split()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; write it again or remove it") from error
    if not words or len(words[0]) != 64 or set(words[0].lower()) - set("0123456789abcdef"):
        raise UserError(
            f"{file}: found {' '.join(words)[:80]!r}, expected a line of `sha256sum {shard.name}`; write it "
            "again or remove it"
        )
    return words[0].lower()


def check_sum(shard: Path, data: mmap.mmap | bytes) -> None:
    """Compare a tar with the checksum beside it, if there is one; raises UserError if they differ."""
    expected = expected_sum(shard)
    if expected is None:
        return
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise UserError(
            f"{shard}: found SHA-256 {found}, expected {expected} ({shard.name}.sha256); make or copy the shard again"
        )


def _describe(data: mmap.mmap, entry: Entry, tokenizer: Tokenizer, work: Work) -> tuple[str | None, tuple | MediaError]:
    """Original file of a sample, or None; and its columns from `frames` to `hashes`, or its problem."""
    try:
        if entry.repeated:
            raise MediaError(
                "bad_sample",
                f"{entry.copies} members {entry.repeated!r} of the key {entry.key!r}, so it is unknown what belongs "
                "together; give each sample a name of its own",
            )
        _check_sizes(entry)
        text = {suffix: _content(data, entry, suffix) for suffix in ("json", "txt") if suffix in entry.members}
        sample = sample_text(text, work.prompt)
        ids, answer = encode_chat(tokenizer, sample)
        with_rejected = rejected_text(sample)
        rejected = 0 if with_rejected is None else len(encode_chat(tokenizer, with_rejected)[0])
        original = str(sample.get("file") or "")
        original.encode()  # fails for half of a surrogate pair, which a ledger cannot hold
        name = str(sample.get("video") or original).encode()
    except MediaError as error:
        return None, error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        return None, MediaError("bad_sample", f"no usable text ({type(error).__name__}: {error})")
    images = image_suffixes(entry.members)
    problem = _problem(images, entry, sample, ids, answer, tokenizer, work.kind)
    if problem is not None:
        return original or None, MediaError("bad_sample", problem)
    try:
        for suffix in images if work.foreign else ():
            check_image(suffix, _content(data, entry, suffix))
        hashes = _hashes(data, entry, images)
    except MediaError as error:
        return original or None, error
    if not name and images:  # samples of the same video begin with the same image
        name = _content(data, entry, images[0])
    elif not name:  # keys of downloaded tars may be equal
        name = ids.tobytes() if work.foreign else entry.key.encode()
    group = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
    lengths = len(ids), int(answer.sum()), question_length(tokenizer, ids, answer), rejected
    return original or None, (len(images), *lengths, group, hashes)


def _with_copies(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Each entry as often as it has samples, so that all of them are in the ledger."""
    return chain.from_iterable(repeat(entry, entry.copies) for entry in entries)


def _check_sizes(entry: Entry) -> None:
    """Refuse a sample that would need too much memory; raises MediaError too_large."""
    if len(entry.key) > LONGEST_KEY:
        raise MediaError("too_large", f"a key of {len(entry.key):,} characters, at most {LONGEST_KEY} are allowed")
    for suffix, (_, size) in entry.members.items():
        most = MAX_TEXT_BYTES if suffix in ("json", "txt") else MAX_IMAGE_BYTES
        if size > most:
            raise MediaError("too_large", f"{suffix}: {size:,} bytes, at most {most:,} are allowed")
    if entry.length > MAX_SAMPLE_BYTES:
        raise MediaError("too_large", f"{entry.length:,} bytes in all, at most {MAX_SAMPLE_BYTES:,} are allowed")


def _content(data: mmap.mmap, entry: Entry, suffix: str) -> bytes:
    offset, size = entry.members[suffix]
    return data[offset : offset + size]


def _hashes(data: mmap.mmap, entry: Entry, images: list[str]) -> tuple[int, int]:
    """Perceptual hashes of the first and the middle image; 0 without images.

    raises      MediaError corrupt, too_large
    """
    if not images:
        return 0, 0
    first, middle = images[0], images[len(images) // 2]
    hashes = {}
    for suffix in {first, middle}:
        try:
            with image_errors(suffix):
                hashes[suffix] = perceptual_hash(_content(data, entry, suffix))
        except MediaError as error:  # the suffix promises an image, so any other content is damage
            raise MediaError("too_large" if error.reason == "too_large" else "corrupt", str(error)) from error
    return hashes[first], hashes[middle]


def _problem(
    images: list[str], entry: Entry, sample: dict, ids: np.ndarray, answer: np.ndarray, tokenizer: Tokenizer, kind: str
) -> str | None:
    count, videos = sample.get("frame_count", len(images)), video_suffixes(entry.members)
    if videos and not images:
        return f"a video ({videos[0]}) and no images; such shards need `reader: video2dataset`"
    if count != len(images):
        return f"{len(images)} images, but frame_count is {count!r}"
    if len(images) > MAX_FRAMES:
        return f"{len(images)} images, at most {MAX_FRAMES} are allowed"
    if kind != "text" and not images:
        return "no image"
    largest = largest_id(tokenizer)
    if ids.size and not 0 <= ids.min() <= ids.max() <= largest:
        return f"token ids {ids.min()} to {ids.max()}, but the largest of the tokenizer is {largest}"
    return None if answer.any() else "no answer"
