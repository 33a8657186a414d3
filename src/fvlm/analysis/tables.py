"""Make one derived table from the collected ones: `fvlm table NAME --tables DIR --out FILE`."""

import importlib
from collections.abc import Callable
from pathlib import Path

from fvlm.analysis.catalog import TABLES
from fvlm.analysis.files import check_out, read_tables, write_table


def add_arguments(parser) -> None:
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--tables", required=True, help="folder with the collected tables")
    parser.add_argument("--out", required=True, help="the table to write")


def main(args) -> None:
    table = TABLES[args.name]
    check_out(args.out, *(Path(args.tables) / f"{name}.csv" for name in table.needs))
    write_table(load(table.function)(**read_tables(args.tables, table.needs)), args.out)


def load(function: str) -> Callable:
    """The function behind a catalog entry such as "ranking:ablations"."""
    module, name = function.split(":")
    return getattr(importlib.import_module(f"fvlm.analysis.{module}"), name)
