"""Read a study: its file, the files that it is based on, the others in config/, and changes of the command line.

A complete study (`complete`) holds all of that in one mapping. Snakemake saves it as RESULTS/study.json, and the jobs
read that file, so that they get exactly what was parsed. No torch, no pandas: Snakemake imports this.
"""

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from fvlm.errors import UserError

FILES = ("models", "baseline", "stages", "ablations", "scaling", "sources", "comparisons")
COMPLETE = "files"  # the key of a complete study that holds the content of FILES
EITHER_OR = ("weights", "vocabulary")  # of a tokenizer
LOCAL = Path("config")
OWN = Path(__file__).resolve().parents[3] / "config"  # of the workflow that this package lies in


def read_yaml(path: Path) -> dict:
    """Return a YAML file's mapping; raise UserError if the file is missing or damaged, or is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)  # JSON: 100 times faster
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; run the command in the folder that holds config/, or name a study: --study FILE"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: this is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def merged(below: dict, above: dict) -> dict:
    """Merge mappings at every level; any other value in `above` replaces the one below.

    Of two keys that exclude each other, such as the tokenizer's, the one in `above` replaces the one below.
    """
    result = _without_replaced(below, above)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _without_replaced(below: dict, above: dict) -> dict:
    """The lower mapping without a key that the upper one replaces by another."""
    given = [key for key in EITHER_OR if above.get(key) is not None]
    return {key: value for key, value in below.items() if len(given) != 1 or key not in EITHER_OR or key in above}


def complete(config: dict, beside: Iterable[Path | str] = ()) -> dict:
    """Return a study with all that it refers to: `based_on` merged in, the other files of config/ under `files`.

    config   content of a study file, merged with changes; a complete study is returned as it is
    beside   folders of the study files. Each file is looked for there first, then in ./config, then in the workflow's
             own config/
    raises   UserError for a file that is missing or damaged
    """
    if COMPLETE in config:
        return config
    places = [*map(Path, beside), LOCAL, OWN]
    while "based_on" in config:
        base = read_yaml(_found(str(config["based_on"]), places))
        config = merged(base, {key: value for key, value in config.items() if key != "based_on"})
    return config | {COMPLETE: {name: read_yaml(_found(f"{name}.yaml", places)) for name in FILES}}


def _found(name: str, places: list[Path]) -> Path:
    """The first of the places' files that exists; of none the first, so that the error names it."""
    paths = [place / name for place in places]
    return next((path for path in paths if path.is_file()), paths[0])


def typed(config: Any, changes: Any) -> Any:
    """Return Snakemake's configuration with the types of the command line's changes.

    Snakemake hands on as text what is inside the mappings and lists of --config: `seeds={run: [42, 43]}` holds "42".

    config    the configuration, which the changes are already part of
    changes   the changes alone
    """
    if isinstance(config, dict) and isinstance(changes, dict):
        config = _without_replaced(config, changes)
        return {key: typed(value, changes[key]) if key in changes else value for key, value in config.items()}
    if config != changes:  # a later value has replaced the change
        return config
    if isinstance(changes, list):
        return [typed(value, value) for value in changes]
    if not isinstance(changes, str):
        return changes
    try:
        value = yaml.safe_load(changes)
    except yaml.YAMLError:
        return changes
    return changes if isinstance(value, date) else value
