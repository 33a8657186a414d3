"""What the analysis makes: every table and figure, and what each needs.

Imported while Snakemake parses the Snakefile, so nothing heavy may be imported here.
"""

from dataclasses import dataclass

FIRST = "1. Decisions"  # Snakemake sorts the categories of a report


@dataclass(frozen=True)
class Entry:
    """A derived table or a figure: `function` ("module:name" in this package) makes it of the tables in `needs`, which
    may be derived tables above it, and of the study's comparisons or attention maps."""

    title: str
    category: str
    needs: tuple[str, ...]
    function: str
    comparisons: bool = False
    attention: bool = False
    benchmarks: bool = False  # only of a study with benchmarks
    grid: bool = False  # of a study that trains, only the runs of the scaling grid can be drawn
    on_request: str = ""  # why a figure is not in the report: `snakemake results/figures/NAME.png` makes it


COLLECTED = ("runs", "validation_curves", "training_curves", "evaluation", "bootstrap", "benchmarks")

COMPARED = ("runs", "evaluation", "bootstrap")
WITH_NOISE = (*COMPARED, "validation_curves")
CURVES = ("runs", "validation_curves", "training_curves")

TABLES = {
    "ablations": Entry("Ablations, ranked", "Ablations", WITH_NOISE, "compare.ranking:ablations", comparisons=True),
    "factorial": Entry(
        "Query depth x fine pass", "Ablations", WITH_NOISE, "compare.factorial:factorial", comparisons=True
    ),
    "modes": Entry("Losses by evaluation mode", "Evaluation", COMPARED, "compare.modes:modes"),
    "token_efficiency": Entry(
        "Loss against visual tokens per frame", "Baselines", COMPARED, "compare.modes:token_efficiency",
        comparisons=True,
    ),
    "question_order": Entry(
        "Question first or video first", "Evaluation", COMPARED, "compare.modes:question_order"
    ),
    "points": Entry("Points of the grid", "Scaling", ("runs",), "fits.grid:points"),
    "points_by_run": Entry("Points of the grid, by run", "Scaling", ("runs",), "fits.grid:points_by_run"),
    "curves": Entry("Validation curves, with sizes", "Training", ("runs", "validation_curves"), "fits.grid:curves"),
    "scaling_fits": Entry("Scaling fits", "Scaling", ("runs",), "fits.scaling:scaling_fits"),
    "isoflop": Entry("Iso-FLOP minima", "Scaling", ("runs",), "fits.isoflop:isoflop"),
    "gap": Entry("Gap to pooled tokens", "Scaling", COMPARED, "compare.gap:gap", comparisons=True),
    "decisions": Entry(
        "Decisions", FIRST, (*WITH_NOISE, "scaling_fits", "isoflop"), "decisions.table:decisions", comparisons=True
    ),
}  # fmt: skip

FIGURES = {
    # the standard set: what a reader needs to decide what to do next
    "seeing": Entry(
        "Does the model use its frames?", "Evaluation", COMPARED, "plots.seeing:seeing", comparisons=True
    ),
    "three_modes": Entry("Evaluation modes", "Evaluation", ("modes", "runs"), "plots.evaluation:three_modes"),
    "foveated_vs_alternatives": Entry(
        "Foveated model against its alternatives", "Baselines", COMPARED, "plots.evaluation:alternatives",
        comparisons=True,
    ),
    "token_efficiency": Entry(
        "Loss against visual tokens and FLOPs", "Baselines", ("token_efficiency", "runs"),
        "plots.evaluation:token_efficiency",
    ),
    "ablation_ranking": Entry("Ablations, ranked", "Ablations", ("ablations",), "plots.ablation:ranking"),
    "factorial": Entry("Query depth x fine pass", "Ablations", ("factorial",), "plots.ablation:factorial"),
    "attention_heatmaps": Entry("Where the model looks", "Attention", (), "plots.attention:heatmaps", attention=True),
    "benchmarks": Entry(
        "Benchmarks", "Benchmarks", ("benchmarks",), "plots.benchmarks:benchmarks", comparisons=True, benchmarks=True
    ),
    "training_curves": Entry(
        "Training curves", "Training", CURVES, "plots.training:training_curves", comparisons=True
    ),
    "loss_vs_flops": Entry(
        "Loss against training FLOPs", "Scaling", ("runs", "validation_curves", "scaling_fits"),
        "plots.flops:loss_vs_flops", grid=True,
    ),
    "isoflop": Entry(
        "Iso-FLOP curves", "Scaling", ("runs", "isoflop", "validation_curves"), "plots.scaling:isoflop", grid=True
    ),
    "isoflop_optimum": Entry(
        "Best size at each budget", "Scaling", ("isoflop", "scaling_fits"), "plots.fits:isoflop_optimum", grid=True
    ),
    "model_size_scaling": Entry(
        "Loss against model size", "Scaling", ("runs", "validation_curves"), "plots.scaling:model_size", grid=True
    ),
    "gap": Entry("Gap to pooled tokens", "Scaling", ("gap",), "plots.scaling:gap"),
    # on request, with the reason
    "freezing": Entry(
        "What must be trained", "Ablations", ("runs", "validation_curves"), "plots.training:freezing",
        comparisons=True, on_request="its runs are in the ranking and among the training curves",
    ),
    "question_order": Entry(
        "Question first or video first", "Evaluation", ("question_order",), "plots.seeing:question_order",
        on_request="of one run; the decision page answers its question, the table has its numbers",
    ),
    "attention_entropy": Entry(
        "Attention entropy over training", "Attention", ("runs", "validation_curves"),
        "plots.training:attention_entropy", comparisons=True,
        on_request="a check of the optimisation: a query that stays uniform has not learnt to look",
    ),
    "fine_coarse_ratio": Entry(
        "Loss of the fine pass over the coarse pass", "Training", ("runs", "validation_curves"),
        "plots.training:fine_coarse_ratio", comparisons=True,
        on_request="the evaluation modes compare the passes on held-out samples",
    ),
    "preference": Entry(
        "Preferring the better answer", "Training", CURVES, "plots.training:preference", comparisons=True,
        on_request="of one optional stage",
    ),
    "chinchilla_ratio": Entry(
        "Tokens per parameter", "Scaling", ("runs",), "plots.scaling:chinchilla_ratio",
        on_request="the table of fits has the ratio and marks runs with too few tokens",
    ),
    "gap_arrows": Entry(
        "The gap on its curves", "Scaling", ("gap",), "plots.gap:gap_arrows",
        on_request="explains how the gap at equal parameters is read off; the numbers are those of `gap`",
    ),
    "envelope": Entry(
        "Envelope of training curves", "Scaling", ("runs", "validation_curves"), "plots.fits:envelope",
        on_request="a second estimate of the best size, beside the iso-FLOP minima",
    ),
    "contours": Entry(
        "Fitted loss over N and D", "Scaling", ("runs",), "plots.joint:contours", on_request="a check of the joint fit"
    ),
    "residuals": Entry(
        "Residuals of the joint fit", "Scaling", ("runs",), "plots.joint:residuals",
        on_request="a check of the joint fit",
    ),
    "bootstrap_pairs": Entry(
        "Bootstrap of the joint fit", "Scaling", ("runs",), "plots.joint:bootstrap_pairs",
        on_request="a check of the joint fit",
    ),
    "exponents": Entry(
        "Exponents under each choice", "Scaling", ("runs", "validation_curves"), "plots.fits:exponents",
        on_request="a check that the exponents do not depend on the analysis",
    ),
}  # fmt: skip
STANDARD = tuple(name for name, figure in FIGURES.items() if not figure.on_request)
# Of finished results also the paper's other figures, as far as the results have their columns.
OF_RESULTS = (*STANDARD, "freezing", "attention_entropy", "fine_coarse_ratio", "envelope", "chinchilla_ratio")
HEADLINE = (
    "seeing",
    "foveated_vs_alternatives",
    "benchmarks",
    "ablation_ranking",
    "loss_vs_flops",
    "attention_heatmaps",
)
