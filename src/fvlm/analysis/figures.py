"""Draw figures: NAME.png, NAME.pdf, NAME.csv (the numbers drawn) and NAME.rst (sentences for the report) of each."""

import multiprocessing
import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fvlm import style
from fvlm.analysis.catalog import FIGURES, Entry
from fvlm.analysis.columns import COUNTED
from fvlm.analysis.compare.runs import is_adopted
from fvlm.analysis.files import read_csv, replacing, write_table
from fvlm.analysis.finished import base_name
from fvlm.analysis.plots.captions import as_rst, caption
from fvlm.analysis.tables import Inputs, load
from fvlm.errors import UserError

DPI = 150
FORMS = (".png", ".pdf", ".csv", ".rst")
FROM_ELSEWHERE = (
    "Losses of runs that another program has trained may score other tokens: docs/comparing-with-the-study.md."
)


def draw(args: Namespace) -> None:
    """Draw the figures that the arguments of `fvlm figure` name."""
    if Path(args.out_dir).resolve() == Path(args.tables).resolve():
        raise UserError(
            f"--out-dir {args.out_dir}: found the folder of the tables, where a figure's numbers could replace "
            "the table of that name; expected another folder, such as one called figures beside it"
        )
    style.apply()
    names = list(dict.fromkeys(args.names))
    one = partial(_draw, inputs=Inputs(args.tables, args), args=args)
    if min(len(names), args.processes) > 1:
        with ProcessPoolExecutor(args.processes, multiprocessing.get_context("fork")) as pool:
            found = list(pool.map(one, names))
    else:
        found = [one(name) for name in names]
    reasons = {name: reason for name, reason in zip(names, found, strict=True) if reason}
    if args.not_drawn:
        rows = [(name, FIGURES[name].title, reason) for name, reason in reasons.items()]
        write_table(pd.DataFrame(rows, columns=["figure", "title", "reason"]), args.not_drawn)


def _draw(name: str, inputs: Inputs, args: Namespace) -> str:
    """Draw a figure; return why there is nothing to draw, or an empty word."""
    entry, stem = FIGURES[name], Path(args.out_dir) / name
    more = {"attention": [Path(path) for path in args.attention]} if entry.attention else {}
    tables = inputs.of(entry)
    try:
        figure, numbers = load(entry.function)(**tables, **more)
        save(figure, numbers, stem, _about_origin(inputs, figure, numbers))
    except style.NothingToDraw as reason:
        _without(entry, str(reason), stem, args.empty)
        return str(reason)
    return ""


def _about_origin(inputs: Inputs, figure: Figure, numbers: pd.DataFrame) -> str:
    """Mark the adopted runs of a figure if it also has others. Return the sentences of the caption about losses that
    another program has computed; empty if there are none."""
    if not (Path(inputs.folder) / "runs.csv").exists():
        return ""
    runs = inputs.table("runs")
    bases = runs["run"].map(base_name)
    if "run" in numbers:
        runs = runs[bases.isin(numbers["run"].dropna().map(base_name))]
    elif "size" in numbers:
        runs = runs[runs["size"].fillna("") != ""]
    names = list(dict.fromkeys(bases[runs.index][is_adopted(runs)]))
    if is_adopted(runs).all() or not names:
        return FROM_ELSEWHERE if len(names) or COUNTED in runs else ""
    style.mark_names(figure, names)
    return f"{style.MARK}: adopted, trained by another program: {', '.join(names)}. {FROM_ELSEWHERE}"


def _without(entry: Entry, reason: str, stem: Path, empty: str) -> None:
    """Treat a figure that has nothing to draw as `empty` says.

    raises  UserError
    """
    if empty == "refuse":
        raise UserError(f"{stem.name}: nothing to draw: {reason}")
    if empty == "picture":
        save(style.words(entry.title, reason), pd.DataFrame({"reason": [reason]}), stem)
        return
    for form in FORMS:
        stem.with_suffix(form).unlink(missing_ok=True)  # of earlier results
    print(f"not drawn: {stem.name}: {reason}", file=sys.stderr)


def save(figure: Figure, numbers: pd.DataFrame, stem: Path, more: str = "") -> None:
    """Write the four files of a figure; the same input gives the same bytes. The caption is made of the CSV.

    more    a further sentence of the caption
    """
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        with replacing(stem.with_suffix(suffix)) as beside:
            figure.savefig(beside, dpi=DPI, metadata=metadata)
        figure.set_layout_engine("none")  # the other form has the same layout; to find it takes as long as to draw
    plt.close(figure)
    write_table(numbers, stem.with_suffix(".csv"), digits=6)
    with replacing(stem.with_suffix(".rst")) as beside:
        sentences = caption(stem.name, read_csv(stem.with_suffix(".csv"), ()))
        beside.write_text(as_rst(f"{sentences} {more}".strip()), encoding="utf-8")
