"""Index WebDataset tars: where each sample lies, how many frames and text tokens it has.

Works on the shards of this package and on finished ones from elsewhere; a sample is the raw bytes of its
members, so a loader reads it with one seek.
"""

import argparse
import hashlib
import io
import json
import mmap
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import simplejpeg

from fvlm.config import add_study_arguments, study_of
from fvlm.data.media import SIDE
from fvlm.data.sources import tars_of
from fvlm.data.text import encode_chat, load_tokenizer
from fvlm.data.video import square_image
from fvlm.errors import UserError

BLOCK = 512
IMAGE = re.compile(r"(?:\d+\.)?(?:jpg|jpeg|png|webp)")


@dataclass(frozen=True)
class Index:
    """One row per usable sample of a source; every array has length n unless it says otherwise.

    shards          (k,) paths of the tars, relative to the results folder or absolute
    shard           int32, position in `shards`
    offset, length  int64, bytes: the sample's members with their headers
    frames          int32, images; 0 for text
    text_tokens     int32, of the whole chat, before any cut; of a preference pair with the chosen answer
    answer_tokens   int32, of these the ones the assistant says
    group           int64, the same for samples of the same original file, evenly spread over [0, 2^63)
    keys            names, unique within the source
    kind, source    one name each
    rejected        samples that were left out
    """

    shards: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    frames: np.ndarray
    text_tokens: np.ndarray
    answer_tokens: np.ndarray
    group: np.ndarray
    keys: np.ndarray
    kind: str
    source: str
    rejected: int

    def __len__(self) -> int:
        return len(self.keys)


def members_of(data: mmap.mmap | bytes, file: str, start: int = 0) -> Iterator[tuple[str, int, int, int]]:
    """Name, offset of the first header, offset of the content, size of each regular member of a tar.

    raises      UserError naming file and offset where the tar is cut or damaged
    """
    offset, named = start, None  # `named`: name and first header of a member with a long name
    while offset + BLOCK <= len(data):
        header = data[offset : offset + BLOCK]
        if header[0] == 0 and not any(header):
            return
        try:
            checksum = int(header[148:156].strip(b"\0 ") or b"0", 8)
            size = _number(header[124:136])
        except ValueError as error:
            raise UserError(f"{file}: no tar header at byte {offset}; make or copy the file again") from error
        if checksum != sum(header) - sum(header[148:156]) + 8 * 32:
            raise UserError(f"{file}: damaged tar header at byte {offset}; make or copy the file again")
        content = offset + BLOCK
        following = content + -(-size // BLOCK) * BLOCK
        if following > len(data):
            raise UserError(f"{file}: cut within the member at byte {offset}; make or copy the file again")
        kind, first = header[156:157], offset if named is None else named[1]
        if kind in (b"L", b"x"):  # GNU and PAX long names stand in a member of their own
            named = (_long_name(bytes(data[content : content + size]), kind), first)
        else:
            if kind in (b"0", b"\0"):
                yield (named and named[0]) or _short_name(header), first, content, size
            named = None
        offset = following
    raise UserError(f"{file}: ends at byte {len(data)} without the mark that ends a tar; make or copy it again")


def _number(field: bytes) -> int:
    """Octal text, or base 256 for sizes of 8 GiB and more."""
    return int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b"\0 ") or b"0", 8)


def _short_name(header: bytes) -> str:
    parts = (header[:100], header[345:500])
    name, prefix = (part.split(b"\0", 1)[0].decode("utf-8", "replace") for part in parts)
    posix = header[257:265] == b"ustar\x0000"  # GNU's header has other things where POSIX has the prefix
    return f"{prefix}/{name}" if prefix and posix else name


def _long_name(content: bytes, kind: bytes) -> str | None:
    if kind == b"L":
        return content.rstrip(b"\0").decode("utf-8", "replace")
    found = re.search(rb"\d+ path=([^\n]*)\n", content)
    return found[1].decode("utf-8", "replace") if found else None


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix: a WebDataset key ends at the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return folder + slash + key, suffix


@dataclass(frozen=True)
class Entry:
    """One sample in a tar: `members` maps suffixes to (offset, size) of their content."""

    key: str
    offset: int
    length: int
    members: dict[str, tuple[int, int]]


def samples_of(data: mmap.mmap | bytes, file: str) -> Iterator[Entry]:
    """Members grouped by key; raises UserError if a key comes back after another one."""
    seen: set[str] = set()
    key, start, end, members = None, 0, 0, {}
    for name, first, content, size in members_of(data, file):
        found, suffix = split_name(name)
        if found != key:
            if key is not None:
                yield Entry(key, start, end - start, members)
            if found in seen:
                raise UserError(f"{file}: key {found!r} comes back at byte {first}; sort the tar's members by key")
            seen.add(found)
            key, start, members = found, first, {}
        members[suffix] = (content, size)
        end = content + -(-size // BLOCK) * BLOCK
    if key is not None:
        yield Entry(key, start, end - start, members)


def read_sample(file: Path | str, offset: int, length: int) -> dict[str, bytes]:
    """Content of a sample's members by suffix, such as `000.jpg` and `json`."""
    with open(file, "rb") as tar:
        tar.seek(offset)
        raw = tar.read(length)
    if len(raw) < length:
        raise UserError(f"{file}: {len(raw)} of {length} bytes at byte {offset}; make its index again")
    members = members_of(raw + bytes(BLOCK), str(file))
    return {split_name(name)[1]: raw[content : content + size] for name, _, content, size in members}


def sample_text(members: dict[str, bytes], prompt: str) -> dict:
    """What is said in a sample, in a form that `encode_chat` takes, and `file` where it is known.

    prompt      what the user asks where there is only a caption
    raises      ValueError if there is no text
    """
    described = json.loads(members["json"]) if "json" in members else {}
    if not isinstance(described, dict):
        raise ValueError("json is no object")
    if described.get("token_ids") or described.get("messages") or "assistant" in described:
        return described
    if "chosen" in described:
        return {**described, "assistant": described["chosen"]}
    caption = described.get("caption") or members.get("txt", b"").decode("utf-8").strip()
    if not caption:
        raise ValueError("neither messages, assistant, token_ids nor a caption")
    return {**described, "user": prompt, "assistant": caption}


def decode_frames(members: dict[str, bytes]) -> np.ndarray:
    """Images of a sample in the order of their names, (T, 224, 224, 3) uint8; T = 0 for text."""
    frames = [_decode(members[suffix]) for suffix in sorted(members) if IMAGE.fullmatch(suffix)]
    return np.stack(frames) if frames else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def _decode(content: bytes) -> np.ndarray:
    if content[:2] == b"\xff\xd8" and simplejpeg.decode_jpeg_header(content)[:2] == (SIDE, SIDE):
        return simplejpeg.decode_jpeg(content, "RGB")
    return square_image(io.BytesIO(content))[0]


def write_index(
    shards: list[Path], out: Path, source: str, kind: str, tokenizer_folder: Path, prompt: str, root: Path
) -> Index:
    """Index the tars of a source and write `out` (npz), beside and then renamed.

    prompt      as in `sample_text`
    root        results folder; a shard inside it is stored relative to it, another one absolute
    raises      UserError for a damaged tar or a key that occurs twice
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    rows, rejected = [], Counter()
    for number, shard in enumerate(shards):
        if not shard.is_file() or not shard.stat().st_size:
            raise UserError(f"{shard}: missing or 0 bytes; make or copy the shard again")
        with open(shard, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for entry in samples_of(data, str(shard)):
                row = _describe(data, entry, tokenizer, prompt, kind)
                if isinstance(row, str):
                    rejected[row] += 1
                else:
                    rows.append((number, entry.offset, entry.length, *row, entry.key))
    keys = [row[-1] for row in rows]
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise UserError(f"source {source!r}: key {twice!r} is in its shards more than once; make keys unique")
    for reason, count in rejected.most_common():
        print(f"index {source}: {count} samples rejected: {reason}", file=sys.stderr)
    columns = list(zip(*rows, strict=True)) or [()] * 8
    types = (np.int32, np.int64, np.int64, np.int32, np.int32, np.int32, np.int64, np.str_)
    arrays = [np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)]
    inside = [shard.resolve().is_relative_to(root.resolve()) for shard in shards]
    names = [
        str(shard.resolve().relative_to(root.resolve()) if here else shard.resolve())
        for shard, here in zip(shards, inside, strict=True)
    ]
    index = Index(np.array(names, np.str_), *arrays, kind=kind, source=source, rejected=rejected.total())
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **{field.name: getattr(index, field.name) for field in fields(Index)})
    part.replace(out)
    return index


def _describe(data: mmap.mmap, entry: Entry, tokenizer, prompt: str, kind: str) -> tuple[int, int, int, int] | str:
    """frames, text tokens, answer tokens, group of a sample; or why it cannot be used."""
    images = sum(1 for suffix in entry.members if IMAGE.fullmatch(suffix))
    texts = {s: data[at : at + size] for s, (at, size) in entry.members.items() if s in ("json", "txt")}
    try:
        sample = sample_text(texts, prompt)
        ids, answer = encode_chat(tokenizer, sample)
    except (ValueError, KeyError, TypeError) as error:
        return f"no usable text ({error})"
    if sample.get("frame_count", images) != images:
        return "another number of images than frame_count says"
    if kind != "text" and images == 0:
        return "no image"
    if not answer.any():
        return "no answer"
    name = str(sample.get("file") or entry.key)
    group = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
    return images, len(ids), int(answer.sum()), group


def load_index(path: Path | str) -> Index:
    """Read what `write_index` wrote; raises UserError if it is not there or not an index."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            values = {field.name: stored[field.name] for field in fields(Index)}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no index ({error}); make it with `fvlm index`") from error
    values |= {name: str(values[name]) for name in ("kind", "source")}
    return Index(**values | {"rejected": int(values["rejected"])})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="name of a source in config/sources.yaml")
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> None:
    study = study_of(args)
    source, root = study.sources[args.source], Path(study.results)
    shards = [Path(tar) for tar in tars_of(source, study)]
    missing = [str(tar) for tar in shards if not tar.is_file()]
    if missing:
        raise UserError(
            f"source {source.name!r}: {len(missing)} of its {len(shards)} shards are missing, first "
            f"{missing[0]}; correct `path` in config/sources.yaml or put them there"
        )
    out, tokenizer = root / "index" / f"{source.name}.npz", root / "tokenizer"
    index = write_index(shards, out, source.name, source.kind, tokenizer, source.prompt, root)
    print(f"index {source.name}: {len(index)} samples, {index.rejected} rejected", file=sys.stderr)
