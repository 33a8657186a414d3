"""Figures of the evaluation: alternatives to foveated reading, the evaluation modes, tokens and compute."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from fvlm import style
from fvlm.analysis.columns import GROUP, INFERRED
from fvlm.analysis.compare.bootstrap import NO_INTERVAL, OVERALL, Cell, Estimate, bars_words
from fvlm.analysis.compare.runs import ComparedRuns
from fvlm.config.comparisons import Comparisons
from fvlm.style import GREY, SKY, NothingToDraw, dots, heading, panels


def alternatives(
    runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Evaluation loss of the reference and its alternatives by source, and the paired differences to the reference.

    A run trained without frames is so far away that the other differences would shrink to a line: left panel only.
    Without any evaluation, as in results from elsewhere, the best validation losses.
    """
    study, names = ComparedRuns(runs, evaluation, bootstrap), comparisons.figures.foveated_vs_alternatives
    members = study.runs[study.runs["base"].isin(names)]
    reference, kinds = comparisons.reference, members.drop_duplicates("base").set_index("base")["architecture"]
    found = evaluation[evaluation["run"].isin(members["run"]) & (evaluation["source"] != "all")]
    places = found[["source", "kind"]].drop_duplicates().sort_values("source").itertuples(index=False, name=None)
    cells = [OVERALL, *(Cell(source=source, kind=kind) for source, kind in places)]
    rows = [_alternative(study, base, reference, cell) for base in names for cell in cells]
    own, measure, first = pd.DataFrame([row for row in rows if row]), "held-out", "all sources"
    if own.empty:
        own = pd.DataFrame([row for row in (_by_validation(study, base, reference) for base in names) if row])
        cells, measure, first = [OVERALL], "best validation", "best validation loss"
    if own.empty or not (own["run"] != reference).any():
        raise NothingToDraw(f"of {', '.join(names)}, no two have been evaluated or validated")
    sources = [cell.source for cell in cells]
    figure, (left, right) = panels(2, height=1.6 + 0.6 * len(sources), sharey=True)
    looks = {}
    for name, marker in style.markers(names).items():
        variant = kinds.get(name) == "foveated" and name != reference
        label = style.seeded(f"{names[name]} ({name})", own.loc[own["run"] == name, "n_seeds"].max())
        looks[name] = (label, SKY if variant else style.ARCHITECTURE[kinds.get(name) or "foveated"], marker)
    shown = own.assign(difference=own["difference"].mask(own["run"].map(kinds) == "blind"))
    columns = (("loss", "low", "high"), ("difference", "difference_low", "difference_high"))
    style.forest((left, right), shown, "run", looks, columns, own["source"].map(sources.index), apart=0.115)
    style.bands((left, right), [first, *sources[1:]])
    left.set_xlabel(f"{measure} {style.LOSS}")
    right.set_xlabel(f"difference to {reference} (left: better)")
    heading(figure, "Foveated model against its alternatives")
    style.legend_below(figure, left, bars_words(own["interval"], style.LEFT_RIGHT))
    return figure, own


def _alternative(study: ComparedRuns, base: str, reference: str, cell: Cell) -> dict | None:
    loss = study.level(base, cell)
    if not np.isfinite(loss.value):
        return None
    if base == reference:
        gap, seeds = Estimate(), loss.n_seeds
    else:
        gap = study.difference(base, reference, cell)
        seeds = gap.n_seeds
    return {
        "run": base, "source": cell.source, "kind": cell.kind,
        "loss": loss.value, "low": loss.low, "high": loss.high, "n_seeds": seeds,
        "difference": gap.value, "difference_low": gap.low, "difference_high": gap.high, "interval": gap.interval,
    }  # fmt: skip


def _by_validation(study: ComparedRuns, base: str, reference: str) -> dict | None:
    """As `_alternative`, of best validation losses."""
    level = study.validation_estimate([base], lambda losses: losses[0])
    if not np.isfinite(level.value):
        return None
    gap = Estimate() if base == reference else study.validation_difference(base, reference)
    return {
        "run": base, "source": OVERALL.source, "kind": OVERALL.kind,
        "loss": level.value, "low": np.nan, "high": np.nan, "n_seeds": level.n_seeds,
        "difference": gap.value, "difference_low": gap.low, "difference_high": gap.high, "interval": gap.interval,
    }  # fmt: skip


def token_efficiency(token_efficiency: pd.DataFrame, runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss against visual tokens per frame, and against the training FLOPs of a sample; of imported pairs a panel per
    group."""
    table, pairs = token_efficiency, _pairs(runs)
    if table["tokens_per_frame"].nunique() < 2 and len(pairs):
        return _pairs_alone(pairs)
    if table.empty:
        raise NothingToDraw("no ablation of this study differs in how a frame is read")
    counted = bool(np.isfinite(table["flops_per_sample"]).any())  # imported results may have no FLOPs
    figure, axes = panels(1 + counted, height=3.6, sharey=True)
    left = axes[0]
    beside = table.groupby("tokens_per_frame").cumcount()  # runs with equally many tokens stand side by side
    marker = table.groupby("architecture").cumcount().map(lambda k: style.MARKERS[k % len(style.MARKERS)])
    for k, row in enumerate(table.to_dict("records")):
        variant = row["architecture"] == "foveated" and np.isfinite(row["difference"])
        colour = SKY if variant else style.ARCHITECTURE.get(row["architecture"], style.GREY)
        label = style.seeded(row["label"], row["n_seeds"])
        places = (row["tokens_per_frame"] * 1.25 ** beside[k], row["flops_per_sample"])
        for ax, x in zip(axes, places, strict=False):
            if np.isfinite(x):
                look = {"label": label if ax is left else None, "hollow": bool(row["data_differs"])}
                low, high = (row["loss"] + row[end] - row["difference"] for end in ("low", "high"))
                dots(ax, row["loss"], x, low, high, colour, marker[k], up=True, **look)
    left.set_xscale("symlog", base=4, linthresh=1)
    ticks = sorted(set(table["tokens_per_frame"].dropna()))
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    left.set_xlim(-0.4, max(ticks) * 1.8)
    left.set_xlabel("visual tokens per frame")
    left.set_ylabel(f"{table['measure'].iloc[0]} (nats per token)")
    for right in axes[1:]:
        right.set_xscale("log")
        right.margins(x=0.15)
        style.counts(right)
        right.set_xlabel("training FLOPs per sample (two per multiply-add)")
    hollow = "; hollow: trained on different data" if (table["data_differs"] != "").any() else ""
    heading(figure, f"Loss against visual tokens{' and compute' * counted}{hollow}")
    sure = bars_words(table["interval"], " of the difference to the foveated model,")
    style.legend_below(figure, left, sure)
    return figure, table


def _imported_modes(runs: pd.DataFrame) -> pd.DataFrame:
    """The losses in the mode of training and frame by frame of imported foveated runs, in the columns of `modes`."""
    if INFERRED not in runs:
        return pd.DataFrame()
    own = runs[(runs["architecture"] == "foveated") & runs[["final.val_loss", INFERRED]].notna().all(axis=1)]
    trained, inferred = own["final.val_loss"].astype(float), own[INFERRED].astype(float)
    about = own[["run", "family"]].assign(frames="own", trained_mode="coarse_fine", n_seeds=1, gap_interval=NO_INTERVAL)
    about = about.assign(**dict.fromkeys(("low", "high", "gap_low", "gap_high"), np.nan))
    gap = 100 * (inferred / trained - 1)
    parts = [
        about.assign(mode="coarse_fine", loss=trained, gap_percent=np.nan),
        about.assign(mode="autoregressive", loss=inferred, gap_percent=gap),
    ]
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)


def _pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """Imported runs that differ from a foveated one of the same group and size in how a frame is read, and that one;
    `difference`: above the foveated model's loss."""
    own = runs[(runs["family"] == "pairs") & runs["visual_tokens"].notna() & runs["final.val_loss"].notna()]
    if own.empty:
        return own
    names = {"visual_tokens": "tokens_per_frame", "final.val_loss": "loss"}
    own = own.rename(columns=names)[["run", GROUP, "size", "architecture", "params_total", *names.values()]]
    own = own.assign(size=own["size"].astype(str), **{GROUP: own[GROUP].fillna("").astype(str)})
    foveated = own[own["architecture"] == "foveated"].groupby([GROUP, "size"])["loss"].mean()
    own = own.join(foveated.rename("foveated"), on=[GROUP, "size"])
    own = own[own.groupby([GROUP, "size"])["tokens_per_frame"].transform("nunique") > 1]
    difference = (own["loss"] - own.pop("foveated")).where(own["architecture"] != "foveated")
    label = (own["size"] + " " + own[GROUP]).str.strip()
    return own.assign(label=label, difference=difference, low=np.nan, high=np.nan, measure="final validation loss")


def _pairs_alone(pairs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A line from one architecture to the other for each size."""
    groups = list(pairs[GROUP].drop_duplicates())
    figure, axes = style.plot_grid(len(groups), height=3.6)
    markers = style.markers(pairs.sort_values("params_total")["size"])
    for ax, group in zip(axes, groups, strict=True):
        for size, own in pairs[pairs[GROUP] == group].groupby("size", sort=False):
            ax.plot(*own.sort_values("tokens_per_frame")[["tokens_per_frame", "loss"]].to_numpy().T, color=GREY, lw=0.8)
            for row in own.to_dict("records"):
                look = {"marker": markers[size], "color": style.ARCHITECTURE[row["architecture"]]}
                ax.plot(row["tokens_per_frame"], row["loss"], ls="", zorder=3, **look)
        ax.set_xscale("log", base=4)
        ticks = sorted(set(pairs["tokens_per_frame"]))
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.margins(x=0.2)
        ax.set_title(group)
        ax.set_xlabel("visual tokens per frame")
        ax.set_ylabel(style.LOSS)
    heading(figure, "Final validation loss against visual tokens per frame, at equal samples")
    style.legend_of_grid(axes[0], pairs["architecture"].drop_duplicates(), markers)
    style.legend_below(figure, axes[0], "one seed each, no intervals", ncols=6)
    return figure, pairs


def three_modes(modes: pd.DataFrame, runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Left: loss by mode, with another sample's frames, and blind. Right: gap to the trained mode."""
    modes = _imported_modes(runs) if modes.empty else modes
    if modes.empty:
        raise NothingToDraw("no stage or ablation has been evaluated")
    order = {"stage": 0, "ablation": 1, "pairs": 2}
    table = modes.assign(
        shown=np.where(modes["frames"] == "other", "other", modes["mode"]), order=modes["family"].map(order)
    ).sort_values("order", kind="stable", ignore_index=True)
    runs = list(table["run"].drop_duplicates())
    figure, (left, right) = panels(
        2, height=1.5 + 0.24 * len(runs), sharey=True, gridspec_kw={"width_ratios": [1.4, 1]}
    )
    markers = style.markers(style.MODE_NAMES)
    looks = {name: (text, style.MODES[name], markers[name]) for name, text in style.MODE_NAMES.items()}
    near = table.assign(gap_percent=table["gap_percent"].mask(table["shown"].isin(("other", "blind"))))
    columns = (("loss", "low", "high"), ("gap_percent", "gap_low", "gap_high"))
    style.forest((left, right), near, "shown", looks, columns, table["run"].map(runs.index))
    for row in np.flatnonzero(np.diff(table.drop_duplicates("run")["order"])):  # between stages and ablations
        left.axhline(row + 0.5, color=GREY, lw=0.8)
        right.axhline(row + 0.5, color=GREY, lw=0.8)
    seeds = table.drop_duplicates("run")["n_seeds"]
    left.set_yticks(range(len(runs)), [style.seeded(*pair) for pair in zip(runs, seeds, strict=True)])
    left.set_ylim(len(runs) - 0.4, -0.6)
    if table["loss"].max() > 3 * table["loss"].min():  # frozen runs are far away
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        left.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel(f"held-out {style.LOSS}")
    right.set_xlabel("above the mode trained in (%)")
    heading(figure, "Evaluation modes")
    style.legend_below(figure, left, bars_words(table["gap_interval"], style.LEFT_RIGHT))
    return figure, table.drop(columns=["shown", "order"])
