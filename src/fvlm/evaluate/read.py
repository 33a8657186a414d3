"""What a finished run saved about itself; read without torch, so that a wrong path is reported at once."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from fvlm.config.schema import Run
from fvlm.config.trained import ADOPTED, CONFIGURATION, WEIGHTS, summary_in
from fvlm.errors import UserError

# Keys of model/run.json beside the fields of the run: what `Study.shown_to` and `counted_split` return.
SOURCES, SPLIT = "sources", "split"


@dataclass(frozen=True)
class RunFiles:
    """Where a finished run has its configuration, its best weights, and (a folder) its tokenizer."""

    configuration: Path
    weights: Path
    tokenizer: Path
    exported: bool  # by `fvlm export`, so that the weights have other names


def files_of(folder: Path) -> RunFiles:
    """Return the files of results/runs/NAME, or of a folder of `fvlm export`."""
    if (folder / "config.json").is_file():
        return RunFiles(folder / "run.json", folder / "model.safetensors", folder, True)
    tokenizer = folder.absolute().parent.parent / "tokenizer"
    return RunFiles(folder / CONFIGURATION, folder / WEIGHTS, tokenizer, False)


def read_run(folder: Path | str) -> tuple[Run, dict]:
    """Return a finished run, and what it saved beside its configuration; runs of an earlier version did not.

    "sources" is how its sources showed their samples, source -> {"kind", "crop", "prompt"}; "split" which of them it
    trained on.

    folder  results/runs/NAME, or of `fvlm export`
    raises  UserError if the run is not finished, or is of another version
    """
    files = files_of(Path(folder))
    saved = files.configuration
    if not saved.is_file() and files.exported:
        raise UserError(
            f"{saved}: no such file; expected a finished run, or a folder of `fvlm export` with its run.json: export "
            "the run again, or copy the file from the exported folder"
        )
    if not saved.is_file() and ADOPTED in summary_in(Path(folder)):
        raise UserError(f"{folder}: this run was adopted without its weights; name a run that has them")
    if not saved.is_file():
        raise UserError(
            f"{saved}: no such file, so {folder} is no finished run; train it first: snakemake --cores all "
            f"{folder}/run_summary.json"
        )
    try:
        content = json.loads(saved.read_text())
        beside = {SOURCES: content.pop(SOURCES, {}), SPLIT: content.pop(SPLIT, "")}
        return Run.model_validate(content), beside
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{saved}: not a run of this version ({' '.join(str(error).split())[:200]}); train it again"
        ) from error


def shown_like(sources: dict[str, dict], kind: str, run: str) -> dict:
    """Return how the run's samples of this kind were shown, or of its other kinds if it has none of this one.

    Its sources may differ; the first is taken, and named.

    sources     source -> {"kind", "crop", "prompt"}; empty for a run of an earlier version
    """
    frames = {name: entry for name, entry in sources.items() if entry["kind"] != "text"}
    alike = {name: entry for name, entry in frames.items() if entry["kind"] == kind} or frames
    if not alike:
        return {}
    first = next(iter(alike))
    others = [name for name in alike if alike[name]["crop"] != alike[first]["crop"]]
    if others:
        way, other = ("cropped", "squashed") if alike[first]["crop"] else ("squashed", "cropped")
        print(
            f"{run}: frames are {way} as in source {first!r}; those of {', '.join(others)} were {other}",
            file=sys.stderr,
        )
    return alike[first]
