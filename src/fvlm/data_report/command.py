"""`fvlm data-report`: write the data report of a study. What draws is imported once the arguments are right."""

import argparse
import sys
from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder of the page (default: data/ of the results)")
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> None:
    study = study_of(args)
    from fvlm.data_report.report import make_report  # imports matplotlib and pandas

    page = make_report(study, args.out or Path(study.results) / "data")
    print(f"data report: {page}", file=sys.stderr)
