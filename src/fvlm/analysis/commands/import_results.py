"""`fvlm import RESULTS...`: finished results from elsewhere as the tables that collecting a study makes."""

from pathlib import Path

from fvlm.analysis.files import write_table
from fvlm.analysis.imported import read_results


def add_arguments(parser) -> None:
    parser.add_argument(
        "results", nargs="+", type=Path, help="CSV of evaluation points, JSON list of results, or folder with runs"
    )
    parser.add_argument("--out-dir", required=True, type=Path, help="folder of the tables")


def main(args) -> int:
    tables = read_results(args.results)
    for name, table in tables.items():
        write_table(table, args.out_dir / f"{name}.csv")
    print(f"{len(tables['runs'])} runs, {len(tables['validation_curves'])} evaluation points -> {args.out_dir}")
    return 0
