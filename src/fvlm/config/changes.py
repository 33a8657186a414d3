"""Which fields of a run differ from the configuration that its results or checkpoints were made with.

A training stores its configuration in state/run.json when it starts, and in run_summary.json when it ends.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from fvlm.config.schema import NOT_IN_DIGEST, Run, Study
from fvlm.config.trained import FINISHED, problem_of_files, summary_in

STARTED = "state/run.json"  # in a run's folder, as its summary: with "digest" and "config"
SOURCES = "split, prompt or kind of its sources (config/sources.yaml)"


def differences(old: dict, new: dict, path: str = "") -> list[str]:
    """Return one "train.samples 48 -> 12" per field that differs."""
    found = []
    for key in dict.fromkeys([*new, *old]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{path}{key}.")
        elif before != after:
            values = [_shown(content[key]) if key in content else "not set" for content in (old, new)]
            found.append(f"{path}{key} {' -> '.join(values)}")
    return found


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def changed_fields(run: Run, folder: Path, digest: str | None = None) -> list[str]:
    """Return the differences between what is stored in the run's folder and `run`; empty if nothing is stored.

    digest      take only a stored configuration with this digest
    """
    old = _stored(folder, digest)
    if old is None:
        return []
    with suppress(ValidationError):  # of an earlier version: shown as it is
        old = Run.model_validate(old).model_dump(mode="json")
    old, new = ({key: value for key, value in content.items() if key not in NOT_IN_DIGEST}
                for content in (old, run.model_dump(mode="json")))  # fmt: skip
    other_sources = old.pop("sources_digest", "") != new.pop("sources_digest")
    return differences(old, new) + [SOURCES] * other_sources


def _stored(folder: Path, digest: str | None) -> dict | None:
    for name in (STARTED, FINISHED):
        try:
            content = json.loads((folder / name).read_text())
            if digest in (None, content["digest"]) and isinstance(content["config"], dict):
                return content["config"]
        except (OSError, ValueError, KeyError, TypeError):  # not there, damaged, or of an earlier version
            continue
    return None


def runs_to_train_again(study: Study) -> list[str]:
    """Return a line for the finished runs that are trained again: which runs, and the fields or files that differ."""
    runs_by_change: dict[str, list[str]] = {}
    for name, run in study.runs.items():
        folder = Path(study.results) / "runs" / name
        summary = summary_in(folder)
        if "digest" not in summary:
            continue
        if summary["digest"] != run.digest:
            changes = ", ".join(changed_fields(run, folder, summary["digest"])) or "another configuration"
        else:
            changes = problem_of_files(folder, summary)
        if changes:
            runs_by_change.setdefault(changes, []).append(name)
    return [
        f"{', '.join(names)} {'trains' if len(names) == 1 else 'train'} again: {changes}"
        for changes, names in runs_by_change.items()
    ]


def report_changes(run: Run, folder: Path) -> None:
    """Print which fields differ from the last training in the folder."""
    changes = changed_fields(run, folder)
    if changes:
        print(f"{run.name}: earlier results are out of date: {', '.join(changes)}", file=sys.stderr, flush=True)


def configuration_of(run: Run) -> dict:
    """Return what is stored of a run's configuration."""
    return {"digest": run.digest, "config": run.model_dump(mode="json")}
