"""Figures of the use of frames: own frames against other ones, and question first against video first."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm import style
from fvlm.analysis.compare.bootstrap import QUESTION_FIRST, VIDEO_FIRST, VISUAL, Cell, Estimate, bars_words
from fvlm.analysis.compare.modes import GAIN, PASSES
from fvlm.analysis.compare.runs import ComparedRuns, difference, trained_mode
from fvlm.config.comparisons import Comparisons
from fvlm.style import BLUE, GREY, ORANGE, PURPLE, NothingToDraw, dots, heading

SIGHTS = {  # frames shown: label, colour, marker
    "own": ("own frames", BLUE, "o"),
    "other": ("another sample's frames", ORANGE, "s"),
    "none": ("no frames", PURPLE, "^"),
}
BLIND = "no frames, model trained without frames", GREY, "D"  # of the run of architecture `blind`
ORDERS = {VIDEO_FIRST: ("video first", BLUE, "o"), QUESTION_FIRST: ("question first", ORANGE, "s")}
NAMES = {**style.MODE_NAMES, GAIN: "interaction\n(fine − coarse)"}


def seeing(
    runs: pd.DataFrame, evaluation: pd.DataFrame, bootstrap: pd.DataFrame, comparisons: Comparisons
) -> tuple[Figure, pd.DataFrame]:
    """Loss with a sample's own frames, another's, and none, by source with frames; one row of panels per run.

    Left: losses. Right: differences to the own frames. Of the last stage that is scored in tokens and of the reference
    run; beside the reference the ablation trained without frames, which could learn to do without.
    """
    study, reference = ComparedRuns(runs, evaluation, bootstrap), comparisons.reference
    stages, ablations = study.of_family("stage")["base"], study.of_family("ablation")
    blind = ablations.loc[ablations["architecture"] == "blind", "base"].drop_duplicates()[:1]
    beside = {reference: list(blind)}
    bases = [base for base in (*stages.drop_duplicates()[-1:], reference) if study.seeds(base)]
    table = pd.DataFrame([row for base in bases for row in _sights(study, base, evaluation, beside.get(base, []))])
    if table.empty:
        raise NothingToDraw("no stage and not the reference run has been evaluated on samples with frames")
    shown = list(table.groupby("run", sort=False))
    heights = [part["source"].nunique() for _, part in shown]
    figure = style.plt.figure(figsize=(style.WIDTH, 1.5 + 0.36 * sum(heights) + 0.3 * len(shown)))
    axes = figure.subplots(len(shown), 2, squeeze=False, sharey="row", sharex="col", height_ratios=heights)
    for (left, right), (name, part) in zip(axes, shown, strict=True):
        _draw_sights(left, right, part.reset_index(drop=True))
        left.set_title(style.seeded(name, part["n_seeds"].iloc[0]))
    axes[-1, 0].set_xlabel(f"held-out {style.LOSS}")
    axes[-1, 1].set_xlabel("above the own frames (nats per token)")
    heading(figure, "Does the model use its frames? Loss with its own, another sample's, and none")
    looks = SIGHTS | {name: (f"{BLIND[0]} ({name})", *BLIND[1:]) for name in blind}
    for text, colour, marker in (looks[name] for name in looks if (table["shown"] == name).any()):
        axes[0, 0].plot([], [], color=colour, marker=marker, ls="", label=text)
    style.legend_below(figure, axes[0, 0], bars_words(table["interval"], style.LEFT_RIGHT), ncols=2)
    return figure, table


def _sights(study: ComparedRuns, base: str, evaluation: pd.DataFrame, blind: list[str]) -> list[dict]:
    members = study.runs[study.runs["base"] == base]
    own = evaluation[evaluation["run"].isin(members["run"]) & (evaluation["kind"] != "text")]
    alone = own[own["source"] != "all"][["source", "kind"]].drop_duplicates().sort_values("source")
    trained = trained_mode(members.iloc[0])
    rows = []
    for source, kind in (("all", VISUAL), *alone.itertuples(index=False, name=None)):
        place = {"source": source, "kind": kind}
        terms = {
            "own": (base, Cell(trained, **place)),
            "other": (base, Cell(trained, "other", **place)),
            "none": (base, Cell("blind", "none", **place)),
        }
        terms |= {name: (name, Cell("direct", **place)) for name in blind}
        for shown, term in terms.items():
            loss = study.level(*term)
            if np.isnan(loss.value):
                continue
            gap = Estimate() if shown == "own" else study.estimate([term, terms["own"]], difference)
            row = {
                "run": base, **place, "shown": shown,
                "loss": loss.value, "low": loss.low, "high": loss.high, "n_seeds": loss.n_seeds,
                "above_own": gap.value, "above_low": gap.low, "above_high": gap.high, "interval": gap.interval,
            }  # fmt: skip
            rows.append(row)
    return rows


def _draw_sights(left: Axes, right: Axes, part: pd.DataFrame) -> None:
    sources = list(part["source"].drop_duplicates())
    looks = {name: ("", *SIGHTS.get(name, BLIND)[1:]) for name in part["shown"].drop_duplicates()}
    columns = (("loss", "low", "high"), ("above_own", "above_low", "above_high"))
    style.forest((left, right), part, "shown", looks, columns, part["source"].map(sources.index), apart=0.18)
    style.bands((left, right), ["all with frames", *sources[1:]])


def question_order(question_order: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Left: loss by pass and order. Right: what the question in front changes in each pass, and the interaction."""
    if question_order.empty:
        raise NothingToDraw("no run of this study was trained with the question first (data.question_first)")
    shown = list(question_order.groupby("run", sort=False))
    figure = style.plt.figure(figsize=(style.WIDTH, 0.9 + 2.4 * len(shown)))
    axes = figure.subplots(len(shown), 2, squeeze=False, width_ratios=[1.15, 1])
    for (left, right), (name, table) in zip(axes, shown, strict=True):
        _draw_orders(left, right, table.set_index("mode"))
        left.set_title(style.seeded(name, table["n_seeds"].iloc[0]))
    axes[-1, 1].set_xlabel("question first − video first\n(nats per token; left: better)")
    heading(figure, "Question first or video first, over the sources with frames")
    style.legend_below(figure, axes[0, 0], bars_words(question_order["interval"]))
    return figure, question_order


def _draw_orders(left: Axes, right: Axes, table: pd.DataFrame) -> None:
    passes = [name for name in PASSES if name in table.index]
    for order, (text, colour, marker) in ORDERS.items():
        left.plot(range(len(passes)), table.loc[passes, order], color=colour, marker=marker, label=text)
    left.set_xticks(range(len(passes)), [NAMES[name].replace(" + ", "\n+ ") for name in passes])
    left.set_xlim(-0.3, len(passes) - 0.7)
    left.set_ylabel(f"held-out {style.LOSS}")
    for y, name in enumerate(table.index):
        row = table.loc[name]
        dots(right, row["difference"], y, row["low"], row["high"], ORANGE if name != GAIN else GREY, "s")
    right.axvline(0, color=GREY, lw=1)
    right.set_yticks(range(len(table)), [NAMES[name] for name in table.index])
    right.set_ylim(len(table) - 0.5, -0.5)
