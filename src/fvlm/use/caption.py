"""`fvlm caption FILE... --run results/runs/stage3`: caption videos and images."""

import json
import sys
from collections import Counter
from pathlib import Path

from fvlm.errors import UserError
from fvlm.files import write_beside
from fvlm.use.options import Shown, add_answer_arguments, check_question, checked_run, is_image


def add_arguments(parser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="videos or images")
    parser.add_argument("--question", help="question or instruction (default: the prompt that the run was trained on)")
    parser.add_argument(
        "--out", type=Path, help="write one JSON line per file; the same command skips the files that have one"
    )
    add_answer_arguments(parser)


def main(args) -> int:
    shown = checked_run(args)
    if args.question is not None:
        check_question(args.question)
    captions = Captions(args.out, settings_of(args, shown)) if args.out else None
    files = [file for file in args.files if captions is None or str(file) not in captions.files]
    if len(files) < len(args.files):
        print(f"{args.out}: {len(args.files) - len(files)} of {len(args.files)} files have a caption", file=sys.stderr)
    problems: Counter[str] = Counter()
    if any(file.is_file() for file in files):  # else nothing needs torch, whose import takes seconds
        for file, question, frames, caption in captions_of(files, args, shown, problems):
            if captions is None:
                print(f"{file}: {caption}", flush=True)
            else:
                captions.append(file, question, frames, caption)
    else:
        for file in files:
            report(file, "missing", "no such file", problems)
    if problems:
        counts = ", ".join(f"{count} {reason}" for reason, count in problems.most_common())
        print(
            f"fvlm caption: {problems.total()} of {len(args.files)} files have no caption ({counts}); expected videos "
            "or images",
            file=sys.stderr,
        )
    return 2 if problems else 0


def captions_of(files: list[Path], args, shown: Shown, problems: Counter):
    """Yield (file, question, frames, caption) of each file that can be decoded; print and count the others."""
    from fvlm.data.decode.media import MediaError
    from fvlm.use.answer import Answers, clip_of

    answers = Answers(args.run, args.mode, args.tokens, args.temperature, args.seed)
    for file in files:
        still = is_image(file)
        try:
            frames = clip_of(file, still, shown.crop(file), shown.run.data.max_frames).frames
        except MediaError as error:
            report(file, error.reason, str(error), problems)
            continue
        question = args.question or shown.prompt(file)
        video = answers.video(frames, shown.run.data.static_frames if still else None)
        yield file, question, len(frames), "".join(video.ask(question))


def report(file: Path, reason: str, message: str, problems: Counter) -> None:
    problems[reason] += 1
    print(f"fvlm caption: {file} cannot be decoded ({reason}: {message})", file=sys.stderr, flush=True)


def settings_of(args, shown: Shown) -> dict:
    """What a caption depends on beside file and question."""
    settings = {"run": shown.run.name, "digest": shown.run.digest, "tokens": args.tokens}
    settings["mode"] = args.mode or shown.run.model.variant.inference_mode
    return settings | ({"temperature": args.temperature, "seed": args.seed} if args.temperature else {})


class Captions:
    """A file with one JSON line per captioned file.

    path        an existing one is continued; a last line that a kill has cut is dropped
    settings    of all captions in it
    raises      UserError if it holds something else
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings = path, settings
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = lines[:-1] if lines and not lines[-1].endswith("\n") else lines
        self.files = {self._file_of(line) for line in whole}
        write_beside(path, lambda part: part.write_text("".join(whole), encoding="utf-8"))

    def append(self, file: Path, question: str, frames: int, caption: str) -> None:
        record = {"file": str(file), "caption": caption, "question": question, "frames": frames, **self.settings}
        with open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _file_of(self, line: str) -> str:
        try:
            record = json.loads(line)
            file, settings = record["file"], {key: record.get(key) for key in self.settings}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: a line is no caption ({line.strip()[:60]}); name another --out") from error
        differing = [key for key, value in self.settings.items() if settings[key] != value]
        if differing:
            key = differing[0]
            raise UserError(
                f"{self.path}: the caption of {file} has {key} {settings[key]!r}, this command {self.settings[key]!r}; "
                "name another --out"
            )
        return file
