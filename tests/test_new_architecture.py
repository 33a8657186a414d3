"""docs/new-architecture.md as it stands: in a copy of the package, its code plans, trains and evaluates the new run."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap

import yaml

from fvlm.config.architectures import ARCHITECTURES
from fvlm.config.study_file import merged, read_yaml
from fvlm.model.connector import CONNECTORS
from tests.conftest import ROOT
from tests.loader_cases import make_results

USE = """
from fvlm import style
from fvlm.__main__ import main
from fvlm.costs import flops
from fvlm.model.build import build_model
from tests.test_flops import TINY, counted, measured, model_of, one_sample

model = model_of(TINY, "centre")
assert measured(model, one_sample(8, 40, 25))[1] == flops.training_flops(model, (), 8, 40, 25)
assert counted(model) == flops.parameters(model)
pool = build_model(model, 0).connector.pool  # 16 of 7 x 7 patches, from row and column 1 on
assert (pool.sum(1) == 1).all() and pool.argmax(1).tolist() == [7 * y + x for y in range(1, 5) for x in range(1, 5)]
assert style.NAMES["centre"] == "centre patches" and len(set(style.ARCHITECTURE.values())) == len(style.NAMES)
assert main(["plan", "--study", "study.yaml", "--out", "."]) == 0
assert main(["train", "B5", "--study", "study.yaml"]) == 0
assert main(["evaluate", "B5", "--study", "study.yaml", "--out", "scored.csv"]) == 0
"""


def test_every_architecture_has_a_connector():
    assert list(CONNECTORS) == list(ARCHITECTURES)


def test_the_page_adds_an_architecture_in_three_files(tmp_path):
    page = (ROOT / "docs/new-architecture.md").read_text()
    facts, facts_line, tensors, tensors_line, run = map(
        textwrap.dedent, re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.DOTALL)
    )
    for part in ("src", "config"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name, table, code, line in (
        ("src/fvlm/config/architectures.py", "ARCHITECTURES", facts, facts_line),
        ("src/fvlm/model/connector.py", "CONNECTORS", tensors, tensors_line),
    ):
        assert name in page and table in page
        before, entries = (tmp_path / name).read_text().split(f"{table}: dict")
        (tmp_path / name).write_text(f"{before}{code}\n\n{table}: dict{entries.rstrip().removesuffix('}')}{line}}}\n")
    with open(tmp_path / "config/ablations.yaml", "a") as file:
        file.write(run)
    results = make_results(tmp_path / "results")
    changes = {"results": str(results), "prepare": [], "scaling": {"sizes": dict.fromkeys("SML")},
               "baseline": {"data.sources": ["grid", "pictures", "chat"], "train.samples": 12},
               "only": {"stages": [], "ablations": ["B5"]}, "seeds": {"A6": None}}  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(merged(read_yaml(ROOT / "config/smoke.yaml"), changes)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), str(ROOT)])}
    ended = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "B5" in (tmp_path / "plan.csv").read_text()
    assert json.loads((results / "runs/B5/run_summary.json").read_text())["steps"] == 3
    with open(tmp_path / "scored.csv") as file:
        looks = {(row["mode"], row["frames"]) for row in csv.DictReader(file)}
    assert looks == {("direct", "own"), ("direct", "other"), ("blind", "none")}
