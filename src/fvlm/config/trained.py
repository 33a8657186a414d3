"""A finished run in its folder: its summary, the files that belong to it, and where an earlier run is kept.

The summary holds the digest of the configuration, and a light digest of each other output of the training. So files of
another origin do not pass for the run's results, and Snakemake and `fvlm status` agree on what is finished. Snakemake
asks for it whenever it parses the rules, so a light digest reads a few blocks of a file of any size.
"""

import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from fvlm.config.schema import Run, Study

FINISHED, METRICS, VALIDATION = "run_summary.json", "metrics.csv", "validation.csv"
WEIGHTS, LAST_WEIGHTS, CONFIGURATION = "model/best.safetensors", "model/final.safetensors", "model/run.json"
OF_A_RUN = (FINISHED, METRICS, VALIDATION, WEIGHTS, LAST_WEIGHTS, CONFIGURATION)  # the outputs of a training
FILES = "files"  # in a summary: each other output of the training -> its light digest
ADOPTED = "adopted"  # in the summary of a run of another program: where it is from, and how it differs
BLOCK = 64 << 10  # bytes that are read at the beginning, middle and end of a file for its light digest


def summary_in(folder: Path) -> dict:
    """Return the summary of a finished run; empty if it is not there, damaged, or names no configuration."""
    try:
        summary = json.loads((folder / FINISHED).read_text())
        return summary if isinstance(summary, dict) and isinstance(summary.get("digest"), str) else {}
    except (OSError, ValueError):
        return {}


def digest_of_run(folder: Path) -> str | None:
    """The digest of the configuration that a finished run was trained with; None if it is not known."""
    return summary_in(folder).get("digest")


def is_adopted(folder: Path, digest: str) -> bool:
    """Whether a folder holds a run of another program that was adopted for the configuration with this digest."""
    summary = summary_in(folder)
    return ADOPTED in summary and summary["digest"] == digest


def is_without_weights(folder: Path, digest: str) -> bool:
    """Return whether a folder holds an adopted run without weights."""
    return is_adopted(folder, digest) and WEIGHTS not in summary_in(folder).get(FILES, {})


def light_digest(path: Path) -> str:
    """Return a hash of a file's size, and of its beginning, middle and end."""
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for start in sorted({0, max(0, (size - BLOCK) // 2), max(0, size - BLOCK)}):
            file.seek(start)
            total.update(file.read(BLOCK))
    return total.hexdigest()[:16]


def digests_of_files(folder: Path) -> dict[str, str]:
    """Return the light digest of each output of a training but its summary, which holds them under `files`.

    A run that was adopted without its weights has less of them.
    """
    return {name: light_digest(folder / name) for name in OF_A_RUN if name != FINISHED and (folder / name).exists()}


def problem_of_files(folder: Path, summary: dict) -> str:
    """Return which file of a finished run is not the one that its summary was written for; empty if all fit.

    A missing file is not a problem here: Snakemake makes what a study still needs. An earlier version stored no
    digests; its weights must be whole, and model/run.json must name the run.
    """
    digests = summary.get(FILES)
    for name in OF_A_RUN[1:]:
        try:
            recorded = isinstance(digests, dict)
            fits = light_digest(folder / name) == digests.get(name) if recorded else _is_plausible(folder, name)
        except OSError:  # missing, or unreadable now: no reason to train again
            continue
        except (ValueError, TypeError, KeyError, AttributeError, struct.error):
            fits = False
        if not fits:
            return f"{name} is not the file that belongs to its {FINISHED}"
    return ""


def run_of_maps(runs: Iterable[Run]) -> Run | None:
    """Return the run whose attention maps a study shows: the last stage that learns from frames, before preferences.

    None if it has no query, or reads one frame of a video.
    """
    seeing = [run for run in runs if run.family == "stage" and run.data.loss != "preference"]
    return next((run for run in seeing[-1:] if run.model.variant.queries and run.data.max_frames > 1), None)


def problem_of_run(run: Run, study: Study, folder: Path, summary: dict) -> str:
    """Return why Snakemake trains a run again that has the right configuration; empty if it does not."""
    problem = problem_of_files(folder, summary)
    if problem or FILES not in summary:  # the summary of an earlier version
        return problem
    needed = [METRICS, VALIDATION]
    loaded = run.family in study.evaluation.families or run_of_maps(study.runs.values()) == run
    loaded = loaded and not is_without_weights(folder, run.digest)
    if loaded or any(other.parent == run.name for other in study.runs.values()):
        needed.append(WEIGHTS)
    return next((f"{name} is missing" for name in needed if not (folder / name).is_file()), "")


def _is_plausible(folder: Path, name: str) -> bool:
    """Whether an output of an earlier version may be what a training wrote, judged by a few bytes of it."""
    path = folder / name
    if name == CONFIGURATION:
        return json.loads(path.read_text())["name"] == folder.name
    if name not in (WEIGHTS, LAST_WEIGHTS):
        return True
    with open(path, "rb") as file:  # safetensors: the length of the header, the header, the tensors
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, path.stat().st_size)))
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends)


def keep_earlier(folder: Path, digest: str | None) -> None:
    """Keep the finished run that a training or an adopted run is about to replace.

    RESULTS/earlier/RUN-DIGEST gets hard links to its files, or copies where the disk has no links. `drop_alike` deletes
    them if the training writes the same files again.

    folder   of the run
    digest   of the configuration that is about to be trained; None if an adopted run replaces it
    """
    summary = summary_in(folder)
    if not summary:
        return
    target = _free_place(folder, summary["digest"])
    if target is None:
        return
    for path in [*folder.glob("model/*"), *folder.glob("*.csv"), folder / FINISHED]:  # last what marks it as whole
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)
    other = digest not in (None, summary["digest"])
    what = "finished run of another configuration" if other else "finished run"
    what = "adopted run" if ADOPTED in summary else what
    print(f"{folder.name}: the {what} is kept in {target}; delete it to free disk space", file=sys.stderr, flush=True)


def drop_alike(folder: Path) -> None:
    """Delete the kept copies of a run that has just been trained again with the same files."""
    summary = summary_in(folder)
    for kept in folder.parents[1].glob(f"earlier/{folder.name}-{summary['digest']}*"):
        before = summary_in(kept)
        if ADOPTED not in before and before.get(FILES) == summary[FILES] and not problem_of_files(kept, before):
            shutil.rmtree(kept)
            print(
                f"{folder.name}: trained again with the same files, so {kept} is deleted", file=sys.stderr, flush=True
            )


def _free_place(folder: Path, digest: str) -> Path | None:
    """Return where to keep a run; None if this very run is kept already, by an earlier call that was stopped."""
    first = folder.parents[1] / "earlier" / f"{folder.name}-{digest}"
    for target in (first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 1000))):
        if not (target / FINISHED).exists():
            return target
        if (target / FINISHED).read_bytes() == (folder / FINISHED).read_bytes():
            return None
    return None
