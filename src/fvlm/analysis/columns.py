"""The columns that each table promises, and how an empty cell of a column is read."""

SCHEDULE = "config.optim.schedule"  # of the learning rate; a column of the runs if they have it
GROUP = "group"  # of imported runs: only runs of one group were scored on the same samples
INFERRED = "inferred.val_loss"  # of imported runs: the final validation loss frame by frame, as at inference
COUNTED = "flops_from"  # of imported runs: where their training FLOPs come from, in words
REWARDS = ("reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected")  # of runs on preferences

# Column names in their order. NAME* is text, where an empty cell is an empty word. NAME? is true or false. In all other
# columns an empty cell is a missing number. NAME+ is one that tables of an earlier version do not have.
TABLES = {
    "runs": """run* family* seed architecture* deep_query? fine_pass? fine_passes visual_tokens question_first size*
        budget* letter* params_total samples flops flops_budget text_tokens frames final.val_loss best.val_loss
        best.samples""",
    "validation_curves": "run* step samples flops val_loss loss_fine loss_coarse attention_entropy REWARDS",
    "training_curves": "run* step samples flops train_loss loss_fine loss_coarse fine_coarse_ratio REWARDS",
    "evaluation": """run* mode* frames* order* source* kind* loss standard_error low high tokens samples groups
        loss_without_end+""",
    "bootstrap": "run* mode* frames* order* source* kind*",  # then one column per replicate
    "benchmarks": """run* benchmark* title* main? mode* frames* way* metric* group* category* score low high chance
        questions videos total missing unusable source*""",
    "ablations": """group* run* question* compared_with* note* n_seeds samples data_differs* best_val_loss
        final_val_loss best_difference final_difference evaluation_loss evaluation_difference difference low high
        interval* noise noise_from* likely_above clear? measure*""",
    "factorial": """measure* effect* estimate low high interval* n_seeds noise noise_from* likely_above deep_fine
        shallow_fine deep_coarse shallow_coarse""",
    "points": "architecture* size* budget* N D C L runs adopted+",
    "points_by_run": "run* seed architecture* size* budget* N D C L adopted+",
    "curves": "run* family* architecture* size* lr_schedule* N step D C L",
    "scaling_fits": """fit* architecture* form* parameter* value low high identified? reason* n_points rmse
        samples_per_parameter tokens_per_parameter data_starved? note*+""",
    "isoflop": """architecture* budget* flops sizes n_opt d_opt loss used? reason* curvature log_n_centre""",
    "gap": """family* budget* size* measure* n_foveated n_baseline loss_foveated loss_baseline raw_percent raw_low
        raw_high at_foveated_percent at_foveated_low at_foveated_high at_foveated_extrapolates? at_baseline_percent
        at_baseline_low at_baseline_high at_baseline_extrapolates? directions_differ interval* n_seeds note*""",
    "modes": """run* family* mode* frames* trained_mode* loss low high gap_percent gap_low gap_high gap_interval*
        n_seeds samples""",
    "token_efficiency": """run* label* architecture* tokens_per_frame loss difference low high interval* n_seeds
        measure* flops_per_sample samples data_differs*""",
    "question_order": "run* mode* video_first question_first difference low high interval* n_seeds",
    "decisions": """sweep* question* verdict* answer* setting* changes_default? runs* estimate low high unit* interval*
        confidence comparisons n_seeds noise noise_from* likely_above more_seeds needs* data_differs* measure*""",
}


def _names(kind: str = "") -> dict[str, tuple[str, ...]]:
    """Return table -> its columns, or those whose name ends in `kind` above."""
    split = {table: words.replace("REWARDS", " ".join(REWARDS)).split() for table, words in TABLES.items()}
    plain = {table: [(name.rstrip("*?+"), name) for name in names] for table, names in split.items()}
    return {table: tuple(new for new, name in names if kind in name[len(new) :]) for table, names in plain.items()}


COLUMNS, TEXT, FLAGS, NEW = _names(), _names("*"), _names("?"), _names("+")
RUN = COLUMNS["runs"]
CURVE = ("run", "step", "samples", "flops")
