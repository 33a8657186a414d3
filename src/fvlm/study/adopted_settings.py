"""What an adopted run was really trained with, and how that differs from the configuration it is adopted for.

The published study stores its settings in a checkpoint (`config`), its learning rates in its metrics and its samples in
its summary, each under names of its own. Settings that change what the model computes must be the configuration's; the
others are listed.
"""

import math
from pathlib import PurePosixPath
from typing import Any

from fvlm.config.schema import Run, Study
from fvlm.costs.amounts import flops_per_sample, planned_samples
from fvlm.errors import UserError

NAMES = {  # field of a run here -> section and key of the study's configuration
    **{f"model.{name}": ("model", name) for name in ("deep_query", "query_dim", "visual_scale", "lambda_coarse")},
    **{f"optim.lr.{part}": ("training", f"lr_{part}") for part in ("connector", "dino", "llm")},
    "model.tokens_per_frame": ("model", "tokens_per_frame"),
    "data.static_frames": ("data", "replicate_image_frames"),
    "data.max_frames": ("data", "max_frames"),
    "data.share.text": ("data", "text_ratio"),
    "optim.warmup": ("training", "warmup_ratio"),
    "optim.weight_decay": ("training", "weight_decay"),
    "optim.clip": ("training", "max_grad_norm"),
    "optim.schedule": ("training", "schedule"),
    "train.samples": ("training", "total_samples"),
    "train.seed": ("training", "seed"),
    "train.precision": ("training", "dtype"),
}
LOSSES = {"text_ce_all": "all", "text_ce_answer_only": "answers", "dpo": "preference"}
# The model computes something else with another value, whatever it has learned.
FIXED = ("architecture", "deep_query", "fine_pass", "query_dim", "visual_scale", "tokens_per_frame")
ROUNDED = 0.01  # metrics hold learning rates with three digits
CONVENTIONS = (
    "scored tokens: the published study never scores <|im_end|>, and scores the line break behind an answer, so its "
    "validation losses are compared with loss_without_end of an evaluation here (docs/comparing-with-the-study.md)",
    "training: there, texts see padded frames, output_proj learns at DINOv2's rate, every parameter is decayed, and "
    "SmolLM2's own system prompt stands before each text",
    "held-out samples: the run was validated on samples of its own, and may have trained on samples that this study "
    "holds out, so its evaluation here may be too good",
)


def real_settings(config: object, training: list[dict]) -> dict[str, Any]:
    """Return the settings of a run as far as they are known, under this project's names.

    config      the study's configuration from a checkpoint; None if it has none
    training    rows of its metrics
    """
    sections = config if isinstance(config, dict) else {}
    part = {name: value if isinstance(value, dict) else {} for name, value in sections.items()}
    model, optim, data = (part.get(name, {}) for name in ("model", "training", "data"))
    found = {field: part[section][key] for field, (section, key) in NAMES.items() if key in part.get(section, {})}
    found = {field: value for field, value in found.items() if isinstance(value, str | int | float)}
    if model:
        found["model.architecture"] = "multi_token" if model.get("multi_token") else "foveated"
        found["model.fine_pass"] = not model.get("coarse_only", False)
        found["optim.freeze"] = [name for name in ("dino", "llm") if model.get(f"freeze_{name}")]
    if all(isinstance(optim.get(name), int) for name in ("batch_size", "grad_accum")):
        found["optim.batch_size"] = optim["batch_size"] * optim["grad_accum"]
    if (loss := str(part.get("loss", {}).get("type"))) in LOSSES:
        found["data.loss"] = LOSSES[loss]
    shards = [*_listed(data.get("train_shards")), *_listed(data.get("text_shards"))]
    if shards:
        found["data.sources"] = [_folder(path) for path in shards]
    for name in ("connector", "dino", "llm"):
        rates = [row[f"lr_{name}"] for row in training if row.get(f"lr_{name}")]
        if rates:
            found.setdefault(f"optim.lr.{name}", max(rates))
    return found


def _listed(value: object) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []


def _folder(path: str) -> str:
    """Return the folder of shards, without the place of all data: .../data/text_retention/stage1/*.tar."""
    parts = PurePosixPath(path).parent.parts
    return "/".join(parts[parts.index("data") + 1 :] if "data" in parts else parts[-1:])


def check_settings(run: Run, real: dict[str, Any], where: str) -> None:
    """Raise UserError if a setting of the model differs from that of the run."""
    for name in FIXED:
        there, here = real.get(f"model.{name}"), getattr(run.model, name)
        if name == "tokens_per_frame" and not run.model.variant.pooled:
            continue
        if name in ("deep_query", "fine_pass") and not run.model.variant.queries:
            continue
        if there is not None and not _equal(there, here):
            raise UserError(
                f"{where}: model.{name} is {there!r} in its own configuration and {here!r} in run {run.name!r}; name "
                "a run with the same model"
            )


def differences(run: Run, study: Study, real: dict[str, Any], samples: float | None, foreign: bool) -> list[str]:
    """Return one sentence for each way in which a run is not what its configuration would train.

    samples     that the run was trained on; None if it is not known
    foreign     the weights are in the names of the published study
    """
    lines = [about_samples(run, study, samples)]
    here = _flat(run.model_dump(mode="json"))
    sources = [study.sources[name] for name in run.data.sources]
    here["data.sources"] = [_folder(source.path) if source.path else source.name for source in sources]
    for field, there in sorted(real.items()):
        planned = here.get(field)
        if field in ("train.samples", "optim.lr") or (field == "data.sources" and set(there) == set(planned)):
            continue
        if field == "model.tokens_per_frame" and not run.model.variant.pooled:
            continue
        if not _equal(there, planned):
            lines.append(f"{field}: {_shown(there)} there, {_shown(planned)} in the configuration")
    unknown = [name for name in ("deep_query", "fine_pass", "visual_scale") if f"model.{name}" not in real]
    if unknown and run.model.variant.queries:
        lines.append(
            f"not recorded with the weights, so taken from the configuration: model.{', model.'.join(unknown)}"
        )
    if foreign:
        lines += [_flops(run, study, samples), *CONVENTIONS]
    return [line for line in lines if line]


def own_flops(run: Run, study: Study) -> float | None:
    """Return the expected training FLOPs of one sample by this project's count; None if its data are not known."""
    try:
        return flops_per_sample(run, study)
    except UserError:
        return None


def about_samples(run: Run, study: Study, samples: float | None) -> str:
    """Return how the number of samples differs from that of the configuration; empty if it does not."""
    if samples is None:
        return "samples: not recorded"
    try:
        planned = planned_samples(run, study)
    except UserError:
        return f"samples: {samples:,.0f} there; how many the configuration gives is not known without its data"
    budget = f" (a budget of {run.train.flops:.3g} FLOPs)" if run.train.flops else ""
    return "" if samples == planned else f"samples: {samples:,.0f} there, {planned:,} in the configuration{budget}"


def _flops(run: Run, study: Study, samples: float | None) -> str:
    each = own_flops(run, study)
    counted = f"; by this count the run took {samples * each:.3g}" if each and samples else ""
    return f"FLOPs: the published study counts one per multiply-add, this project two{counted}"


def _flat(content: dict, prefix: str = "") -> dict:
    result = {}
    for key, value in content.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def _equal(there: Any, here: Any) -> bool:
    if isinstance(there, int | float) and isinstance(here, int | float):
        return math.isclose(there, here, rel_tol=ROUNDED) if isinstance(here, float) else there == here
    return there == here


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)
