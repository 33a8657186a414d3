"""Documents, pins, schemas, and rules that every file follows."""

import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fvlm
from fvlm.__main__ import COMMANDS
from fvlm.config.resolve import study_from_files
from fvlm.config.schema import Source
from tests import layout, rule_code
from tests.config_cases import check_schema

ROOT = Path(__file__).resolve().parents[1]
MADE = {".git", ".venv", ".snakemake", ".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__"}
RULES = [ROOT / "Snakefile", ROOT / "workflow/Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
ENVIRONMENTS = ("decode", "train", "report", "analysis")
UNUSED = {"report": {"decord", "transformers"}}  # imported in functions that its commands do not call


def files() -> list[Path]:
    """Return every file of the project without what is made from them."""
    result = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        made = MADE.intersection(parts) or any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not made and (parts[0] != "results" or parts[1:] == ("README.md",)):
            result.append(path)
    return result


def texts() -> dict[str, str]:
    binary = {".png", ".pdf", ".jpg", ".mp4", ".npz", ".safetensors"}
    return {str(path.relative_to(ROOT)): path.read_text() for path in files() if path.suffix not in binary}


def pins() -> dict[str, Requirement]:
    lines = [line.strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in pinned}


# --- documents ---


def commands(text: str) -> list[str]:
    """Return the lines of all code blocks that start with a command."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shown = [block for language, block in blocks if language in ("", "bash", "sh", "console")]
    lines = [line.split("  #")[0].strip() for block in shown for line in block.splitlines()]
    return [line for line in lines if re.match(r"(\w+=\S+ )*(make|snakemake|fvlm|python)\b", line)]


def documents() -> list[str]:
    return [name for name in texts() if name.endswith(".md")]


@pytest.mark.parametrize("document", documents())
def test_the_commands_of_a_document_exist(document):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in commands(texts()[document]):
        words = [word for word in line.split() if "=" not in word]
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), line
        elif words[0] == "fvlm":
            assert words[1] in COMMANDS, line


@pytest.mark.parametrize("document", documents())
def test_the_links_of_a_document_exist(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", texts()[document]):
        if "://" not in target:
            assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"


def test_the_readme_gives_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in commands(readme) and "make test" in commands(readme)


def test_the_tree_of_the_readme_exists():
    tree = re.search(r"```\n(Snakefile.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree, "README.md shows no tree that starts with Snakefile"
    folder = ""
    for line in tree.group(1).splitlines():
        name = line.split()[0]
        path = folder + name if line.startswith(" ") else name
        folder = name if line[0] != " " and name.endswith("/") else folder if line.startswith(" ") else ""
        assert (ROOT / path).exists(), f"README.md names {path}"


def test_the_citation_and_the_package_have_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == fvlm.__version__ and citation["license"] == "Apache-2.0"


def test_the_example_of_own_videos_resolves(tmp_path):
    """The source and the study of docs/your-own-videos.md, word for word."""
    page = (ROOT / "docs/your-own-videos.md").read_text()
    entry, study = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[:2]
    for name in ("models", "baseline", "stages", "ablations", "comparisons", "scaling", "config"):
        (tmp_path / f"{name}.yaml").write_text((ROOT / f"config/{name}.yaml").read_text())
    (tmp_path / "sources.yaml").write_text((ROOT / "config/sources.yaml").read_text() + entry)
    (tmp_path / "mine.yaml").write_text(study)
    resolved = study_from_files([str(tmp_path / "mine.yaml")])
    assert "mine" in resolved.runs["stage3"].data.sources
    check_schema("study.schema.json", yaml.safe_load(study))


# --- pins ---


def test_the_lock_pins_each_dependency_of_the_package():
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'^    "([^"]+)",$|^dev = \[(.+)\]$', project, re.MULTILINE)
    wanted = [name for name, _ in listed if name] + re.findall(r'"([^"]+)"', listed[-1][1])
    for text in wanted:
        requirement = Requirement(text)
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in requirements.lock; run make lock"
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{text}, but requirements.lock has {version}"


def test_the_lock_pins_exact_public_versions_and_no_gpu_packages():
    for name, pin in pins().items():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), f"{pin}: pin one version without a build suffix"
        assert not re.match(r"nvidia|cuda|triton|fvlm", name), f"{name}: torch brings it where it is needed"


def environment(name: str) -> dict[str, Requirement]:
    content = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
    listed = next(part["pip"] for part in content["dependencies"] if isinstance(part, dict))
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, listed)}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_has_the_pins_of_the_lock(name):
    for package, requirement in environment(name).items():
        assert str(requirement) == str(pins()[package]), f"envs/{name}.yaml: {requirement}; the lock: {pins()[package]}"


def commands_in(environment: str) -> set[str]:
    """Return the fvlm commands of the rules that run in a conda environment."""
    result = set()
    for path in sorted((ROOT / "rules").glob("*.smk")):
        for rule in re.split(r"^(?:use )?rule ", path.read_text(), flags=re.MULTILINE):
            if f"envs/{environment}.yaml" in rule:
                result |= set(re.findall(r"(?:python -m fvlm |STUDY\.command\(\s*[\"'])([\w-]+)", rule))
    return result


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_has_each_package_that_its_commands_import(name):
    reached = layout.reached_from({COMMANDS[command][0] for command in commands_in(name)} | {"fvlm.__main__"})
    imported = {library for module in reached for library in layout.outside(module)}
    known = packages_distributions()
    packages = {canonicalize_name(known[module][0]) for module in imported if module in known} - {"fvlm"}
    packages -= UNUSED.get(name, set())
    assert packages and packages <= set(environment(name)), f"envs/{name}.yaml: {packages - set(environment(name))}"


def test_every_rule_names_an_environment_that_exists():
    for path in sorted((ROOT / "rules").glob("*.smk")):
        for name in re.findall(r'"\.\./envs/(\w+)\.yaml"', path.read_text()):
            assert name in ENVIRONMENTS, f"{path.name}: envs/{name}.yaml"


def test_the_page_of_the_configuration_names_every_key_of_a_source():
    page = (ROOT / "config/README.md").read_text()
    missing = [name for name in Source.model_fields if name != "name" and f"`{name}`" not in page]
    assert missing == []


# --- every file ---


def test_a_source_file_has_fewer_than_400_lines():
    for name, text in texts().items():
        if name.startswith("src/") and name.endswith(".py"):
            assert len(text.splitlines()) < 400, name


def test_no_file_names_a_machine_or_a_package_index():
    """Absolute paths of a machine and hosts of an index belong to the user's settings."""
    folders = "|".join(("home", "root", "Users", "workspace", "work", "mnt", "scratch", "opt"))
    hosts = "|".join(("pypi" + r"\.org", "pythonhosted" + r"\.org", "download" + r"\.pytorch", "anaconda" + r"\.org"))
    pattern = re.compile(rf"(?<![\w.~}}/*-])/({folders})/\w+|({hosts})")
    for name, text in texts().items():
        match = pattern.search(text)
        assert not match, f"{name}: {match.group()}"


def test_lines_end_with_a_line_feed_and_without_spaces():
    for name, text in texts().items():
        assert "\r" not in text, name
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), name
        assert text.endswith("\n") or not text, name


@pytest.mark.parametrize("path", RULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rules_call_commands_and_hold_no_code(path):
    text = path.read_text()
    assert not re.search(r"^    (script|run|notebook):", text, re.MULTILINE)
    assert rule_code.code_in(text) == []
    assert set(re.findall(r"python -m fvlm ([\w-]+)", text)) <= set(COMMANDS)


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "from pathlib import Path",
        "def shards_of(name):\n    return 1",
        "class Executor(Base):\n    pass",
        "try:\n    STUDY = load(config)\nexcept UserError:\n    pass",
        "for name in NAMES:\n    check(name)",
        'with open("x") as file:\n    pass',
        'if "study" not in config:\n\n    configfile: "config/config.yaml"',
        "while living():\n    wait()",
        'run_path("other.py")',
        "TABLES = [name for name in NAMES]",
        "rule a:\n    input:\n        [f'{run}.csv' for run in RUNS],",
        "rule a:\n    input:\n        lambda w: [w.run, w.shard],",
        "rule a:\n    threads: lambda w: RUNS[w.run].threads * 2",
        'rule a:\n    params:\n        last=lambda w: "--last" if int(w.shard) == 3 else "",',
        "rule a:\n    params:\n        folder=lambda w: str(folder_of(w.source)),",
    ],
)
def test_code_in_rules_is_found(code):
    assert len(rule_code.code_in(f"R = STUDY.folder\n\n\n{code}\n")) >= 1


def test_settings_of_rules_are_no_code():
    text = """
include: "imported.smk" if STUDY.finished else "collect.smk"
use rule train as other with:
    params:
        digest=lambda w: RUNS[w.run].digest,
        gpu=lambda w: min(1, RUNS[w.run].operation.gpus),
        number=lambda w: int(w.shard),  # for a command, with no zeros in front
"""
    assert rule_code.code_in(text) == []


def test_the_profiles_do_not_retrain_after_a_change_of_code():
    assert (ROOT / "profiles").resolve() == (ROOT / "workflow/profiles").resolve()
    for path in sorted((ROOT / "workflow/profiles").glob("*/config.yaml")):
        profile = yaml.safe_load(path.read_text())
        assert set(profile["rerun-triggers"]) == {"mtime", "params", "input"}, path
        assert profile["rerun-incomplete"] is True and "keep-incomplete" not in profile, path
