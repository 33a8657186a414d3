"""Let a command of the analysis speak of the study's own tables: `fvlm analysis NAME --tables DIR --out FILE`.

The file is what the command writes. Where the command refuses (a study without a grid has no exponents), the file says
why, for that is a result; the command alone would end with a mistake.
"""

import argparse
import importlib
import shlex
import sys
from pathlib import Path

import pandas as pd

from fvlm.analysis.catalog import ANALYSES
from fvlm.analysis.commands import check_out, write_result
from fvlm.analysis.files import write_table
from fvlm.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("name", choices=ANALYSES)
    parser.add_argument("--tables", required=True, help="folder with the tables")
    parser.add_argument("--out", required=True, help="the file to write")


def main(args) -> None:
    entry = ANALYSES[args.name]
    files = {name: Path(args.tables) / f"{name}.csv" for name in entry.needs}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such table; expected the folder that `fvlm table` wrote to")
    check_out(args.out, *files.values())
    command, *words = shlex.split(entry.command)
    words = [word.format(**files) for word in words]
    print(shlex.join(["fvlm", command, *words, "--out", args.out]), file=sys.stderr)
    module = importlib.import_module(f"fvlm.analysis.commands.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"fvlm {command}")
    module.add_arguments(parser)
    try:
        module.main(parser.parse_args([*words, "--out", args.out]))
    except UserError as error:
        refused = {"command": shlex.join([command, *words]), "refused": str(error)}
        print(f"nothing to say: {error}")
        if Path(args.out).suffix == ".csv":
            write_table(pd.DataFrame([refused]), args.out)
        else:
            write_result(next(iter(files.values())), args.out, refused)
