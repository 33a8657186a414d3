"""The settings of a run as lines of the configuration, from the table of runs."""

import json
import re

import pandas as pd

from fvlm.analysis.compare.runs import same
from fvlm.config.architectures import ARCHITECTURES

REPLACED = ("data.share", "data.weights")  # mappings that an override replaces as a whole
LEARNING = ("model", "data", "optim")  # the parts of a run's configuration that an ablation changes


def changed(one: pd.Series, other: pd.Series) -> list[str]:
    """Fields of the configuration in which two rows of the table of runs differ, such as `model.fine_pass`."""
    found = []
    for column in one.index:
        part, _, name = str(column).removeprefix("config.").partition(".")
        if str(column).startswith("config.") and part in LEARNING and not same(one[column], other[column]):
            replaced = [key for key in REPLACED if f"{part}.{name}".startswith(f"{key}.")]
            found += replaced or [f"{part}.{name}"]
    return list(dict.fromkeys(found))


def lines(run: pd.Series, keys: list[str]) -> str:
    """Return `key: value` of a run, as an override in a study file; empty if the table does not have it."""
    known = ARCHITECTURES.get(run.get("architecture"))
    pooled = known is None or known.pooled
    shown = [key for key in keys if pooled or key != "model.tokens_per_frame"]
    return "; ".join(f"{key}: {text}" for key in shown if (text := value(run, key)))


def value(run: pd.Series, key: str) -> str:
    """Return the value of one field as YAML; empty if the table does not have it."""
    column = f"config.{key}"
    if column in run.index:
        return "" if pd.isna(run[column]) else _written(run[column])
    own = {name: run[name] for name in run.index if str(name).startswith(f"{column}.") and pd.notna(run[name])}
    inside = ", ".join(f"{name.removeprefix(column + '.')}: {_written(inner)}" for name, inner in own.items())
    return f"{{{inside}}}" if own else ""


def _written(value) -> str:
    """As YAML: true, 1.0e-05, [llm, dino]."""
    if isinstance(value, str):
        if value in ("True", "False"):
            return value.lower()
        if not value.startswith("["):
            return value
        try:
            return "[" + ", ".join(map(str, json.loads(value))) + "]"
        except ValueError:
            return value
    if value is True or value is False or str(value) in ("True", "False"):
        return str(value).lower()
    return re.sub(r"^(-?\d+)e", r"\1.0e", f"{float(value):.10g}")
