"""Make one derived table from the collected ones: `fvlm table NAME --tables DIR --out FILE`."""

import importlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from fvlm.analysis.catalog import TABLES, Entry
from fvlm.analysis.files import check_out, read_tables, write_table
from fvlm.config.resolve import add_study_arguments, study_of


def add_arguments(parser) -> None:
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--tables", required=True, help="folder with the collected tables")
    parser.add_argument("--out", required=True, help="the table to write")
    add_study_arguments(parser)


def main(args) -> None:
    table = TABLES[args.name]
    check_out(args.out, *(Path(args.tables) / f"{name}.csv" for name in table.needs))
    write_table(load(table.function)(**inputs_of(table, args)), args.out)


def inputs_of(entry: Entry, args: Namespace) -> dict:
    """The tables that an entry of the catalog needs, and the study's comparisons if it compares runs by name."""
    inputs = read_tables(args.tables, entry.needs)
    return inputs | {"comparisons": study_of(args).comparisons} if entry.comparisons else inputs


def load(function: str) -> Callable:
    """The function behind a catalog entry such as "ranking:ablations"."""
    module, name = function.split(":")
    return getattr(importlib.import_module(f"fvlm.analysis.{module}"), name)
