"""Figures of what happens during training."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm import style
from fvlm.analysis.columns import GROUP, REWARDS
from fvlm.analysis.compare.runs import is_adopted, scores_tokens
from fvlm.analysis.finished import base_name
from fvlm.config.comparisons import Comparisons
from fvlm.style import BLUE, GREY, NothingToDraw, label_ends, panels

FAMILIES = {
    "stage": "Stages",
    "ablation": "Ablations",
    "grid": "Scaling grid",
    "scaling": "Long runs",
    "pairs": "Pairs",
}
FAINT = 60  # points of a faint training curve
OF_ONE_STEP = 12  # the same where each loss is that of one step, as in results from elsewhere
FAR = 5.0  # highest over lowest loss from which an axis is logarithmic
KINDS = (style.ORANGE, style.BROWN, style.PURPLE, style.SKY, style.YELLOW)  # of ablations with the same first letters


def colours_of(runs: pd.DataFrame, reference: str) -> dict[str, str]:
    """Run -> colour: stages one each; grid runs, the reference and architectures that are not foveated by architecture;
    other ablations, and those of an unknown architecture, by the first letters of their names."""
    result, stages, kinds = {}, 0, {}
    for row in runs.to_dict("records"):
        if row["family"] in ("grid", "pairs"):
            result[row["run"]] = style.ARCHITECTURE[row["architecture"]]
        elif row["family"] in ("stage", "scaling"):
            result[row["run"]] = style.CYCLE[stages % len(style.CYCLE)]
            stages += 1
        else:
            base = base_name(row["run"])
            if base == reference or row["architecture"] not in ("foveated", ""):
                result[row["run"]] = style.ARCHITECTURE[row["architecture"]]
                continue
            letters = re.match(r"[^\d_]*", base)[0]
            result[row["run"]] = kinds.setdefault(letters, KINDS[len(kinds)] if len(kinds) < len(KINDS) else GREY)
    return result


def _panel(
    ax: Axes, curves: pd.DataFrame, column: str, colours: dict[str, str], reference: str,
    train: pd.DataFrame | None = None, level: float | None = None, width: float = 1.4, bins: int = FAINT,
) -> list[tuple]:  # fmt: skip
    """Draw one line per run against samples, the reference's thicker, those of further seeds thinner.

    train   training curves (samples, value) to be drawn faint, each as `bins` means; level: a dotted line
    returns the ends of the first seeds, for their labels
    """
    for run, curve in train.groupby("run", sort=False) if train is not None else ():
        smooth = curve[["samples", "value"]].groupby(np.arange(len(curve)) * bins // len(curve)).mean()
        ax.plot(smooth["samples"], smooth["value"], color=colours[run], lw=0.7, alpha=0.3, zorder=1)
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
    if level is not None:
        ax.axhline(level, color=GREY, ls=":", lw=1)
    ax.set_xlabel("samples seen")
    return list(ends.values())


def _of(curves: pd.DataFrame, runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The curves of runs that have a column, without the validation before the first step, which would set the scale of
    the axis."""
    known = curves[column].notna() & curves["samples"].notna()  # results from elsewhere may have steps alone
    return curves[curves["run"].isin(runs["run"]) & known & (curves["step"] > 0)]


def _by_family(runs: pd.DataFrame, curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Family -> its runs that have curves, in the order of the panels."""
    runs = runs[runs["run"].isin(curves["run"])]
    return {family: own for family in FAMILIES if len(own := runs[runs["family"] == family])}


def _loss_axis(ax: Axes, losses: pd.Series) -> None:
    """Logarithmic where one loss is several times another; else a little wider than the losses."""
    low, high = losses.min(), losses.max()
    if high > FAR * low:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.1, high * 1.05)
        style.losses(ax)
    else:
        ax.set_ylim(low - 0.08 * (high - low) - 1e-3, high + 0.03 * (high - low) + 1e-3)
    style.counts(ax)


def training_curves(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, training_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Validation loss against samples, one panel per family; the train loss is faint. Runs on preferences have
    a loss per pair and a figure of their own."""
    runs = runs[scores_tokens(runs)]
    validation = _of(validation_curves, runs, "val_loss")
    train = training_curves[training_curves["train_loss"].notna()].rename(columns={"train_loss": "value"})
    families = _by_family(runs, validation)
    if not families:
        raise NothingToDraw("no run has been validated")
    most, bins = min(len(families), 3), OF_ONE_STEP if GROUP in runs else FAINT
    figure, axes = style.plot_grid(len(families), 4.2 * (1 if len(families) == 1 else 4 / 3), most=most)
    figure.set_figwidth(3.2 * most + 0.6)
    for ax, (family, names) in zip(axes, families.items(), strict=True):
        own, grid = validation[validation["run"].isin(names["run"])], family == "grid"
        colours = colours_of(runs[runs["family"] == family], comparisons.reference)
        faint = train[train["run"].isin(runs.loc[runs["family"] == family, "run"])]
        if grid or family == "scaling":
            ax.set_xscale("log")
        if grid:
            ax.set_xlim(own["samples"].min() * 0.8, own["samples"].max() * 1.5)
        width = 0.8 if grid else 1.4
        ends = _panel(ax, own, "val_loss", colours, comparisons.reference, faint, width=width, bins=bins)
        _loss_axis(ax, own["val_loss"])
        _mark_sizes(ax, names, own, colours) if grid else label_ends(ax, ends, gap=0.038)
        ax.set_title(FAMILIES[family])
    axes[0].set_ylabel(f"validation {style.LOSS}; faint: training")
    return figure, validation[["run", "step", "samples", "flops", "val_loss"]]


def _mark_sizes(ax: Axes, runs: pd.DataFrame, validation: pd.DataFrame, colours: dict[str, str]) -> None:
    """A grid has too many runs to name each: its sizes are markers at the ends."""
    markers = style.markers(runs.sort_values("params_total")["size"])
    runs = runs.assign(adopted=is_adopted(runs) if not is_adopted(runs).all() else 0)
    last = (
        validation.groupby("run", sort=False).tail(1).merge(runs[["run", "size", "architecture", "adopted"]], on="run")
    )
    style.mark_adopted(ax, last, "samples", "val_loss")
    for run, x, y, size in last[["run", "samples", "val_loss", "size"]].itertuples(index=False, name=None):
        ax.plot(x, y, marker=markers[size], color=colours[run], ls="", zorder=4)
    style.legend_of_grid(ax, runs["architecture"].drop_duplicates(), markers, loc="upper right")


def freezing(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Validation loss of the runs with frozen parts and of the reference, one line per seed."""
    names = comparisons.figures.freezing
    chosen = runs[runs["run"].map(base_name).isin(names)]
    own = _of(validation_curves, chosen, "val_loss")
    frozen = set(names) - {comparisons.reference}
    if not frozen & set(own["run"].map(base_name)):
        raise NothingToDraw(f"the study has none of the runs with frozen parts ({', '.join(sorted(frozen))})")
    looks = dict(zip(sorted(frozen, key=list(names).index), (style.ORANGE, style.SKY, *KINDS[1:]), strict=False))
    colours = {run: looks.get(base_name(run), BLUE) for run in own["run"]}
    figure, (ax,) = panels(1, height=3.0)
    ends = _panel(ax, own, "val_loss", colours, comparisons.reference)
    _loss_axis(ax, own["val_loss"])
    ax.set_xlim(left=0)
    label_ends(ax, [(x, y, f"{names[text.split(',')[0]]} ({text})", colour) for x, y, text, colour in ends])
    ax.set_ylabel(f"validation {style.LOSS}")
    ax.set_title("What is trained")
    return figure, own[["run", "step", "samples", "val_loss"]]


def _families(
    runs: pd.DataFrame, curves: pd.DataFrame, column: str, reference: str, width: float
) -> tuple[Figure, dict[str, Axes]]:
    """One panel per family of runs, each curve named at its end; return the figure, and its panels by family."""
    families, colours = _by_family(runs, curves), colours_of(runs, reference)
    figure, axes = panels(len(families), height=3.4, width=width * len(families) + 1.0, sharey=True)
    ends = []
    for ax, (family, names) in zip(axes, families.items(), strict=True):
        ends.append(_panel(ax, curves[curves["run"].isin(names["run"])], column, colours, reference))
        ax.set_xscale("log" if family == "grid" else "linear")
        style.counts(ax)
        ax.set_title(FAMILIES[family])
    for ax, family, drawn in zip(axes, families, ends, strict=True):  # once the common axis has its limits
        label_ends(ax, [] if family == "grid" else drawn)
    return figure, dict(zip(families, axes, strict=True))


def attention_entropy(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Entropy of the query's attention over training; the dotted line is uniform attention over all patches and CLS."""
    own = validation_curves[validation_curves["attention_entropy"].notna()]
    own = own[own["run"].isin(runs.loc[runs["family"] != "grid", "run"])]
    if own.empty:
        raise NothingToDraw("no foveated run has recorded its attention entropy")
    figure, axes = _families(runs, own, "attention_entropy", comparisons.reference, width=3.1)
    for family, ax in axes.items():
        names = runs[(runs["family"] == family) & runs["run"].isin(own["run"])]
        for value in sorted({_uniform(row) for row in names.to_dict("records")} - {None}):
            ax.axhline(value, color=GREY, ls=":", lw=1)
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (0, 2)}
            ax.annotate(f"uniform {value:.2f}", (0.99, value), **place, ha="right", fontsize=7, color=GREY)
    figure.axes[0].set_ylabel("attention entropy (nats)")
    return figure, own[["run", "step", "samples", "attention_entropy"]]


def _uniform(run: dict) -> float | None:
    """ln(patches + 1) of the run's encoder, if its configuration has them."""
    image, patch = (run.get(f"config.model.encoder.{name}", np.nan) for name in ("image", "patch"))
    return None if pd.isna(image) or pd.isna(patch) else round(float(np.log((image // patch) ** 2 + 1)), 4)


def fine_coarse_ratio(
    runs: pd.DataFrame, validation_curves: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Validation loss of the fine pass over that of the coarse pass; below 1 a second look pays."""
    own = _of(validation_curves, runs, "loss_fine")
    own = own.assign(ratio=own["loss_fine"] / own["loss_coarse"]).dropna(subset="ratio")
    if own.empty:
        raise NothingToDraw("no run has both a fine and a coarse pass")
    figure, axes = _families(runs, own, "ratio", comparisons.reference, width=2.6)
    for ax in axes.values():
        ax.axhline(1, color=GREY, ls=":", lw=1)
    figure.axes[0].set_ylabel("fine loss / coarse loss (validation)")
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
    own = _of(validation_curves, runs, "reward_accuracy")
    train = training_curves[training_curves["reward_accuracy"].notna()]
    if own.empty:
        raise NothingToDraw("no run of this study learns to prefer one answer to another")
    figure, axes = panels(len(PREFERENCE), height=2.9)
    colours = colours_of(runs, comparisons.reference)
    for ax, (title, (validated, trained, indifferent)) in zip(axes, PREFERENCE.items(), strict=True):
        faint = train.assign(value=train[trained])
        ends = _panel(ax, own, validated, colours, comparisons.reference, faint, indifferent)
        style.counts(ax)
        label_ends(ax, ends)
        ax.set_title(title)
        ax.set_xlabel("pairs seen")
    figure.supxlabel("held-out pairs; faint: training; dotted: no preference", fontsize=8)
    return figure, own[["run", "step", "samples", "val_loss", *REWARDS]]
