"""A copy of config/ to make mistakes in; the fixture `folder` is in conftest."""

import json
from pathlib import Path

import jsonschema

from fvlm.config.resolve import load_study
from fvlm.config.study_file import merged, read_yaml

CONFIG = Path(__file__).resolve().parents[1] / "config"
SCHEMAS = CONFIG.parent / "workflow/schemas"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, f"{path.name} no longer holds {old!r}"
    path.write_text(text.replace(old, new, 1))


def load(folder: Path, study: str = "config.yaml", **changes):
    return load_study(merged(read_yaml(folder / study), changes), folder)


def check_schema(name: str, content: object) -> None:
    """Raise jsonschema.ValidationError if the content does not fit a schema of workflow/schemas."""
    schema = json.loads((SCHEMAS / name).read_text())
    jsonschema.validate(content, schema, jsonschema.Draft202012Validator)
