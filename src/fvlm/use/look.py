"""`fvlm look VIDEO QUESTION --run results/runs/stage3 --out page.html`: a page that shows where a model looks."""

import sys
from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.errors import UserError
from fvlm.use.options import FinishedRun, add_run_argument, check_file, check_out, check_question, is_stream


def add_arguments(parser) -> None:
    parser.add_argument(
        "video", nargs="?", type=Path, help="video or image (default: the held-out videos of `fvlm attention`)"
    )
    parser.add_argument("question", nargs="?", help="(default: the prompt that the first run was trained on)")
    add_run_argument(parser, action="append", dest="runs")
    parser.add_argument("--out", required=True, type=Path, help="the page, one HTML file")
    parser.add_argument("--video", dest="film", type=Path, metavar="OUT.mp4", help="also write a film of one video")
    parser.add_argument("--tokens", type=int, default=40, help="longest answer, in tokens (default: %(default)s)")
    add_study_arguments(parser)


def main(args) -> int:
    runs = [FinishedRun(folder) for folder in args.runs]
    check_arguments(args)
    study = study_of(args) if args.video is None else None
    from fvlm.evaluate.load import check_split  # these import torch, which takes seconds
    from fvlm.use.answer import Answers
    from fvlm.use.looking import Sample, held_out_samples, look
    from fvlm.use.page import PageVideo, write_page

    videos: list[PageVideo] = []
    names = [finished.run.name for finished in runs]
    for finished, folder in zip(runs, args.runs, strict=True):
        answers = Answers(folder, None, args.tokens)
        if names.count(finished.run.name) > 1:  # of two studies, or a run and its exported folder
            answers.run = answers.run.model_copy(update={"name": str(folder)})
        if study is None:
            question = args.question or runs[0].prompt(args.video)
            shown = finished.needed_frames(args.video)
            times_s = None if shown.still else shown.times_s
            samples = [Sample(args.video.name, shown.frames, times_s, shown.still, question)]
        else:
            check_split(finished.run, study, folder)
            samples = held_out_samples(runs[0].run, study)
        for place, sample in enumerate(samples):
            if place == len(videos):
                videos.append(PageVideo(sample, []))
            videos[place].runs.append((sample, look(answers, sample)))
            print(f"{finished.run.name}: {sample.name}", file=sys.stderr, flush=True)
    write_page(args.out, videos)
    if args.film:
        from fvlm.use.film import write_film

        write_film(args.film, videos[0])
    return 0


def check_arguments(args) -> None:
    if len({folder.absolute() for folder in args.runs}) < len(args.runs):
        raise UserError("--run names a run twice; expected different runs")
    if args.tokens < 1:
        raise UserError(f"--tokens is {args.tokens}; expected at least 1")
    if args.film and args.video is None:
        raise UserError("--video needs one video; name it")
    if args.video is not None:
        if is_stream(args.video):
            raise UserError(f"{args.video} is a stream; expected a video or an image in a file")
        check_file(args.video)
    if args.question is not None:
        check_question(args.question)
    for path in filter(None, (args.out, args.film)):
        check_out(path)
