"""JSON schemas for editors: generated from the classes, and named in the first line of the files that they describe."""

import json
import re
import runpy

import jsonschema
import pytest

from fvlm.config.study_file import read_yaml
from tests.config_cases import CONFIG, SCHEMAS, check_schema

NAMED = {"config": "study", "paper": "study", "smoke": "study", "sources": "sources"}
MADE = runpy.run_path(str(SCHEMAS / "generate.py"))["schemas"]()


def test_the_schemas_are_those_of_the_classes():
    stored = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    assert stored == MADE, "workflow/schemas is not what src/fvlm/config/schema.py gives; run make schemas"
    assert {f"{name}.schema.json" for name in NAMED.values()} == stored.keys()


@pytest.mark.parametrize("name", MADE)
def test_every_part_that_a_schema_refers_to_is_in_it(name):
    parts = {f"#/$defs/{part}" for part in MADE[name].get("$defs", {})}
    assert set(re.findall(r'"\$ref": "(.+?)"', json.dumps(MADE[name]))) == parts


@pytest.mark.parametrize("name", NAMED)
def test_a_file_fits_the_schema_that_its_first_line_names(name):
    path = CONFIG / f"{name}.yaml"
    line = path.read_text().splitlines()[0]
    schema = line.removeprefix("# yaml-language-server: $schema=")
    assert (CONFIG / schema).resolve() == SCHEMAS / f"{NAMED[name]}.schema.json", line
    check_schema(f"{NAMED[name]}.schema.json", read_yaml(path))


@pytest.mark.parametrize("wrong", [{"stages": {"stage1": {"optim.lrs": 1}}}, {"baselines": {}}, {"results": 3}])
def test_the_schema_of_a_study_refuses_mistakes(wrong):
    with pytest.raises(jsonschema.ValidationError):
        check_schema("study.schema.json", {"study": "x", **wrong})
