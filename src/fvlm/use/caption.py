"""`fvlm caption FILE... --run results/runs/stage3`: caption videos and images."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fvlm.data.decode.media import Clip, Media, MediaError, check_regular
from fvlm.data.decode.pool import DecodePool, decode
from fvlm.errors import UserError
from fvlm.files import write_beside
from fvlm.use.options import FinishedRun, add_answer_arguments, check_out, check_question, checked_run, is_image

START = b'{"file": "'  # of a line
DEADLINE_S = 60  # for decoding one file, as in the preparation of data


def add_arguments(parser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="videos or images")
    parser.add_argument("--question", help="question or instruction (default: the prompt that the run was trained on)")
    parser.add_argument(
        "--out", type=Path, help="write one JSON line per file; the same command skips the files that have one"
    )
    add_answer_arguments(parser)


def main(args) -> int:
    finished = checked_run(args)
    if args.question is not None:
        check_question(args.question)
    captions = None
    if args.out is not None:
        check_out(args.out)
        captions = Captions(args.out, lambda file: settings_of(args, finished, file))
    requested = list(dict.fromkeys(args.files))
    files = [file for file in requested if captions is None or str(file) not in captions.files]
    if len(files) < len(requested):
        print(f"{args.out}: {len(requested) - len(files)} of {len(requested)} files have a caption", file=sys.stderr)
    problems: Counter[str] = Counter()
    if any(file.is_file() for file in files):  # else nothing needs torch, whose import takes seconds
        for file, frames, caption in captions_of(files, args, finished, problems):
            if captions is None:
                print(f"{printable(file)}: {caption}", flush=True)
            else:
                captions.append(file, frames, caption)
    else:
        for file in files:
            try:
                check_regular(file)
            except MediaError as error:
                report(file, error.reason, str(error), problems)
    if problems:
        counts = ", ".join(f"{count} {reason}" for reason, count in problems.most_common())
        print(
            f"fvlm caption: {problems.total()} of {len(requested)} files have no caption ({counts}); expected videos "
            "or images",
            file=sys.stderr,
        )
    return 2 if problems else 0


def captions_of(files: list[Path], args, finished: FinishedRun, problems: Counter):
    """Yield (file, frames, caption) of each file that can be decoded; print and count the others.

    A process of its own decodes the files: if one hangs or crashes it, the others go on.
    """
    answers = finished.answers(args)
    crops = {is_image(file): finished.crop(file) for file in files}
    with DecodePool(partial(decode_either, crops=crops), deadline_s=DEADLINE_S) as pool:
        for file in files:
            try:
                frames = finished.frames(file, lambda media: pool.submit(media).result())
            except MediaError as error:
                report(file, error.reason, str(error), problems)
                continue
            caption = "".join(answers.video(frames).ask(args.question or finished.prompt(file)))
            yield file, len(frames.frames), caption


def decode_either(media: Media, crops: dict[bool, bool]) -> Clip:
    """Decode a video or an image; crops: whether it is an image -> whether its centre is shown."""
    return decode(media, Path(), crop=crops[media.image])


def report(file: Path, reason: str, message: str, problems: Counter) -> None:
    problems[reason] += 1
    print(f"fvlm caption: {file} cannot be decoded ({reason}: {message})", file=sys.stderr, flush=True)


def printable(file: Path) -> str:
    """A file's name without the bytes that are no text."""
    return str(file).encode(errors="replace").decode()


def settings_of(args, finished: FinishedRun, file: Path) -> dict:
    """What the caption of a file depends on."""
    settings = {
        "question": args.question or finished.prompt(file),
        "run": finished.run.name,
        "digest": finished.run.digest,
    }
    settings["tokens"] = args.tokens
    settings["mode"] = args.mode or finished.run.model.variant.inference_mode
    return settings | ({"temperature": args.temperature, "seed": args.seed} if args.temperature else {})


class Captions:
    """A file with one JSON line per captioned file.

    path            an existing one is continued; a last line that a kill has cut is dropped
    settings_of     returns what the caption of a file depends on
    raises          UserError if it holds something else
    """

    def __init__(self, path: Path, settings_of: Callable[[Path], dict]):
        self.path, self.settings_of = path, settings_of
        *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
        is_cut = START.startswith(rest[: len(START)])
        whole = lines if is_cut else [*lines, rest]
        self.files = {self._file_of(line) for line in whole}
        write_beside(path, lambda part: part.write_bytes(b"".join(line + b"\n" for line in whole)))

    def append(self, file: Path, frames: int, caption: str) -> None:
        record = {"file": str(file), "caption": caption, "frames": frames, **self.settings_of(file)}
        with open(self.path, "a") as out:
            out.write(json.dumps(record) + "\n")

    def _file_of(self, line: bytes) -> str:
        try:
            record = json.loads(line)
            file, expected = record["file"], self.settings_of(Path(record["file"]))
            differing = [key for key, value in expected.items() if record.get(key) != value]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            start = line.strip()[:60].decode(errors="replace")
            raise UserError(f"{self.path}: a line is no caption ({start}); name another --out") from error
        if differing:
            key = differing[0]
            raise UserError(
                f"{self.path}: the caption of {file} has {key} {record.get(key)!r}, this command {expected[key]!r}; "
                "name another --out"
            )
        return file
