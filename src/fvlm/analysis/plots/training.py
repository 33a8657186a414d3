"""Figures of what happens during training."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm import style
from fvlm.analysis.columns import REWARDS
from fvlm.analysis.compare.runs import scores_tokens
from fvlm.analysis.finished import base_name
from fvlm.config.comparisons import Comparisons
from fvlm.style import BLUE, GREY, NothingToDraw, label_ends, panels

FAMILIES = {"stage": "Stages", "ablation": "Ablations", "grid": "Scaling grid"}
FAINT = 60  # points of a faint training curve
FAR = 5.0  # highest over lowest loss from which an axis is logarithmic
KINDS = (style.ORANGE, style.BROWN, style.PURPLE, style.SKY, style.YELLOW)  # of ablations with the same first letters


def colours_of(runs: pd.DataFrame, reference: str) -> dict[str, str]:
    """Run -> colour: stages one each; grid runs, the reference and architectures that are not foveated by architecture;
    other ablations by the first letters of their names."""
    result, stages, kinds = {}, 0, {}
    for row in runs.to_dict("records"):
        if row["family"] == "grid":
            result[row["run"]] = style.ARCHITECTURE[row["architecture"]]
        elif row["family"] == "stage":
            result[row["run"]] = style.CYCLE[stages % len(style.CYCLE)]
            stages += 1
        else:
            base = base_name(row["run"])
            if base == reference or row["architecture"] != "foveated":
                result[row["run"]] = style.ARCHITECTURE[row["architecture"]]
                continue
            letters = re.match(r"[^\d_]*", base)[0]
            result[row["run"]] = kinds.setdefault(letters, KINDS[len(kinds)] if len(kinds) < len(KINDS) else GREY)
    return result


def _draw(
    ax: Axes, curves: pd.DataFrame, column: str, colours: dict[str, str], reference: str, width: float = 1.4
) -> list:
    """One line per run, the reference's thicker, those of further seeds thinner; return the ends of the first seeds for
    their labels."""
    own = curves[curves[column].notna()]
    bases = own["run"].map(base_name)
    seeds = own["run"].groupby(bases).nunique()
    ends: dict[str, tuple] = {}
    for run, curve in own.groupby("run", sort=False):
        base = base_name(run)
        wide = 2.2 if base == reference else width
        look = {"lw": 0.5 * wide if base in ends else wide, "zorder": 3 if base == reference else 2}
        ax.plot(curve["samples"], curve[column], color=colours[run], marker="o" if len(curve) == 1 else None, **look)
        end = (curve["samples"].iloc[-1], curve[column].iloc[-1], style.seeded(base, seeds[base]), colours[run])
        ends.setdefault(base, end)
    return list(ends.values())


def _without_start(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves without the validation before the first step, which would set the scale of the axis."""
    return curves[curves["step"] > 0]


def training_curves(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, training_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Validation loss against samples, one panel per family; the train loss is faint. Runs on preferences have
    a loss per pair and a figure of their own."""
    runs = runs[scores_tokens(runs)]
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
        _family(ax, names, own, train, comparisons.reference)
        ax.set_title(FAMILIES[family])
        ax.set_xlabel("samples seen")
    axes[0].set_ylabel(f"validation {style.LOSS}; faint: training")
    return figure, validation[["run", "step", "samples", "flops", "val_loss"]]


def _family(ax: Axes, runs: pd.DataFrame, validation: pd.DataFrame, train: pd.DataFrame, reference: str) -> None:
    """One panel; a grid has too many runs to name each, so its sizes are markers at the ends."""
    colours = colours_of(runs, reference)
    for run, curve in train.groupby("run", sort=False):
        smooth = curve[["samples", "train_loss"]].groupby(np.arange(len(curve)) * FAINT // len(curve)).mean()
        ax.plot(smooth["samples"], smooth["train_loss"], color=colours[run], lw=0.7, alpha=0.3, zorder=1)
    grid = (runs["family"] == "grid").all()
    if grid:
        ax.set_xscale("log")
        ax.set_xlim(validation["samples"].min() * 0.8, validation["samples"].max() * 1.5)
    ends = _draw(ax, validation, "val_loss", colours, reference, width=0.8 if grid else 1.4)
    low, high = validation["val_loss"].min(), validation["val_loss"].max()
    if high > FAR * low:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.1, high * 1.05)
        style.losses(ax)
    else:
        ax.set_ylim(low - 0.08 * (high - low) - 1e-3, high + 0.03 * (high - low) + 1e-3)
    style.counts(ax)
    if not grid:
        label_ends(ax, ends, gap=0.038)
        return
    order = list(runs.sort_values("params_total")["size"].drop_duplicates())
    last = validation.groupby("run", sort=False).tail(1).merge(runs[["run", "size"]], on="run")
    for run, x, y, size in last[["run", "samples", "val_loss", "size"]].itertuples(index=False, name=None):
        marker = style.MARKERS[order.index(size) % len(style.MARKERS)]
        ax.plot(x, y, marker=marker, color=colours[run], ls="", zorder=4)
    for name in runs["architecture"].drop_duplicates():
        ax.plot([], [], color=style.ARCHITECTURE[name], label=style.NAMES[name])
    for i, size in enumerate(order):
        ax.plot([], [], color=GREY, marker=style.MARKERS[i % len(style.MARKERS)], ls="", label=size)
    ax.legend(loc="upper right")


def freezing(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Validation loss of the runs with frozen parts and of the reference, one line per seed."""
    names = comparisons.figures.freezing
    frozen, colours = set(names) - {comparisons.reference}, iter((style.ORANGE, style.SKY, *KINDS[1:]))
    own = _without_start(validation_curves)
    own = own.assign(base=own["run"].map(base_name))
    own = own[own["base"].isin(names)]
    if not set(own["base"]) & frozen:
        raise NothingToDraw(f"the study has none of the runs with frozen parts ({', '.join(sorted(frozen))})")
    figure, (ax,) = panels(1, height=3.0)
    for base, text in names.items():
        curves = own[own["base"] == base]
        colour = BLUE if base == comparisons.reference else next(colours)
        label = style.seeded(f"{text} ({base})", curves["run"].nunique())
        for i, (_, curve) in enumerate(curves.groupby("run", sort=False)):
            look = {"color": colour, "marker": "o", "ms": 3.5, "label": None if i else label}
            ax.plot(curve["samples"], curve["val_loss"], **look)
    ax.set_xlim(left=0)
    style.counts(ax)
    if own["val_loss"].max() > FAR * own["val_loss"].min():
        ax.set_yscale("log")
        style.losses(ax)
    ax.set_xlabel("samples seen")
    ax.set_ylabel(f"validation {style.LOSS}")
    ax.set_title("What is trained")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, own[["run", "step", "samples", "val_loss"]]


def _families(
    runs: pd.DataFrame, curves: pd.DataFrame, column: str, reference: str, width: float
) -> tuple[Figure, list[Axes], list[str]]:
    """One panel per family of runs, each curve named at its end; return the figure, its panels and their families."""
    families = runs.set_index("run")["family"]
    own = curves["run"].map(families)
    present = [family for family in FAMILIES if (own == family).any()]
    figure, axes = panels(len(present), height=3.4, width=width * len(present) + 1.0, sharey=True)
    colours, ends = colours_of(runs, reference), []
    for ax, family in zip(axes, present, strict=True):
        drawn = _draw(ax, curves[own == family], column, colours, reference)
        ends.append([] if family == "grid" else drawn)
        if family == "grid":
            ax.set_xscale("log")
        style.counts(ax)
        ax.set_title(FAMILIES[family])
        ax.set_xlabel("samples seen")
    for ax, drawn in zip(axes, ends, strict=True):  # once the common axis has its limits
        label_ends(ax, drawn)
    return figure, axes, present


def attention_entropy(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Entropy of the query's attention over training; the dotted line is uniform attention over all patches and CLS."""
    own = validation_curves[validation_curves["attention_entropy"].notna()]
    own = own[own["run"].isin(runs.loc[runs["family"] != "grid", "run"])]
    if own.empty:
        raise NothingToDraw("no foveated run has recorded its attention entropy")
    figure, axes, present = _families(runs, own, "attention_entropy", comparisons.reference, width=3.1)
    for ax, family in zip(axes, present, strict=True):
        names = runs[(runs["family"] == family) & runs["run"].isin(own["run"])]
        for value in sorted({_uniform(row) for row in names.to_dict("records")} - {None}):
            ax.axhline(value, color=GREY, ls=":", lw=1)
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (0, 2)}
            ax.annotate(f"uniform {value:.2f}", (0.99, value), **place, ha="right", fontsize=7, color=GREY)
    axes[0].set_ylabel("attention entropy (nats)")
    return figure, own[["run", "step", "samples", "attention_entropy"]]


def _uniform(run: dict) -> float | None:
    """ln(patches + 1) of the run's encoder, if its configuration has them."""
    image, patch = (run.get(f"config.model.encoder.{name}", np.nan) for name in ("image", "patch"))
    return None if pd.isna(image) or pd.isna(patch) else round(float(np.log((image // patch) ** 2 + 1)), 4)


def fine_coarse_ratio(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Validation loss of the fine pass over that of the coarse pass; below 1 a second look pays."""
    own = validation_curves[validation_curves["loss_fine"].notna() & validation_curves["loss_coarse"].notna()]
    own = _without_start(own[own["run"].isin(runs["run"])])
    own = own.assign(ratio=own["loss_fine"] / own["loss_coarse"])
    if own.empty:
        raise NothingToDraw("no run has both a fine and a coarse pass")
    figure, axes, _ = _families(runs, own, "ratio", comparisons.reference, width=2.6)
    for ax in axes:
        ax.axhline(1, color=GREY, ls=":", lw=1)
    axes[0].set_ylabel("fine loss / coarse loss (validation)")
    return figure, own[["run", "step", "samples", "loss_fine", "loss_coarse", "ratio"]]


PREFERENCE = {  # panel: what is validated, what is trained, and the value of a model that does not prefer
    "DPO loss (nats per pair)": ("val_loss", "train_loss", np.log(2)),
    "reward accuracy": ("reward_accuracy", "reward_accuracy", 0.5),
    "reward margin": ("reward_margin", "reward_margin", 0.0),
}


def preference(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, training_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Loss, accuracy and margin of the runs that learn to prefer one answer; the training faint."""
    own = _without_start(validation_curves[validation_curves["reward_accuracy"].notna()])
    train = training_curves[training_curves["reward_accuracy"].notna()]
    if own.empty:
        raise NothingToDraw("no run of this study learns to prefer one answer to another")
    figure, axes = panels(len(PREFERENCE), height=2.9)
    colours = colours_of(runs, comparisons.reference)
    for ax, (title, (validated, trained, indifferent)) in zip(axes, PREFERENCE.items(), strict=True):
        for run, curve in train.groupby("run", sort=False):
            smooth = curve[["samples", trained]].groupby(np.arange(len(curve)) * FAINT // len(curve)).mean()
            ax.plot(smooth["samples"], smooth[trained], color=colours[run], lw=0.7, alpha=0.4)
        for run, curve in own.groupby("run", sort=False):
            ax.plot(curve["samples"], curve[validated], color=colours[run], marker="o", ms=3.5, label=run)
        ax.axhline(indifferent, color=GREY, ls=":", lw=1)
        style.counts(ax)
        ax.set_title(title)
        ax.set_xlabel("pairs seen")
    style.legend_below(figure, axes[0], "held-out pairs; faint: training; dotted: no preference")
    return figure, own[["run", "step", "samples", "val_loss", *REWARDS]]
