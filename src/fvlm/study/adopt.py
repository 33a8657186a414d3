"""`fvlm adopt FOLDER --run RUN`: take a finished run of another program into a study, which then does not train it.

FOLDER is a run's folder of the published study (best.pt, latest.pt, step_*.pt, run_summary_*.json, metrics_*.csv), a
folder with weights alone, one file of weights, or a table of results (fvlm.study.adopted_numbers). The results of the
run get the form of a training of this project. Its summary lists how it differs from its configuration.
"""

import argparse
from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="folder of a finished run, a file of weights (.pt, .safetensors), or results (.csv)"
    )
    parser.add_argument(
        "--run", help="the run of the study that it is, as `fvlm plan` lists it (default for a .csv: all its runs)"
    )
    add_study_arguments(parser)


def main(args: argparse.Namespace) -> None:
    study, numbers = study_of(args), args.folder.suffix == ".csv"
    if args.run is None and not numbers:
        raise UserError(f"{args.folder}: which run is it? add --run RUN; `fvlm plan` lists the runs of the study")
    if args.run is not None and args.run not in study.runs:
        raise UserError(f"no run {args.run!r} in study {study.study!r}; `fvlm plan` lists them")
    if not args.folder.exists():
        raise UserError(
            f"{args.folder}: no such file or folder; expected a finished run, weights, or a table of results"
        )
    if numbers:
        from fvlm.study.adopted_numbers import adopt_numbers  # imports torch, as the one below

        lines = adopt_numbers(args.folder, args.run, study)
    else:
        from fvlm.study.adopted_run import adopt

        lines = adopt(args.folder, study.runs[args.run], study)
    for line in lines:
        print(line)
