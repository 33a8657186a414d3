"""Index WebDataset tars: where each sample lies, how many frames and text tokens it has.

Works on the shards of this package and on finished ones from elsewhere; a sample is the raw bytes of its
members, so a loader reads it with one seek. A ledger beside the index lists what was left out, and all samples of
shards from elsewhere, which no other ledger knows.
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from fvlm.config import add_study_arguments, study_of
from fvlm.data.ledger import ledger_line
from fvlm.data.media import MAX_FRAMES, MAX_PIXELS, SIDE, MediaError
from fvlm.data.sources import tars_of
from fvlm.data.text import encode_chat, load_tokenizer
from fvlm.data.video import IMAGE_FORMATS, square_image
from fvlm.errors import UserError
from fvlm.files import write_beside

BLOCK = 512
IMAGE = re.compile(r"(?:(\d+)\.)?(?:jpg|jpeg|png|webp)")
JPEG_START, JPEG_END, PNG_START, PNG_END = b"\xff\xd8", b"\xff\xd9", b"\x89PNG", b"IEND"
TAIL = 1024  # bytes in which an image's end mark is looked for: some cameras write a little after it


@dataclass(frozen=True)
class Index:
    """One row per usable sample of a source; every array has length n unless it says otherwise.

    shards          (k,) paths of the tars, relative to the results folder or absolute
    shard           int32, position in `shards`
    offset, length  int64, bytes: the sample's members with their headers
    frames          int32, images; 0 for text
    text_tokens     int32, of the whole chat, before any cut; of a preference pair with the chosen answer
    answer_tokens   int32, of these the ones the assistant says
    group           int64, the same for samples of the same original file (of the same first image, where no file is
                    named), evenly spread over [0, 2^63)
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
    raises      ValueError if there is no text, or it is no JSON object in UTF-8
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


def image_suffixes(members: Iterable[str]) -> list[str]:
    """The images among a sample's members by their numbers: 2.jpg stands before 10.jpg."""
    numbered = [(int(match[1] or 0), match[0]) for match in map(IMAGE.fullmatch, members) if match]
    return [suffix for _, suffix in sorted(numbered)]


def decode_frames(members: dict[str, bytes]) -> np.ndarray:
    """Images of a sample in the order of their numbers, (T, 224, 224, 3) uint8; T = 0 for text.

    raises      ValueError naming the image that cannot be decoded
    """
    frames = []
    for suffix in image_suffixes(members):
        try:
            frames.append(_decode(members[suffix]))
        except (OSError, SyntaxError, ValueError, MediaError, Image.DecompressionBombError) as error:  # as Pillow does
            raise ValueError(f"{suffix}: {error}") from error
    return np.stack(frames) if frames else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def _decode(content: bytes) -> np.ndarray:
    if content.startswith(JPEG_START) and simplejpeg.decode_jpeg_header(content)[:2] == (SIDE, SIDE):
        return simplejpeg.decode_jpeg(content, "RGB")
    return square_image(io.BytesIO(content))[0]


def check_image(suffix: str, content: bytes) -> None:
    """Refuse an image whose header or end is missing; damage between them shows only when it is decoded.

    raises      MediaError empty, not_media, corrupt, too_large
    """
    if not content:
        raise MediaError("empty", f"{suffix}: 0 bytes")
    try:
        if content.startswith(JPEG_START):
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
        else:
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{suffix}: {error}") from error
    except UnidentifiedImageError as error:
        raise MediaError("not_media", f"{suffix}: no image format that is read here") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError("corrupt", f"{suffix}: {error}") from error
    if width * height > MAX_PIXELS:
        raise MediaError("too_large", f"{suffix}: {width} x {height} pixels")
    for start, end in ((JPEG_START, JPEG_END), (PNG_START, PNG_END)):
        if content.startswith(start) and end not in content[-TAIL:]:
            raise MediaError("corrupt", f"{suffix}: cut before its end, at {len(content)} bytes")


def write_index(
    shards: list[Path], out: Path, source: str, kind: str, tokenizer_folder: Path, prompt: str, root: Path
) -> Index:
    """Index the tars of a source into `out` (npz) and, beside it, a ledger named `{source}.ledger.jsonl`.

    The ledger lists every sample that was left out. Shards outside of `root` are foreign: their images are checked, and
    the ledger lists their kept samples too. Those inside have ledgers that do so already.

    prompt      as in `sample_text`
    root        results folder; a shard inside it is stored relative to it, a foreign one absolute
    raises      UserError for a damaged tar or a key that occurs twice
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    names, rows, lines, rejected = [], [], [], Counter()
    for number, shard in enumerate(shards):
        if not shard.is_file() or not shard.stat().st_size:
            raise UserError(f"{shard}: missing or 0 bytes; make or copy the shard again")
        path, home = shard.resolve(), root.resolve()
        foreign = not path.is_relative_to(home)
        names.append(str(path if foreign else path.relative_to(home)))
        about = {"source": source, "kind": kind, "shard": names[-1] if foreign else shard.name}
        with open(shard, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for entry in samples_of(data, str(shard)):
                original, found = _describe(data, entry, tokenizer, prompt, kind, foreign)
                about |= {"row": len(rows) + rejected.total(), "file": original, "key": entry.key}
                if isinstance(found, MediaError):
                    rejected[found.reason] += 1
                    lines.append(ledger_line(**about, reason=found.reason, message=str(found)))
                    continue
                rows.append((number, entry.offset, entry.length, *found, entry.key))
                if foreign:
                    lines.append(ledger_line(**about, frames=found[0]))
    index = Index(np.array(names, np.str_), *_columns(rows), kind=kind, source=source, rejected=rejected.total())
    keys, counts = np.unique(index.keys, return_counts=True)
    if len(keys) < len(index):
        twice = str(keys[counts.argmax()])
        raise UserError(f"source {source!r}: key {twice!r} is in its shards more than once; make keys unique")
    write_beside(ledger_of(out), lambda beside: beside.write_text("".join(lines), encoding="utf-8"))
    write_beside(out, lambda beside: _save(index, beside))
    return index


def ledger_of(index: Path) -> Path:
    return index.with_suffix(".ledger.jsonl")


def _columns(rows: list[tuple]) -> list[np.ndarray]:
    types = (np.int32, np.int64, np.int64, np.int32, np.int32, np.int32, np.int64, np.str_)
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    return [np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)]


def _save(index: Index, path: Path) -> None:
    with path.open("wb") as file:  # given a path, savez would change its suffix
        np.savez(file, **{field.name: getattr(index, field.name) for field in fields(Index)})


def _describe(
    data: mmap.mmap, entry: Entry, tokenizer, prompt: str, kind: str, foreign: bool
) -> tuple[str | None, tuple[int, int, int, int] | MediaError]:
    """Original file of a sample, if named; and its frames, text tokens, answer tokens, group, or what is wrong."""
    try:
        sample = sample_text({s: _content(data, entry, s) for s in ("json", "txt") if s in entry.members}, prompt)
        ids, answer = encode_chat(tokenizer, sample)
        original = str(sample.get("file") or "")
        name = original.encode()
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        return None, MediaError("bad_sample", f"no usable text ({type(error).__name__}: {error})")
    images = image_suffixes(entry.members)
    problem = _problem(images, sample.get("frame_count", len(images)), answer, kind)
    if problem is not None:
        return original or None, MediaError("bad_sample", problem)
    try:
        for suffix in images if foreign else ():
            check_image(suffix, _content(data, entry, suffix))
    except MediaError as error:
        return original or None, error
    if not name:  # samples of the same video begin with the same image
        name = _content(data, entry, images[0]) if images else entry.key.encode()
    group = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
    return original or None, (len(images), len(ids), int(answer.sum()), group)


def _content(data: mmap.mmap, entry: Entry, suffix: str) -> bytes:
    offset, size = entry.members[suffix]
    return data[offset : offset + size]


def _problem(images: list[str], frame_count: object, answer: np.ndarray, kind: str) -> str | None:
    if frame_count != len(images):
        return f"{len(images)} images, but frame_count says {frame_count}"
    if len(images) > MAX_FRAMES:
        return f"{len(images)} images, more than {MAX_FRAMES} frames"
    if kind != "text" and not images:
        return "no image"
    return None if answer.any() else "no answer"


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
    listed = f", listed in {ledger_of(out)}" if index.rejected else ""
    print(f"index {source.name}: {len(index)} samples, {index.rejected} rejected{listed}", file=sys.stderr)
