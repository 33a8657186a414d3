"""What the analysis makes: every table and figure, what it needs, and the columns that each table promises.

Imported while Snakemake parses the Snakefile, so nothing heavy may be imported here.
"""

from dataclasses import dataclass

RUN = (
    "run",
    "family",
    "seed",
    "architecture",
    "deep_query",
    "fine_pass",
    "fine_passes",
    "visual_tokens",
    "question_first",
    "size",
    "budget",
    "letter",
    "params_total",
    "samples",
    "flops",
    "flops_budget",
    "text_tokens",
    "frames",
    "final.val_loss",
    "best.val_loss",
    "best.samples",
)
CURVE = ("run", "step", "samples", "flops")
KEYS = ("run", "mode", "frames", "order", "source", "kind")
INTERVAL = ("low", "high", "interval")
REWARDS = ("reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected")  # of runs on preferences

FIRST = "1. Decisions"  # Snakemake sorts the categories of a report

COLUMNS: dict[str, tuple[str, ...]] = {
    "runs": RUN,
    "validation_curves": (*CURVE, "val_loss", "loss_fine", "loss_coarse", "attention_entropy", *REWARDS),
    "training_curves": (*CURVE, "train_loss", "loss_fine", "loss_coarse", "fine_coarse_ratio", *REWARDS),
    "evaluation": (
        *KEYS,
        "loss",
        "standard_error",
        "low",
        "high",
        "tokens",
        "samples",
        "groups",
    ),
    "bootstrap": KEYS,  # then one column per replicate
    "ablations": (
        "group",
        "run",
        "question",
        "compared_with",
        "note",
        "n_seeds",
        "samples",
        "data_differs",
        "best_val_loss",
        "final_val_loss",
        "best_difference",
        "final_difference",
        "evaluation_loss",
        "evaluation_difference",
        "difference",
        *INTERVAL,
        "measure",
    ),
    "factorial": (
        "measure",
        "effect",
        "estimate",
        *INTERVAL,
        "n_seeds",
        "deep_fine",
        "shallow_fine",
        "deep_coarse",
        "shallow_coarse",
    ),
    "scaling_fits": (
        "fit",
        "architecture",
        "form",
        "parameter",
        "value",
        "low",
        "high",
        "identified",
        "reason",
        "n_points",
        "rmse",
        "samples_per_parameter",
        "tokens_per_parameter",
        "data_starved",
    ),
    "isoflop": (
        "architecture",
        "budget",
        "flops",
        "sizes",
        "n_opt",
        "d_opt",
        "loss",
        "used",
        "reason",
        "curvature",
        "log_n_centre",
    ),
    "gap": (
        "family",
        "budget",
        "size",
        "measure",
        "n_foveated",
        "n_baseline",
        "loss_foveated",
        "loss_baseline",
        "raw_percent",
        "raw_low",
        "raw_high",
        "at_foveated_percent",
        "at_foveated_low",
        "at_foveated_high",
        "at_foveated_extrapolates",
        "at_baseline_percent",
        "at_baseline_low",
        "at_baseline_high",
        "at_baseline_extrapolates",
        "directions_differ",
        "interval",
        "n_seeds",
        "note",
    ),
    "modes": (
        "run",
        "family",
        "mode",
        "frames",
        "trained_mode",
        "loss",
        "low",
        "high",
        "gap_percent",
        "gap_low",
        "gap_high",
        "gap_interval",
        "n_seeds",
        "samples",
    ),
    "token_efficiency": (
        "run",
        "label",
        "architecture",
        "tokens_per_frame",
        "loss",
        "difference",
        *INTERVAL,
        "n_seeds",
        "measure",
        "flops_per_sample",
        "samples",
        "data_differs",
    ),
    "question_order": ("run", "mode", "video_first", "question_first", "difference", *INTERVAL, "n_seeds"),
    "decisions": (
        "sweep",
        "question",
        "verdict",
        "answer",
        "setting",
        "changes_default",
        "runs",
        "estimate",
        "low",
        "high",
        "unit",
        "interval",
        "confidence",
        "comparisons",
        "n_seeds",
        "more_seeds",
        "needs",
        "data_differs",
        "measure",
    ),
}
TEXT: dict[str, tuple[str, ...]] = {  # columns where an empty cell is an empty word
    "runs": ("run", "family", "architecture", "size", "budget", "letter"),
    "validation_curves": ("run",),
    "training_curves": ("run",),
    "evaluation": KEYS,
    "bootstrap": KEYS,
    "ablations": ("group", "run", "question", "compared_with", "note", "data_differs", "interval", "measure"),
    "factorial": ("measure", "effect", "interval"),
    "scaling_fits": ("fit", "architecture", "form", "parameter", "reason"),
    "isoflop": ("architecture", "budget", "reason"),
    "gap": ("family", "budget", "size", "measure", "interval", "note"),
    "modes": ("run", "family", "mode", "frames", "trained_mode", "gap_interval"),
    "token_efficiency": ("run", "label", "architecture", "interval", "measure", "data_differs"),
    "question_order": ("run", "mode", "interval"),
    "decisions": (
        "sweep",
        "question",
        "verdict",
        "answer",
        "setting",
        "changes_default",
        "runs",
        "unit",
        "interval",
        "needs",
        "data_differs",
        "measure",
    ),
}
FLAGS: dict[str, tuple[str, ...]] = {
    "runs": ("deep_query", "fine_pass"),
    "scaling_fits": ("identified", "data_starved"),
    "isoflop": ("used",),
    "gap": ("at_foveated_extrapolates", "at_baseline_extrapolates"),
    "decisions": ("changes_default",),
}


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
    "ablations": Table("Ablations, ranked", "Ablations", ("runs", "evaluation", "bootstrap"), "ranking:ablations"),
    "factorial": Table(
        "Query depth x fine pass", "Ablations", ("runs", "evaluation", "bootstrap"), "factorial:factorial"
    ),
    "modes": Table("Losses by evaluation mode", "Evaluation", ("runs", "evaluation", "bootstrap"), "modes:modes"),
    "token_efficiency": Table(
        "Loss against visual tokens per frame",
        "Baselines",
        ("runs", "evaluation", "bootstrap"),
        "modes:token_efficiency",
    ),
    "question_order": Table(
        "Question first or video first", "Evaluation", ("runs", "evaluation", "bootstrap"), "order:question_order"
    ),
    "scaling_fits": Table("Scaling fits", "Scaling", ("runs",), "scaling:scaling_fits"),
    "isoflop": Table("Iso-FLOP minima", "Scaling", ("runs",), "isoflop:isoflop"),
    "gap": Table("Parameter-corrected gap", "Scaling", ("runs", "evaluation", "bootstrap"), "gap:gap"),
    "decisions": Table(
        "What the sweeps decide",
        FIRST,
        ("runs", "evaluation", "bootstrap", "scaling_fits", "isoflop"),
        "decisions:decisions",
    ),
}

FIGURES = {
    "ablation_ranking": Figure("Ablations against the baseline", "Ablations", ("ablations",), "plots_ablation:ranking"),
    "factorial": Figure("Query depth x fine pass", "Ablations", ("factorial",), "plots_ablation:factorial"),
    "freezing": Figure("What must be trained", "Ablations", ("runs", "validation_curves"), "plots_training:freezing"),
    "foveated_vs_alternatives": Figure(
        "Foveated reading against its alternatives",
        "Baselines",
        ("runs", "evaluation", "bootstrap"),
        "plots_evaluation:alternatives",
    ),
    "token_efficiency": Figure(
        "Loss against visual tokens and FLOPs",
        "Baselines",
        ("token_efficiency",),
        "plots_evaluation:token_efficiency",
    ),
    "seeing": Figure("Does it see?", "Evaluation", ("runs", "evaluation", "bootstrap"), "plots_seeing:seeing"),
    "question_order": Figure(
        "Question first or video first", "Evaluation", ("question_order",), "plots_seeing:question_order"
    ),
    "three_modes": Figure("The three evaluation modes", "Evaluation", ("modes",), "plots_evaluation:three_modes"),
    "attention_heatmaps": Figure("Where the model looks", "Attention", (), "plots_attention:heatmaps", attention=True),
    "attention_entropy": Figure(
        "Attention entropy over training",
        "Attention",
        ("runs", "validation_curves"),
        "plots_training:attention_entropy",
    ),
    "training_curves": Figure(
        "Training curves",
        "Training",
        ("runs", "validation_curves", "training_curves"),
        "plots_training:training_curves",
    ),
    "fine_coarse_ratio": Figure(
        "Loss of the fine pass over the coarse pass",
        "Training",
        ("runs", "validation_curves"),
        "plots_training:fine_coarse_ratio",
    ),
    "preference": Figure(
        "Preferring the better answer",
        "Training",
        ("runs", "validation_curves", "training_curves"),
        "plots_training:preference",
    ),
    "loss_vs_flops": Figure(
        "Loss against training FLOPs",
        "Scaling",
        ("runs", "validation_curves", "scaling_fits"),
        "plots_scaling:loss_vs_flops",
    ),
    "isoflop": Figure("Iso-FLOP curves", "Scaling", ("runs", "isoflop"), "plots_scaling:isoflop"),
    "model_size_scaling": Figure("Loss against model size", "Scaling", ("runs",), "plots_scaling:model_size"),
    "chinchilla_ratio": Figure("Data per parameter", "Scaling", ("runs",), "plots_scaling:chinchilla_ratio"),
    "gap": Figure("Gap to the 16-token baseline", "Scaling", ("gap",), "plots_scaling:gap"),
    "gap_arrows": Figure("The gap on its curves", "Scaling", ("gap",), "plots_gap:gap_arrows"),
    "isoflop_optimum": Figure(
        "Best size at each budget", "Scaling", ("isoflop", "scaling_fits"), "plots_fits:isoflop_optimum"
    ),
    "envelope": Figure("Envelope of training curves", "Scaling", ("runs", "validation_curves"), "plots_fits:envelope"),
    "contours": Figure("Fitted loss over N and D", "Scaling", ("runs",), "plots_joint:contours"),
    "residuals": Figure("Residuals of the joint fit", "Scaling", ("runs",), "plots_joint:residuals"),
    "bootstrap_pairs": Figure("Bootstrap of the joint fit", "Scaling", ("runs",), "plots_joint:bootstrap_pairs"),
    "exponents": Figure(
        "Exponents under each choice", "Scaling", ("runs", "validation_curves"), "plots_fits:exponents"
    ),
}
HEADLINE = (
    "seeing",
    "foveated_vs_alternatives",
    "ablation_ranking",
    "loss_vs_flops",
    "attention_heatmaps",
)
