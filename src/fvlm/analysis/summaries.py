"""Import a table of finished runs, one row per run, with their losses."""

from pathlib import Path

import numpy as np
import pandas as pd

from fvlm.analysis.columns import RUN, SCHEDULE
from fvlm.analysis.finished import BEST, FINAL, RUN_NAMES, Ablations, place_of, short_names
from fvlm.analysis.fits.points import header_of, read_points
from fvlm.config.architectures import ARCHITECTURES as DECLARED
from fvlm.errors import UserError

PARAMETERS = ("total_params", "n_params", "params")  # what a file may call the number of parameters
MILLIONS = "params_M"
SAMPLES = ("total_samples", "samples", "samples_seen")
FLOPS = ("flops", "total_flops")
ARCHITECTURES = {
    **{name: name for name in DECLARED},
    "fov": "foveated",
    "baseline": "multi_token",
    "bas": "multi_token",
}
WORDS = {"architecture": ("architecture", "arch"), "pair": ("pair", "config"), "group": ("group", "frames")}
LETTERS = {"foveated": "F", "multi_token": "B"}
TOKENS = "visual_tokens_per_frame"


def runs_of(path: Path, known: Ablations) -> pd.DataFrame:
    """Rows of the table of runs.

    A table with the columns architecture and `pair` (or `config`) compares two architectures at equal samples. Its runs
    are of the family `pairs`; their budget is in the column `group` or `frames`.

    raises  UserError as `read_points`, and for a run that is there twice
    """
    header = header_of(path)
    name = next(word for word in RUN_NAMES if word in header)
    losses = tuple(word for word in (*FINAL, *BEST) if word in header)
    numbers = tuple(word for word in (*PARAMETERS, MILLIONS, *SAMPLES, *FLOPS, TOKENS) if word in header)
    words = [word for one in (*WORDS.values(), ("lr_schedule",)) for word in one if word in header]
    rows = read_points(path, (name, *losses, *numbers), (*losses, *numbers), tuple(words), (name, *words), losses)
    twice = rows.loc[rows[name].duplicated(), name]
    if len(twice):
        raise UserError(f"{path}: run {twice.iloc[0]} is there twice; give each run one row")
    called = short_names(list(rows[name]), known)
    found = [_run(path, row, called[row[name]], known) for row in rows.to_dict("records")]
    table = pd.DataFrame(found)
    return table.reindex(columns=[*RUN, *(column for column in table if column == SCHEDULE)])


def _run(path: Path, row: dict, run: str, known: Ablations) -> dict:
    words = {what: next((row[name] for name in names if row.get(name)), "") for what, names in WORDS.items()}
    place = place_of(run, known)
    architecture = words["architecture"]
    if architecture and architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: run {run} has architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}"
        )
    place |= {"architecture": ARCHITECTURES[architecture]} if architecture else {}
    if words["pair"] and architecture and place["architecture"] in LETTERS:
        group = f"{words['group']} frames" if "frames" in row and words["group"] else words["group"]
        place |= {"family": "pairs", "size": words["pair"], "budget": group, "letter": LETTERS[place["architecture"]]}
    elif place["family"] == "grid":
        place |= {"family": "stage"}  # a point of the grid is N, D, C and loss, and C is seldom counted alike
    found = dict.fromkeys(RUN, np.nan) | dict.fromkeys(("size", "budget", "letter"), "") | place
    millions = row.get(MILLIONS, np.nan) * 1e6
    found |= {
        "params_total": _first(row, PARAMETERS, millions),
        "samples": _first(row, SAMPLES),
        "flops": _first(row, FLOPS),
        "visual_tokens": _first(row, (TOKENS,), 1.0 if place["architecture"] == "foveated" else np.nan),
        "final.val_loss": _first(row, FINAL),
        "best.val_loss": _first(row, BEST, _first(row, FINAL)),
    }
    return found | ({SCHEDULE: row["lr_schedule"]} if "lr_schedule" in row else {})


def _first(row: dict, names: tuple[str, ...], other: float = np.nan) -> float:
    return next((row[name] for name in names if name in row), other)
