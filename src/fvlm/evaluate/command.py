"""`fvlm evaluate RUN`: held-out losses of a finished run (fvlm.evaluate.losses)."""

from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.evaluate.read import read_run


def add_arguments(parser) -> None:
    parser.add_argument("run", help="a finished run")
    parser.add_argument("--out", required=True, type=Path, help="CSV with one row per sample, mode and kind of frames")
    add_study_arguments(parser)


def main(args) -> None:
    study = study_of(args)
    folder = Path(study.results) / "runs" / args.run
    read_run(folder)
    from fvlm.evaluate.losses import evaluate  # imports torch, which takes seconds

    evaluate(folder, study, args.out)
