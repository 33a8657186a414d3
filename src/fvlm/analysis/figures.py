"""Draw one figure: `fvlm figure NAME --tables DIR --out-dir DIR` writes NAME.png, NAME.pdf, NAME.csv
(the numbers drawn) and NAME.rst (sentences for the report)."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fvlm import style
from fvlm.analysis.catalog import FIGURES
from fvlm.analysis.files import read_csv, replacing, write_table
from fvlm.analysis.plots.captions import as_rst, caption
from fvlm.analysis.tables import inputs_of, load
from fvlm.config.resolve import add_study_arguments
from fvlm.errors import UserError

DPI = 150


def add_arguments(parser) -> None:
    parser.fromfile_prefix_chars = "@"
    parser.add_argument("name", choices=FIGURES)
    parser.add_argument("--tables", required=True, help="folder with the tables")
    parser.add_argument(
        "--attention", nargs="*", default=[], metavar="FILE", help="attention maps of finished runs (.npz)"
    )
    parser.add_argument("--out-dir", required=True, help="folder to write to")
    add_study_arguments(parser)


def main(args) -> None:
    entry = FIGURES[args.name]
    if Path(args.out_dir).resolve() == Path(args.tables).resolve():
        raise UserError(
            f"--out-dir {args.out_dir}: found the folder of the tables, where a figure's numbers could replace "
            "the table of that name; expected another folder, such as one called figures beside it"
        )
    style.apply()
    inputs = inputs_of(entry, args)
    if entry.attention:
        inputs["attention"] = [Path(name) for name in args.attention]
    try:
        figure, numbers = load(entry.function)(**inputs)
    except style.NothingToDraw as reason:
        figure, numbers = style.words(entry.title, str(reason)), pd.DataFrame({"reason": [str(reason)]})
    save(figure, numbers, Path(args.out_dir) / args.name)


def save(figure: Figure, numbers: pd.DataFrame, stem: Path) -> None:
    """Write the four files of a figure; the same input gives the same bytes. The caption is made of the CSV."""
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        with replacing(stem.with_suffix(suffix)) as beside:
            figure.savefig(beside, dpi=DPI, metadata=metadata)
    plt.close(figure)
    write_table(numbers, stem.with_suffix(".csv"), digits=6)
    with replacing(stem.with_suffix(".rst")) as beside:
        beside.write_text(as_rst(caption(stem.name, read_csv(stem.with_suffix(".csv"), ()))), encoding="utf-8")
