"""Figures of what happens during training."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm.analysis import style
from fvlm.analysis.study import base_name
from fvlm.analysis.style import BLUE, GREY, NothingToDraw, label_ends, panels

FAMILIES = {"stage": "Stages", "ablation": "Ablations", "grid": "Scaling grid"}
FAINT = 60  # points of a faint training curve
KINDS = {
    "F": style.ORANGE,
    "LR": style.GREEN,
    "A": style.PURPLE,
    "B": style.RED,
    "D": style.SKY,
}  # sweeps, by first letters


def colours_of(runs: pd.DataFrame) -> dict[str, str]:
    """Run -> colour: stages one each, ablations by sweep (the baseline blue), grid runs by architecture."""
    result, stages = {}, 0
    for row in runs.to_dict("records"):
        if row["family"] == "grid":
            result[row["run"]] = style.ARCHITECTURE[row["architecture"]]
        elif row["family"] == "stage":
            result[row["run"]] = style.CYCLE[stages % len(style.CYCLE)]
            stages += 1
        else:
            sweep = base_name(row["run"]).rstrip("0123456789abcdefgh")
            result[row["run"]] = BLUE if base_name(row["run"]) == "baseline" else KINDS.get(sweep, GREY)
    return result


def _draw(
    ax: Axes,
    curves: pd.DataFrame,
    column: str,
    colours: dict[str, str],
    x: str = "samples",
    width: float = 1.4,
) -> list:
    """One line per run; returns the ends for their labels."""
    ends = []
    for run, own in curves[curves[column].notna()].groupby("run", sort=False):
        wide = 2.2 if run == "baseline" else width
        single = "o" if len(own) == 1 else None
        ax.plot(
            own[x],
            own[column],
            color=colours[run],
            lw=wide,
            marker=single,
            zorder=3 if run == "baseline" else 2,
        )
        ends.append((own[x].iloc[-1], own[column].iloc[-1], run, colours[run]))
    return ends


def _without_start(curves: pd.DataFrame) -> pd.DataFrame:
    """Without the validation before the first step, which would set the scale of the whole axis."""
    return curves[curves["step"] > 0]


def training_curves(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, training_curves: pd.DataFrame
) -> tuple[Figure, pd.DataFrame]:
    """Validation loss against samples, one panel per family; the train loss is faint."""
    known = validation_curves["run"].isin(runs["run"])
    validation = _without_start(validation_curves[known & validation_curves["val_loss"].notna()])
    present = [family for family in FAMILIES if (runs[runs["run"].isin(validation["run"])]["family"] == family).any()]
    if not present:
        raise NothingToDraw("no run has been validated")
    figure, axes = panels(len(present), height=4.2, width=3.2 * len(present) + 0.6)
    for ax, family in zip(axes, present, strict=True):
        names = runs[runs["family"] == family]
        own = validation[validation["run"].isin(names["run"])]
        train = training_curves[training_curves["run"].isin(names["run"]) & training_curves["train_loss"].notna()]
        _family(ax, names, own, train)
        ax.set_title(FAMILIES[family])
        ax.set_xlabel("samples seen")
    axes[0].set_ylabel(f"validation {style.LOSS}; faint: training")
    return figure, validation[["run", "step", "samples", "flops", "val_loss"]]


def _family(ax: Axes, runs: pd.DataFrame, validation: pd.DataFrame, train: pd.DataFrame) -> None:
    """One panel; a grid has too many runs to name each, so its sizes are markers at the ends."""
    colours = colours_of(runs)
    for run, curve in train.groupby("run", sort=False):
        smooth = curve[["samples", "train_loss"]].groupby(np.arange(len(curve)) * FAINT // len(curve)).mean()
        ax.plot(smooth["samples"], smooth["train_loss"], color=colours[run], lw=0.7, alpha=0.3, zorder=1)
    grid = (runs["family"] == "grid").all()
    if grid:
        ax.set_xscale("log")
        ax.set_xlim(validation["samples"].min() * 0.8, validation["samples"].max() * 1.5)
    ends = _draw(ax, validation, "val_loss", colours, width=0.8 if grid else 1.4)
    low, high = validation["val_loss"].min(), validation["val_loss"].max()
    ax.set_ylim(low - 0.08 * (high - low) - 1e-3, high + 0.03 * (high - low) + 1e-3)
    style.counts(ax)
    if not grid:
        label_ends(ax, ends, gap=0.038)
        return
    sizes = runs.set_index("run")["size"]
    order = list(runs.sort_values("params_total")["size"].drop_duplicates())
    for x, y, run, colour in ends:
        ax.plot(
            x,
            y,
            marker=style.MARKERS[order.index(sizes[run]) % len(style.MARKERS)],
            color=colour,
            ls="",
            zorder=4,
        )
    for name in runs["architecture"].drop_duplicates():
        ax.plot([], [], color=style.ARCHITECTURE[name], label=style.NAMES[name])
    for i, size in enumerate(order):
        ax.plot([], [], color=GREY, marker=style.MARKERS[i % len(style.MARKERS)], ls="", label=size)
    ax.legend(loc="upper right")


def freezing(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Validation loss of the runs with frozen parts and of the baseline."""
    names = {
        "F1": ("connector alone (F1)", style.ORANGE),
        "F2": ("connector and encoder (F2)", style.GREEN),
        "baseline": ("all (baseline)", BLUE),
    }
    own = _without_start(validation_curves[validation_curves["run"].isin(names)])
    if not set(own["run"]) & {"F1", "F2"}:
        raise NothingToDraw("the runs F1 and F2 are not in this study")
    figure, (ax,) = panels(1, height=3.0)
    for run, (text, colour) in names.items():
        curve = own[own["run"] == run]
        if not curve.empty:
            ax.plot(curve["samples"], curve["val_loss"], color=colour, marker="o", ms=3.5, label=text)
    ax.set_xlim(left=0)
    style.counts(ax)
    ax.set_xlabel("samples seen")
    ax.set_ylabel(f"validation {style.LOSS}")
    ax.set_title("What is trained")
    ax.legend()
    return figure, own[["run", "step", "samples", "val_loss"]]


def attention_entropy(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Entropy of the query's attention over training; the dotted line is uniform attention over all
    patches and CLS."""
    own = validation_curves[validation_curves["attention_entropy"].notna()]
    figure_runs = runs[runs["run"].isin(own["run"]) & (runs["family"] != "grid")]
    own = own[own["run"].isin(figure_runs["run"])]
    if own.empty:
        raise NothingToDraw("no foveated run has recorded its attention entropy")
    present = [family for family in FAMILIES if (figure_runs["family"] == family).any()]
    figure, axes = panels(len(present), height=3.4, sharey=True)
    colours = colours_of(runs)
    for ax, family in zip(axes, present, strict=True):
        names = figure_runs[figure_runs["family"] == family]
        ends = _draw(ax, own[own["run"].isin(names["run"])], "attention_entropy", colours)
        for value in sorted({_uniform(row) for row in names.to_dict("records")} - {None}):
            ax.axhline(value, color=GREY, ls=":", lw=1)
            ax.annotate(
                f"uniform {value:.2f}",
                (0.01, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                va="top",
                textcoords="offset points",
                fontsize=7,
                color=GREY,
            )
        style.counts(ax)
        label_ends(ax, ends, gap=0.05)
        ax.set_title(FAMILIES[family])
        ax.set_xlabel("samples seen")
    axes[0].set_ylabel("attention entropy (nats)")
    return figure, own[["run", "step", "samples", "attention_entropy"]]


def _uniform(run: dict) -> float | None:
    """ln(patches + 1) of the run's encoder, where its configuration says so."""
    image, patch = (
        run.get("config.model.encoder.image", np.nan),
        run.get("config.model.encoder.patch", np.nan),
    )
    if pd.isna(image) or pd.isna(patch):
        return None
    return round(float(np.log((image // patch) ** 2 + 1)), 4)


def fine_coarse_ratio(runs: pd.DataFrame, validation_curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Validation loss of the fine pass over that of the coarse pass; below 1 looking twice pays."""
    own = validation_curves[validation_curves["loss_fine"].notna() & validation_curves["loss_coarse"].notna()]
    own = _without_start(own[own["run"].isin(runs["run"])])
    own = own.assign(ratio=own["loss_fine"] / own["loss_coarse"])
    if own.empty:
        raise NothingToDraw("no run here has both a fine and a coarse pass")
    families = runs.set_index("run")["family"]
    present = [family for family in FAMILIES if (own["run"].map(families) == family).any()]
    figure, axes = panels(len(present), height=3.4, width=2.6 * len(present) + 1.0, sharey=True)
    colours = colours_of(runs)
    for ax, family in zip(axes, present, strict=True):
        ends = _draw(ax, own[own["run"].map(families) == family], "ratio", colours)
        ax.axhline(1, color=GREY, ls=":", lw=1)
        if family == "grid":
            ax.set_xscale("log")
        style.counts(ax)
        if family != "grid":
            label_ends(ax, ends, gap=0.045)
        ax.set_title(FAMILIES[family])
        ax.set_xlabel("samples seen")
    axes[0].set_ylabel("fine loss / coarse loss (validation)")
    return figure, own[["run", "step", "samples", "loss_fine", "loss_coarse", "ratio"]]
