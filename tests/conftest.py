"""Fixtures: a copy of the workflow, the finished smoke study, and shards to train on."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "config", "workflow", "envs", "src")
hypothesis.settings.register_profile("fvlm", deadline=None)  # another process may take the CPU
hypothesis.settings.load_profile("fvlm")
MOST_WORKERS = 4  # of pytest; each needs up to 2 GB
CORES = 2  # of a Snakemake that a test starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background jobs; programs under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def pytest_collection_modifyitems(items):
    """Sort the longest files to the front, since a worker runs a whole file."""
    first = ("test_workflow", "test_slurm")
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))


@dataclass
class Workflow:
    """A checkout in `folder`; its jobs import the package from its src/."""

    folder: Path

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "--cores", str(CORES), *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Run snakemake to its end; returns its output."""
        process = self.start(*arguments)
        output, _ = process.communicate()
        assert (process.returncode == 0) == ok, output[-6000:]
        return output

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return the jobs of a dry run: rule -> number, without the targets."""
        return jobs(self.run("-n", *arguments))

    def fvlm(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "fvlm", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1", "PATH": path}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text, f"{name} no longer holds {old!r}"
        path.write_text(text.replace(old, new))


def jobs(output: str) -> dict[str, int]:
    """Return the table 'Job stats' of Snakemake's output: rule -> number of jobs."""
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("\ntotal ")[0]
    counts = dict(re.findall(r"^(\w+) +(\d+)\s*$", table, re.MULTILINE))
    return {name: int(count) for name, count in counts.items() if name != "all"}


def copy_of_workflow(folder: Path) -> Workflow:
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, folder / part)
    (folder / "profiles").symlink_to("workflow/profiles")
    return Workflow(folder)


@pytest.fixture
def workflow(tmp_path) -> Workflow:
    return copy_of_workflow(tmp_path / "checkout")


@pytest.fixture(scope="session")
def finished_smoke(tmp_path_factory) -> Workflow:
    """The finished smoke study. The first pytest worker that needs it runs it, and copies its results to kept/."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    workflow, log = Workflow(shared / "smoke/checkout"), shared / "smoke/output.txt"
    with FileLock(shared / "smoke.lock"):
        if not log.exists():
            copy_of_workflow(workflow.folder)
            output = workflow.run("--configfile", "config/smoke.yaml")
            results = workflow.folder / "results/smoke"
            shutil.copytree(results, workflow.folder / "kept", copy_function=os.link)
            log.write_text(output)
    return workflow


@pytest.fixture(scope="session")
def smoke(finished_smoke) -> Workflow:
    """The finished smoke study, for the tests of test_workflow.py, which change it; `said` is Snakemake's output."""
    finished_smoke.said = (finished_smoke.folder.parent / "output.txt").read_text()
    return finished_smoke


@pytest.fixture(scope="session")
def smoke_results(finished_smoke) -> Path:
    """The results of the smoke study, which no test changes."""
    return finished_smoke.folder / "kept"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A results folder with shards and indices of small sources to train on."""
    from tests.train_cases import prepare

    results = tmp_path_factory.mktemp("results")
    prepare(results)
    return results


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    """The folder of a small tokenizer."""
    from fvlm.data.shards.text import train_tokenizer

    folder = tmp_path_factory.mktemp("results") / "tokenizer"
    train_tokenizer(["Which one is it? it is one, two, three", "a red square"] * 3, 300, folder)
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """A results folder with a sharded source of 16 questions, 3 of them about broken files."""
    from fvlm.__main__ import main
    from fvlm.data.demo.corpus import make_corpus
    from fvlm.data.readers import read_rows
    from fvlm.data.shards.text import train_tokenizer

    root = tmp_path_factory.mktemp("results")
    make_corpus("questions", root / "corpus", samples=16, seed=1, broken=3, processes=2)
    command = ["shard", str(root / "corpus"), "--name", "questions", "--samples-per-shard", "10", "--processes", "2"]
    assert main([*command, "--out", str(root / "shards/questions")]) == 0
    rows = read_rows(root / "corpus", "samples.jsonl")
    train_tokenizer([text for row in rows for text in row.text.values()], 300, root / "tokenizer")
    return root


def parse(module: str, arguments: list[str]):
    """Return the parsed arguments of a command."""
    import argparse
    import importlib

    parser = argparse.ArgumentParser()
    importlib.import_module(module).add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of config/."""
    return Path(shutil.copytree(ROOT / "config", tmp_path / "config"))


@pytest.fixture
def opened(monkeypatch):
    """Opens a study as the Snakefile does."""
    from fvlm.config.study_file import merged, read_yaml
    from fvlm.snakemake.study import open_study  # imports Snakemake, which few tests need

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["snakemake"])

    def open_it(name: str = "smoke", default_resources: tuple[str, ...] = (), **changes):
        file = Path(f"config/{name}.yaml")
        return open_study(merged(read_yaml(file), changes), [file], changes, SimpleNamespace(args=default_resources))

    return open_it
