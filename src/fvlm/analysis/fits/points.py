"""What a user's points must satisfy before a law is fitted to them."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from fvlm.errors import UserError


def check_falls(
    path: Path | str, points: pd.DataFrame, name: str, beside: tuple[str, ...] = (), what: str = ""
) -> None:
    """Refuse a loss L that rises with column `name`, beyond its noise, at fixed columns `beside`.

    The slope of log L on log `name` by least squares is held against zero with Student's t at 97.5 %.

    raises  UserError
    """
    others = [np.log(points[other]) for other in beside if points[other].nunique() > 1]
    design = np.column_stack([np.log(points[name]), np.ones(len(points)), *others])
    design = design - np.where(np.arange(design.shape[1]) == 1, 0, design.mean(axis=0))
    free = len(design) - np.linalg.matrix_rank(design)
    if points[name].nunique() < 2 or free < 1:
        return
    log_loss = np.log(points["L"].to_numpy())
    slope = np.linalg.lstsq(design, log_loss)[0]
    variance = ((log_loss - design @ slope) ** 2).sum() / free * np.linalg.pinv(design.T @ design)[0, 0]
    if slope[0] > max(stdtrit(free, 0.975) * np.sqrt(variance), 1e-6):
        raise UserError(
            f"{path}: the loss L rises with {name}{what} (as {name}^{slope[0]:.2g}); expected one that falls: "
            "check the columns, or leave out the runs that diverged"
        )


def one_schedule(points: pd.DataFrame) -> str:
    """Why points of several schedules of the learning rate (column lr_schedule) cannot be fitted together; empty if
    there is one, or the file does not say: at equal N and D a decayed rate gives a lower loss than a constant one."""
    if "lr_schedule" not in points or points["lr_schedule"].nunique() < 2:
        return ""
    counts = points["lr_schedule"].value_counts(sort=False)
    listed = ", ".join(f"{name}: {count} points" for name, count in counts.items())
    return f"runs of {len(counts)} learning-rate schedules are mixed ({listed}); fit each by itself"


def longest_run(points: pd.DataFrame) -> int:
    """Return the number of points of the run that has most of them: above 1 they lie on curves, and their errors are
    correlated. 1 without a column `run`."""
    return int(points["run"].value_counts().max()) if "run" in points else 1
