"""`fvlm benchmark RUN NAME`: answer the questions of a benchmark with a finished run, and score the answers."""

from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.errors import UserError
from fvlm.evaluate.benchmarks.captions import check_package
from fvlm.evaluate.benchmarks.questions import read_questions
from fvlm.evaluate.benchmarks.registry import BENCHMARKS
from fvlm.evaluate.read import read_run
from fvlm.use.options import check_out

RECORD = '{"step": 0, "identity": '  # how a record of answers begins


def add_arguments(parser) -> None:
    parser.add_argument(
        "run", help="a run of the study; or a folder of a finished run, of `fvlm export` or of SmolVLM2"
    )
    parser.add_argument("name", choices=BENCHMARKS, help=f"one of {', '.join(BENCHMARKS)}", metavar="name")
    parser.add_argument("--out", required=True, type=Path, help="CSV of the scores; a .jsonl beside it has all answers")
    add_study_arguments(parser)


def main(args) -> int:
    study, benchmark = study_of(args), BENCHMARKS[args.name]
    source = study.sources.get(benchmark.source)
    if source is None:
        raise UserError(f"config/sources.yaml: no source {benchmark.source!r}; add it, with the folder of {args.name}")
    if args.out.suffix != ".csv":
        raise UserError(f"--out {args.out}: expected the name of a .csv file")
    for path in (args.out, args.out.with_suffix(".jsonl")):
        check_out(path)
    check_record(args.out.with_suffix(".jsonl"))
    folder, named = Path(args.run), Path(study.results) / "runs" / args.run
    if "/" not in args.run and (named.is_dir() or not folder.is_dir()):
        folder = named
    elsewhere = (folder / "config.json").is_file() and not (folder / "run.json").is_file()
    if not elsewhere:
        read_run(folder)
    if benchmark.captions:
        check_package()
    questions = read_questions(args.name, benchmark, source, study.results)
    # These take seconds to import.
    from fvlm.evaluate.benchmarks.record import answer_questions

    if elsewhere:
        from fvlm.use.smolvlm import SmolVLM2

        model = SmolVLM2(folder, benchmark.tokens)
    else:
        from fvlm.use.answer import Answers

        model = Answers(folder, None, benchmark.tokens)
    answer_questions(model, args.name, benchmark, questions, source, args.out)
    return 0


def check_record(path: Path) -> None:
    """Refuse a file that is no record of answers, since the record would take its place; raises UserError."""
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            found = file.read(len(RECORD))
        if found not in ("", RECORD):
            raise UserError(f"--out: {path} is no record of answers, and would be overwritten; choose another name")
