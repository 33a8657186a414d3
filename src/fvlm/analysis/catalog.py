"""What the analysis makes: every table and figure, and what each needs.

Imported while Snakemake parses the Snakefile, so nothing heavy may be imported here.
"""

from dataclasses import dataclass

FIRST = "1. Decisions"  # Snakemake sorts the categories of a report


@dataclass(frozen=True)
class Table:
    """A derived table: `function` ("module:name" in this package) maps the tables in `needs` to it.

    It may need derived tables that stand before it.
    """

    title: str
    category: str
    needs: tuple[str, ...]
    function: str


@dataclass(frozen=True)
class Figure:
    """A figure: `function` draws it from the tables in `needs`, and from attention maps if `attention`."""

    title: str
    category: str
    needs: tuple[str, ...]
    function: str
    attention: bool = False


COLLECTED = ("runs", "validation_curves", "training_curves", "evaluation", "bootstrap")

TABLES = {
    "ablations": Table(
        "Ablations, ranked", "Ablations", ("runs", "evaluation", "bootstrap"), "compare.ranking:ablations"
    ),
    "factorial": Table(
        "Query depth x fine pass", "Ablations", ("runs", "evaluation", "bootstrap"), "compare.factorial:factorial"
    ),
    "modes": Table(
        "Losses by evaluation mode", "Evaluation", ("runs", "evaluation", "bootstrap"), "compare.modes:modes"
    ),
    "token_efficiency": Table(
        "Loss against visual tokens per frame",
        "Baselines",
        ("runs", "evaluation", "bootstrap"),
        "compare.modes:token_efficiency",
    ),
    "question_order": Table(
        "Question first or video first",
        "Evaluation",
        ("runs", "evaluation", "bootstrap"),
        "compare.modes:question_order",
    ),
    "points": Table("Points of the grid", "Scaling", ("runs",), "fits.grid:points"),
    "points_by_run": Table("Points of the grid, by run", "Scaling", ("runs",), "fits.grid:points_by_run"),
    "curves": Table("Validation curves, with sizes", "Training", ("runs", "validation_curves"), "fits.grid:curves"),
    "scaling_fits": Table("Scaling fits", "Scaling", ("runs",), "fits.scaling:scaling_fits"),
    "isoflop": Table("Iso-FLOP minima", "Scaling", ("runs",), "fits.isoflop:isoflop"),
    "gap": Table("Parameter-corrected gap", "Scaling", ("runs", "evaluation", "bootstrap"), "compare.gap:gap"),
    "decisions": Table(
        "What the sweeps decide",
        FIRST,
        ("runs", "evaluation", "bootstrap", "scaling_fits", "isoflop"),
        "decisions.table:decisions",
    ),
}

FIGURES = {
    "ablation_ranking": Figure("Ablations against the baseline", "Ablations", ("ablations",), "plots.ablation:ranking"),
    "factorial": Figure("Query depth x fine pass", "Ablations", ("factorial",), "plots.ablation:factorial"),
    "freezing": Figure("What must be trained", "Ablations", ("runs", "validation_curves"), "plots.training:freezing"),
    "foveated_vs_alternatives": Figure(
        "Foveated reading against its alternatives",
        "Baselines",
        ("runs", "evaluation", "bootstrap"),
        "plots.evaluation:alternatives",
    ),
    "token_efficiency": Figure(
        "Loss against visual tokens and FLOPs",
        "Baselines",
        ("token_efficiency",),
        "plots.evaluation:token_efficiency",
    ),
    "seeing": Figure("Does it see?", "Evaluation", ("runs", "evaluation", "bootstrap"), "plots.seeing:seeing"),
    "question_order": Figure(
        "Question first or video first", "Evaluation", ("question_order",), "plots.seeing:question_order"
    ),
    "three_modes": Figure("The three evaluation modes", "Evaluation", ("modes",), "plots.evaluation:three_modes"),
    "attention_heatmaps": Figure("Where the model looks", "Attention", (), "plots.attention:heatmaps", attention=True),
    "attention_entropy": Figure(
        "Attention entropy over training",
        "Attention",
        ("runs", "validation_curves"),
        "plots.training:attention_entropy",
    ),
    "training_curves": Figure(
        "Training curves",
        "Training",
        ("runs", "validation_curves", "training_curves"),
        "plots.training:training_curves",
    ),
    "fine_coarse_ratio": Figure(
        "Loss of the fine pass over the coarse pass",
        "Training",
        ("runs", "validation_curves"),
        "plots.training:fine_coarse_ratio",
    ),
    "preference": Figure(
        "Preferring the better answer",
        "Training",
        ("runs", "validation_curves", "training_curves"),
        "plots.training:preference",
    ),
    "loss_vs_flops": Figure(
        "Loss against training FLOPs",
        "Scaling",
        ("runs", "validation_curves", "scaling_fits"),
        "plots.scaling:loss_vs_flops",
    ),
    "isoflop": Figure("Iso-FLOP curves", "Scaling", ("runs", "isoflop"), "plots.scaling:isoflop"),
    "model_size_scaling": Figure("Loss against model size", "Scaling", ("runs",), "plots.scaling:model_size"),
    "chinchilla_ratio": Figure("Data per parameter", "Scaling", ("runs",), "plots.scaling:chinchilla_ratio"),
    "gap": Figure("Gap to the 16-token baseline", "Scaling", ("gap",), "plots.scaling:gap"),
    "gap_arrows": Figure("The gap on its curves", "Scaling", ("gap",), "plots.gap:gap_arrows"),
    "isoflop_optimum": Figure(
        "Best size at each budget", "Scaling", ("isoflop", "scaling_fits"), "plots.fits:isoflop_optimum"
    ),
    "envelope": Figure("Envelope of training curves", "Scaling", ("runs", "validation_curves"), "plots.fits:envelope"),
    "contours": Figure("Fitted loss over N and D", "Scaling", ("runs",), "plots.joint:contours"),
    "residuals": Figure("Residuals of the joint fit", "Scaling", ("runs",), "plots.joint:residuals"),
    "bootstrap_pairs": Figure("Bootstrap of the joint fit", "Scaling", ("runs",), "plots.joint:bootstrap_pairs"),
    "exponents": Figure(
        "Exponents under each choice", "Scaling", ("runs", "validation_curves"), "plots.fits:exponents"
    ),
}
HEADLINE = (
    "seeing",
    "foveated_vs_alternatives",
    "ablation_ranking",
    "loss_vs_flops",
    "attention_heatmaps",
)
