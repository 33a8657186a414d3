"""Write the JSON schemas in this folder from the typed configuration: `make schemas`.

Editors use them: each file in config/ that fits one of them names it in its first line. The workflow itself checks
configurations with the Python classes.
"""

import json
from pathlib import Path

from fvlm.config.schema import Source, Study

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
OVERRIDES = {"$ref": "#/$defs/overrides"}


def schemas() -> dict[str, dict]:
    """Return the schemas by file name."""
    return {"sources.schema.json": sources_schema(), "study.schema.json": study_schema()}


def sources_schema() -> dict:
    return {
        "$schema": DIALECT,
        "title": "config/sources.yaml",
        "type": "object",
        "additionalProperties": source_entry(),
    }


def source_entry() -> dict:
    """Return the schema of a source without its name, which is the key of the entry."""
    entry = Source.model_json_schema()
    del entry["title"], entry["properties"]["name"]
    entry["required"].remove("name")
    return entry


def study_schema() -> dict:
    """Return the schema of a study file: settings of the study, and changes to the other files by dotted path."""
    study = Study.model_json_schema()
    resolved = ("runs", "sources", "comparisons")
    settings = {name: field for name, field in study["properties"].items() if name not in resolved}
    settings["seeds"]["additionalProperties"]["type"] = ["array", "null"]  # null removes an inherited entry
    source = source_entry()
    del source["required"]  # a study may change one key of a source
    named = {"type": "object", "additionalProperties": OVERRIDES}
    scaling = {
        "sizes": named,
        "budgets": {"type": "object", "additionalProperties": {"type": ["number", "null"], "exclusiveMinimum": 0}},
        "architectures": named,
        "base": OVERRIDES,
    }
    based_on = {"type": "string", "description": "another study file in config/ that this one changes"}
    schema = {
        "$schema": DIALECT,
        "title": "a study file",
        "type": "object",
        "properties": {
            "based_on": based_on,
            **settings,
            "baseline": OVERRIDES,
            "stages": named,
            "ablations": named,
            "comparisons": {"type": "object", "description": "changes to comparisons.yaml, or further entries"},
            "scaling": {"type": "object", "properties": scaling, "additionalProperties": False},
            "sources": {"type": "object", "additionalProperties": source},
        },
        "required": ["study"],
        "additionalProperties": False,
    }
    parts = study["$defs"] | {"overrides": overrides(study["$defs"])}
    used = json.dumps([schema, parts["overrides"]])
    return schema | {"$defs": {name: part for name, part in parts.items() if f'"#/$defs/{name}"' in used}}


def overrides(parts: dict) -> dict:
    """Return the schema of overrides: fields of a run (`optim.lr.connector`) and whole branches (`optim.lr`)."""
    parent = parts["Run"]["properties"]["parent"]
    fields = {"parent": parent, "question": {"type": "string", "description": "of an ablation"}}
    for section in ("model", "data", "optim", "train", "operation"):
        for name, field in parts[section.capitalize()]["properties"].items():
            fields[f"{section}.{name}"] = field
    fields["model.encoder"] = fields["model.language"] = {"type": "string", "description": "a name in models.yaml"}
    for name, rate in parts["Rates"]["properties"].items():
        fields[f"optim.lr.{name}"] = rate
    for kind in parts["Data"]["properties"]["share"]["propertyNames"]["enum"]:
        fields[f"data.share.{kind}"] = {"type": "number", "minimum": 0, "maximum": 1}
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


if __name__ == "__main__":
    for name, schema in schemas().items():
        (FOLDER / name).write_text(json.dumps(schema, indent=1) + "\n")
