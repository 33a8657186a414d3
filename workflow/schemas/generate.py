"""Write the JSON schemas in this folder from the typed configuration: `make schemas`.

run.schema.json       a resolved run, as in results/runs/*/model/run.json
sources.schema.json   config/sources.yaml
study.schema.json     a study file: config/config.yaml, config/paper.yaml, ...

They are for editors and for readers; the workflow itself checks against the Python classes.
"""

import json
import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fvlm.config.schema import Run, Source, Study

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PART = "#/$defs/{model}"


def schemas() -> dict[str, dict]:
    """File name -> schema."""
    run = {"$schema": DIALECT, **Run.model_json_schema()}
    made = {
        "run.schema.json": run,
        "sources.schema.json": sources_schema(),
        "study.schema.json": study_schema(),
    }
    return {name: without_unused_parts(schema) for name, schema in made.items()}


def sources_schema() -> dict:
    entry, parts = definitions(Source)
    return {
        "$schema": DIALECT,
        "title": "config/sources.yaml",
        "type": "object",
        "additionalProperties": without_name(entry),
        **parts,
    }


def study_schema() -> dict:
    """What a study file may say: settings of the study, and overrides of the other files by dotted path."""
    study, parts = definitions(Study)
    source, _ = definitions(Source)
    resolved = ("runs", "sources", "comparisons")
    settings = {name: field for name, field in study["properties"].items() if name not in resolved}
    change = without_name(source)
    del change["required"]  # it changes an entry of sources.yaml, or adds one
    settings["seeds"]["additionalProperties"]["type"] = ["array", "null"]  # null takes back what it is based on
    named = {"type": "object", "additionalProperties": {"$ref": "#/$defs/overrides"}}
    parts["$defs"]["overrides"] = overrides(parts["$defs"])
    scaling = {
        "sizes": named,
        "budgets": {"type": "object", "additionalProperties": {"type": ["number", "null"], "exclusiveMinimum": 0}},
        "architectures": named,
        "base": {"$ref": "#/$defs/overrides"},
    }
    return {
        "$schema": DIALECT,
        "title": "a study file",
        "type": "object",
        "properties": {
            "based_on": {
                "type": "string",
                "description": "another study file in config/ that this one changes",
            },
            **settings,
            "baseline": {"$ref": "#/$defs/overrides"},
            "stages": named,
            "ablations": named,
            "comparisons": {"type": "object", "description": "changes to comparisons.yaml, or further entries"},
            "scaling": {"type": "object", "properties": scaling, "additionalProperties": False},
            "sources": {"type": "object", "additionalProperties": change},
        },
        "required": ["study"],
        "additionalProperties": False,
        **parts,
    }


def overrides(parts: dict) -> dict:
    """Fields of a run by dotted path (`optim.lr.connector`) and whole branches (`optim.lr`), all optional."""
    run = parts["Run"]["properties"]
    fields = {"parent": run["parent"], "question": {"type": "string", "description": "of an ablation"}}
    for section in ("model", "data", "optim", "train", "operation"):
        for name, field in parts[section.capitalize()]["properties"].items():
            fields[f"{section}.{name}"] = field
    fields["model.encoder"] = fields["model.language"] = {
        "type": "string",
        "description": "a name in models.yaml",
    }
    for name in parts["Rates"]["properties"]:
        fields[f"optim.lr.{name}"] = parts["Rates"]["properties"][name]
    for kind in parts["Data"]["properties"]["share"]["propertyNames"]["enum"]:
        fields[f"data.share.{kind}"] = {"type": "number", "minimum": 0, "maximum": 1}
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


def definitions(model: type[BaseModel]) -> tuple[dict, dict]:
    """A model's schema, and the shared parts that it refers to."""
    _, parts = models_json_schema([(model, "validation")], ref_template=PART)
    return parts["$defs"][model.__name__], parts


def without_name(source: dict) -> dict:
    """A source as an entry of a mapping, where its name is the key."""
    entry = {key: value for key, value in source.items() if key != "title"}
    entry["properties"] = {name: field for name, field in source["properties"].items() if name != "name"}
    entry["required"] = [name for name in source["required"] if name != "name"]
    return entry


def without_unused_parts(schema: dict) -> dict:
    """Drop the definitions that nothing refers to, until none is left."""
    parts = schema.get("$defs", {})
    while True:
        text = json.dumps({**schema, "$defs": parts})
        used = {name: part for name, part in parts.items() if f'"{PART.format(model=name)}"' in text}
        if used == parts:
            rest = {key: value for key, value in schema.items() if key != "$defs"}
            return {**rest, "$defs": parts} if parts else rest
        parts = used


def main() -> int:
    for name, schema in schemas().items():
        (FOLDER / name).write_text(json.dumps(schema, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
