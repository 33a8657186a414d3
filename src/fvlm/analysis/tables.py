"""Make derived tables from the collected ones: `fvlm table NAME --tables DIR --out FILE`."""

import importlib
from argparse import Namespace
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pandas as pd

from fvlm.analysis.catalog import TABLES, Entry
from fvlm.analysis.files import check_out, read_table, write_table
from fvlm.config.comparisons import Comparisons
from fvlm.config.resolve import add_study_arguments, study_of


def add_arguments(parser) -> None:
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--tables", required=True, help="folder with the collected tables")
    parser.add_argument("--out", required=True, help="the table to write")
    add_study_arguments(parser)


def main(args) -> None:
    table = TABLES[args.name]
    check_out(args.out, *(Path(args.tables) / f"{name}.csv" for name in table.needs))
    write_table(load(table.function)(**Inputs(args.tables, args).of(table)), args.out)


class Inputs:
    """What entries of the catalog are made of. Each table, and the study, is read once."""

    def __init__(self, folder: Path | str, args: Namespace):
        """folder: with the tables; args: with --study"""
        self.folder, self.args, self._tables = folder, args, {}

    def table(self, name: str) -> pd.DataFrame:
        if name not in self._tables:
            self._tables[name] = read_table(self.folder, name)
        return self._tables[name]

    @cached_property
    def comparisons(self) -> Comparisons:
        return study_of(self.args).comparisons

    def of(self, entry: Entry) -> dict[str, pd.DataFrame | Comparisons]:
        """Return the tables that an entry needs, and the study's comparisons if it compares runs by name."""
        tables = {name: self.table(name) for name in entry.needs}
        return tables | {"comparisons": self.comparisons} if entry.comparisons else tables


def derive(folder: Path, args: Namespace) -> None:
    """Make all derived tables in a folder that has the collected ones."""
    inputs = Inputs(folder, args)
    for name, table in TABLES.items():  # each needs only tables above it
        write_table(load(table.function)(**inputs.of(table)), folder / f"{name}.csv")


def load(function: str) -> Callable:
    """The function behind a catalog entry such as "ranking:ablations"."""
    module, name = function.split(":")
    return getattr(importlib.import_module(f"fvlm.analysis.{module}"), name)
