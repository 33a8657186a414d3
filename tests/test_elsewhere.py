"""The workflow in a folder of its own, from which other folders and other people's Snakefiles use it."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fvlm.snakemake import package
from fvlm.snakemake.study import StudyOfRules
from tests.config_cases import CONFIG, load
from tests.conftest import ROOT, copy_of_workflow, jobs

MODULE = """\
module {name}:
    snakefile: {snakefile}
    config: {config}
    {more}
use rule * from {name} as {rules}
"""
JOBS = ("plan_files", "train", "data_report", "figure")  # some of each file of rules


@dataclass
class Elsewhere:
    """A folder with a study and, in `clone`, a git clone of the workflow; neither is on a path of Python's."""

    folder: Path
    clone: Path

    def snakemake(self, *arguments: str) -> str:
        """Run snakemake with an interpreter that is not on PATH; return its output."""
        command = [sys.executable, "-m", "snakemake", *arguments]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=self.folder, env=self.environment, **output)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def snakefile(self, *modules: str, config: str = "config/smoke.yaml") -> None:
        self.folder.joinpath("Snakefile").write_text("\n".join([f'configfile: "{config}"', *modules]))

    def module(self, name: str = "fvlm", snakefile: str = "", config: str = "config", rules: str = "*", more: str = ""):
        snakefile = snakefile or f'"{self.clone}/workflow/Snakefile"'
        return MODULE.format(name=name, snakefile=snakefile, config=config, rules=rules, more=more)

    @property
    def environment(self) -> dict[str, str]:
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "GITHUB_TOKEN")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        folders = [path for path in kept["PATH"].split(os.pathsep) if not Path(path, "snakemake").exists()]
        return kept | {
            "PATH": os.pathsep.join([str(self.folder / "bin"), *folders]),
            "XDG_CACHE_HOME": str(self.clone.parent / "cache"),
            "GIT_CONFIG_GLOBAL": str(self.clone.parent / "gitconfig"),
        }


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A git clone of the workflow as it is now, under a name with a space; git finds it instead of one on GitHub."""
    folder = tmp_path_factory.mktemp("elsewhere")
    config = folder / "gitconfig"
    config.write_text(
        f'[url "{folder}/source"]\n\tinsteadOf = https://github.com/someone/fvlm\n'
        "[user]\n\tname = someone\n\temail = someone@example.org\n"
    )

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=folder, env={**os.environ, "GIT_CONFIG_GLOBAL": str(config)}, check=True)

    copy_of_workflow(folder / "source")
    git("init", "-q", "-b", "main", "source")
    git("-C", "source", "add", ".")
    git("-C", "source", "commit", "-q", "-m", "The workflow")
    git("-C", "source", "tag", "v1")
    git("clone", "-q", "source", "a clone")
    return folder / "a clone"


@pytest.fixture
def elsewhere(clone, tmp_path) -> Elsewhere:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    return Elsewhere(tmp_path, clone)


# --- dry runs ---


@pytest.mark.parametrize("name", ["Snakefile", "workflow/Snakefile"])
def test_another_folder_names_the_snakefile(elsewhere, name):
    planned = jobs(elsewhere.snakemake("-n", "-s", f"{elsewhere.clone}/{name}", "--configfile", "config/smoke.yaml"))
    assert set(JOBS) <= set(planned)


def test_a_module_on_github_has_a_default_target_and_local_rules(elsewhere):
    snakefile = 'github("someone/fvlm", path="workflow/Snakefile", tag="v1")'
    elsewhere.snakefile(elsewhere.module(snakefile=snakefile, rules="its_*"))
    output = elsewhere.snakemake("-n")
    assert {f"its_{name}" for name in JOBS} <= set(jobs(output))
    assert "27 runs" in output and "localrules directive" not in output


def test_the_prefix_of_a_module_moves_its_results(elsewhere):
    elsewhere.snakefile(elsewhere.module(more='prefix: "deep/er"'))
    output = elsewhere.snakemake("-n", "-p", "deep/er/results/smoke/ledger.jsonl")
    assert "--study=deep/er/results/smoke/study.json" in output
    assert "-- deep/er/results/smoke/corpus/grid" in output and " results/smoke" not in output


def side_by_side(elsewhere: Elsewhere) -> None:
    """Write the two studies and the Snakefile of docs/in-your-own-workflow.md, with a smaller study."""
    page = (ROOT / "docs/in-your-own-workflow.md").read_text()
    study, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    snakefile = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    (elsewhere.folder / "config/both.yaml").write_text(study.replace("config.yaml", "smoke.yaml"))
    (elsewhere.folder / "Snakefile").write_text(snakefile.replace("/path/to/fvlm", str(elsewhere.clone)))


def test_two_modules_stand_side_by_side_with_a_changed_rule(elsewhere):
    side_by_side(elsewhere)
    with open(elsewhere.folder / "Snakefile", "a") as snakefile:
        snakefile.write("\n\nuse rule train from first as first_train with:\n    priority: 3\n")
    output = elsewhere.snakemake("-n")
    planned = jobs(output)
    assert planned["second_train"] == planned["first_train"] + 1  # the third seed
    assert planned["both"] == 1 and output.count(" runs, ") == 2


def test_a_default_target_of_ones_own_comes_first(elsewhere):
    elsewhere.snakefile('rule mine:\n    output: "mine.txt"\n    shell: "touch {output}"\n', elsewhere.module())
    assert jobs(elsewhere.snakemake("-n")) == {"mine": 1}


def test_some_rules_are_used_without_the_others(elsewhere):
    mine = 'rule mine:\n    input: "results/smoke/index/chat.npz"\n'
    some = elsewhere.module(rules="its_*").replace("use rule *", "use rule corpus, tokenizer, shard, index")
    elsewhere.snakefile(mine, some)
    output = elsewhere.snakemake("-n")
    planned = jobs(output)
    assert set(planned) == {"mine", "its_corpus", "its_tokenizer", "its_shard", "its_index"}
    assert planned["its_index"] == planned["its_tokenizer"] == 1 and "training FLOPs" not in output


def test_two_versions_in_one_snakefile_are_refused(elsewhere):
    shutil.copytree(elsewhere.clone, elsewhere.folder / "other")
    elsewhere.snakefile(elsewhere.module("one", rules="one_*"), elsewhere.module("two", '"other/Snakefile"'))
    with pytest.raises(AssertionError, match=r"two places, .*a clone and .*other; use one"):
        elsewhere.snakemake("-n")


# --- jobs ---


@pytest.mark.workflow
def test_jobs_run_in_another_folder_and_find_package_and_python(elsewhere):
    work = elsewhere.folder / "work"
    shutil.copytree(ROOT / "config", work / "config")
    targets = ("results/smoke/plan.txt", "results/smoke/shards/chat/00000.tar")
    where = ("-s", f"{elsewhere.clone}/Snakefile", "-d", "work", "--configfile", "config/smoke.yaml")
    assert "localrule plan_files" in elsewhere.snakemake(*targets, "--cores", "2", *where)
    assert all((work / target).stat().st_size > 0 for target in targets)


@pytest.mark.workflow
def test_jobs_of_a_module_on_github_find_the_unpacked_package(elsewhere):
    elsewhere.snakefile(elsewhere.module(snakefile='github("someone/fvlm", path="workflow/Snakefile", branch="main")'))
    elsewhere.snakemake("--cores", "1", "results/smoke/plan.txt")
    assert "27 runs" in (elsewhere.folder / "results/smoke/plan.txt").read_text()


@pytest.mark.workflow
def test_jobs_of_two_modules_have_their_own_studies(elsewhere):
    side_by_side(elsewhere)
    plans = [f"results/{name}/plan.txt" for name in ("first", "second")]
    elsewhere.snakemake("--cores", "1", *plans)
    assert ["A6-s3" in (elsewhere.folder / plan).read_text() for plan in plans] == [False, True]


FAKE_CONDA = """\
#!/bin/bash
case "$*" in
  "info --json") echo '{{"conda_prefix": "{base}", "platform": "linux-64", "conda_version": "24.9.0", "envs": []}}' ;;
  *--json*) echo '{{"channel_priority": "strict", "get": {{"channel_priority": "strict"}}}}' ;;
  --version) echo conda 24.9.0 ;;
  *create*)
    prefix=$(sed -E 's/.*--prefix "?([^ "]+).*/\\1/' <<< "$*"); mkdir -p "$prefix/bin"
    printf '#!/bin/sh\\necho python of conda >&2\\nexec {python} "$@"\\n' > "$prefix/bin/python"
    chmod +x "$prefix/bin/python" ;;
esac
"""


@pytest.mark.workflow
def test_the_python_of_a_conda_environment_comes_first_and_finds_the_package(elsewhere):
    scripts = elsewhere.folder / "bin"
    scripts.mkdir()
    (scripts / "conda").write_text(FAKE_CONDA.format(base=elsewhere.folder, python=sys.executable))
    (scripts / "conda").chmod(0o755)
    (scripts / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    elsewhere.snakefile(elsewhere.module())
    elsewhere.snakemake("results/smoke/plan.txt", "--cores", "1", "--software-deployment-method", "conda")
    log = (elsewhere.folder / "results/smoke/logs/plan.log").read_text()
    assert "python of conda" in log and "27 runs" in log


# --- reports ---


def finished(folder: Path) -> None:
    """Make files in the place of all results of the smoke study."""
    study = StudyOfRules(load(CONFIG, "smoke.yaml"), None)
    for name in (*study.prepared, *study.tables, *study.figures, *study.decisions):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("The study has runs for this.\n\nMore words of its first page.\n")


@pytest.mark.workflow
def test_a_module_makes_its_report(elsewhere):
    """Its Snakefile lies in a third folder, which neither the user nor Snakemake works in."""
    work = elsewhere.folder / "work"
    finished(work)
    shutil.copytree(ROOT / "config", work / "config")
    elsewhere.snakefile(elsewhere.module(rules="its_*"))
    (elsewhere.folder / "Snakefile").rename(elsewhere.folder / "its.smk")
    output = elsewhere.snakemake("its_plan", "--cores", "1", "-s", "its.smk", "-d", "work")
    assert "report   results/smoke/report.html" in output
    page = (work / "results/smoke/report.html").read_text()
    assert "Answers of the study" in page and "More words of its first page" in page


def test_an_unfinished_study_has_a_report_of_what_exists(elsewhere):
    finished(elsewhere.folder)
    for pattern in ("decisions.*", "figures/three_modes.*"):
        for path in elsewhere.folder.glob(f"results/smoke/{pattern}"):
            path.unlink()
    elsewhere.snakefile(elsewhere.module())
    elsewhere.snakemake("--report", "unfinished.html")
    page = (elsewhere.folder / "unfinished.html").read_text()
    assert "The study is not finished" in page and "factorial.png" in page and "three_modes.png" not in page


# --- packages ---


def test_missing_packages_are_named_with_pips_command():
    with pytest.raises(package.WorkflowError, match=r"\(nowhere_a, nowhere_b\).* -m pip install '/a b'$"):
        package.refuse_missing(("numpy", "nowhere_a", "nowhere_b"), ("/a b",))
    package.refuse_missing((*package.AT_PARSE, *package.OF_JOBS), ())


def test_parsing_needs_only_the_packages_that_are_checked_first():
    others = sorted(set(package.OF_JOBS) - set(package.AT_PARSE))
    code = "import sys, snakemake.api\n"  # which imports some of them for its own use, where they are installed
    code += f"sys.modules.update(dict.fromkeys({others})); import fvlm.snakemake.report"
    subprocess.run([sys.executable, "-c", code], check=True)
