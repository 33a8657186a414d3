"""Names with a meaning for a shell: spaces, quotes, newlines, `$(...)`, leading dashes, Unicode."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fvlm.config.resolve import study_from_files
from fvlm.errors import UserError
from tests.conftest import Workflow

ODD = 'a b\'s "c" $(touch pwned) ; touch pwned & `touch pwned` | x > y <é 漢> #%~!'
FILES = (
    "plain.jpg",
    "-rf.jpg",
    "--out=x.jpg",
    "two words.jpg",
    'it\'s "quoted".jpg',
    "$(touch pwned).jpg",
    "; touch pwned ;.jpg",
    "line\nbreak.jpg",
    "tab\tulator.jpg",
    "ünïcode 漢字 😀.jpg",
    "back\\slash.jpg",
    "{brace} [bracket] *?.jpg",
)
STUDY = {
    "study": ODD,
    "based_on": "smoke.yaml",
    "only": {"stages": ["stage1"], "ablations": []},
    "seeds": {"baseline": None, "A6": None, "B1": None},
    "scaling": {"budgets": dict.fromkeys(("C1", "C2", "C3", "C4"))},
    "prepare": [],
    "shards": {"samples": 8},
    "tokenizer": {"vocabulary": 280},
    "baseline": {"train.evaluations": 1},
    "stages": {
        "stage1": {"data.sources": ["table", "bare"], "data.share": {"image": 1.0}, "train.samples": 12},
    },
}


def images(folder: Path) -> None:
    """One noisy image under each name."""
    random = np.random.default_rng(len(str(folder)))
    folder.mkdir(parents=True)
    for name in FILES:
        Image.fromarray(random.integers(0, 255, (64, 80, 3), np.uint8)).save(folder / name)


@pytest.fixture
def odd(workflow) -> tuple[Workflow, str]:
    """A study with a table and a bare folder in folders with odd names; and its results folder."""
    table, bare = workflow.folder / f"-in {ODD}" / "table of", workflow.folder / f"-in {ODD}" / "bare"
    images(table)
    rows = [{"file": name, "caption": f"this is {name}"} for name in FILES]
    (table / "-t a'b\"c $(touch pwned).jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images(bare)
    for name in FILES:
        (bare / name).with_suffix(".txt").write_text(f"that is {name}")
    source = {"kind": "image", "held_out": 0.3, "prompt": '--what\'s $(touch pwned) "this"?\nSay; `it`'}
    own_table = {"reader": "folder", "path": f"-in {ODD}/table of", "table": "-t a'b\"c $(touch pwned).jsonl"}
    sources = {
        "table": {**source, **own_table},
        "bare": {**source, "reader": "files", "path": f"-in {ODD}/bare"},
    }
    results = f"out {ODD.replace('*', '')}"
    study = STUDY | {"results": results, "sources": sources}
    (workflow.folder / "config/odd.yaml").write_text(yaml.safe_dump(study, allow_unicode=True))
    return workflow, results


@pytest.mark.workflow
def test_odd_names_go_through_every_command(odd):
    workflow, results = odd
    targets = ["data", *(f"{results}/{name}" for name in (
        "plan.txt", "evaluation/stage1.csv", "tables/runs.csv", "tables/validation_curves.csv",
        "figures/training_curves.png",
    ))]  # fmt: skip
    output = workflow.run(*targets, "--configfile", "config/odd.yaml")
    made = workflow.folder / results
    entries = [json.loads(line) for line in (made / "ledger.jsonl").read_text().splitlines()]
    kept = {(entry["source"], entry["file"]) for entry in entries if entry["status"] == "kept"}
    assert kept == {(source, name) for source in ("table", "bare") for name in FILES}, output[-3000:]
    for name in targets[1:]:
        assert (workflow.folder / name).stat().st_size > 0, name
    assert not list(workflow.folder.rglob("pwned")) and not list(workflow.folder.glob("x*"))
    assert workflow.planned(*targets, "--configfile", "config/odd.yaml") == {}


@pytest.mark.parametrize("character", ["\n", "{", "}", "*", "?", "\\", "\x1b", "-"])
def test_a_results_folder_that_snakemake_would_misread_is_refused(workflow, character):
    name = f"{character}out" if character == "-" else f"out{character}s"
    assert_refused(workflow, {"results": name}, f"results is {name!r}", repr(character))


def test_a_line_break_in_a_path_is_refused(workflow):
    source = {"kind": "image", "reader": "files", "path": "my\ndata"}
    assert_refused(workflow, {"prepare": ["mine"], "sources": {"mine": source}}, r"'my\ndata'")


def assert_refused(workflow: Workflow, changes: dict, *facts: str) -> None:
    study = {"study": "odd", "based_on": "smoke.yaml", **changes}
    (workflow.folder / "config/odd.yaml").write_text(yaml.safe_dump(study))
    done = workflow.fvlm("plan", "--study", "config/odd.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(fact in done.stderr for fact in (*facts, "rename"))


@pytest.mark.parametrize("section", ["ablations", "stages"])
@pytest.mark.parametrize("name", ["a; touch pwned", "$(touch pwned)", "../a", "-a", "a b", "a'b", "a\nb", "", 5])
def test_a_name_of_a_run_that_a_shell_would_misread_is_refused(name, section):
    """The name is a word of a command, and a folder."""
    with pytest.raises(UserError, match="name"):
        study_from_files(["config/config.yaml"], {section: {name: {}}})


def test_a_name_of_a_run_may_have_letters_digits_and_dots():
    study_from_files(["config/config.yaml"], {"ablations": {"größer_1.7B-x": {"train.seed": 7}}})


@pytest.mark.parametrize(
    "part", ["output", "input", "log", "params.folder", "params.prompt", "params.table", "params.family"]
)
def test_every_file_in_a_shell_command_is_quoted(part):
    root = Path(__file__).resolve().parents[1]
    for path in [root / "Snakefile", *sorted((root / "rules").glob("*.smk"))]:
        for piece in path.read_text().split("shell:")[1:]:
            for field in piece.split("\n\n")[0].split(f"{{{part}")[1:]:
                assert field.split("}")[0].endswith(":q"), f"{path.name}: {part}{field.split('}')[0]}"
