"""`fvlm import RESULTS...`: finished results from elsewhere as the tables that collecting a study makes."""

from contextlib import ExitStack
from pathlib import Path

from fvlm.analysis.files import replacing, write_csv
from fvlm.analysis.imported import read_results
from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        help="CSV of evaluation points or of runs, JSON list, or folder with runs",
    )
    add_study_arguments(parser)
    parser.add_argument("--out-dir", required=True, type=Path, help="folder of the tables")


def main(args) -> int:
    tables = read_results(args.results, study_of(args).comparisons.ablations)
    places = {name: args.out_dir / f"{name}.csv" for name in tables}
    for place in places.values():
        if place.resolve() in {path.resolve() for path in args.results}:
            raise UserError(f"--out-dir {args.out_dir}: {place} was read, and would be lost; expected another folder")
    with ExitStack() as together:  # a table that cannot be written leaves none
        for name, table in tables.items():
            write_csv(table, together.enter_context(replacing(places[name])))
    print(f"{len(tables['runs'])} runs, {len(tables['validation_curves'])} evaluation points -> {args.out_dir}")
    return 0
