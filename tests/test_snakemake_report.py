"""What a snakemake announces, reports and says of its failures."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards
from snakemake.settings.enums import Quietness

from fvlm.analysis import catalog
from fvlm.snakemake import report
from fvlm.snakemake.process import ends_of
from fvlm.snakemake.report import announce, make_report, report_failures, report_left_out, targets
from fvlm.snakemake.study import StudyOfRules
from tests.config_cases import CONFIG, load
from tests.snakemake_cases import of_snakemake

# --- announcement and report ---


def test_the_plan_is_announced_unless_it_is_the_target(opened, monkeypatch, capsys):
    study = opened()
    announce(study, of_snakemake())
    assert "27 runs" in capsys.readouterr().err
    announce(study, of_snakemake(quiet=Quietness.RULES))
    assert "27 runs" in capsys.readouterr().err
    announce(study, of_snakemake(quiet=Quietness.ALL))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "argv", ["snakemake", "plan"])
    announce(study, of_snakemake())
    assert capsys.readouterr() == ("", "")


def test_figures_that_a_configuration_cannot_draw_are_no_targets(opened):
    def names(without: str = "") -> set[str]:
        study = opened()
        study.runs = {name: run for name, run in study.runs.items() if run.family != without}
        return {Path(path).stem for path in study.figures}

    of_grid = {name for name in catalog.STANDARD if catalog.FIGURES[name].grid}
    assert len(of_grid) == 4 and names() == set(catalog.STANDARD)
    assert names(without="grid") == set(catalog.STANDARD) - of_grid
    assert names(without="stage") == set(catalog.STANDARD) - {"attention_heatmaps"}


def test_a_report_of_finished_results_has_the_figures_that_exist(opened, tmp_path, monkeypatch):
    points = tmp_path / "points.csv"
    points.write_text("run_id,step,samples_seen,val_loss\na,1,32,2.0\na,2,64,1.9\n")
    figures = tmp_path / "imported/figures"
    figures.mkdir(parents=True)
    study = opened(results=str(tmp_path), results_from=str(points))
    assert study.figures == [str(figures / "not_drawn.csv")]  # nothing is drawn yet
    missing = [name for name in catalog.OF_RESULTS if name != "factorial"]
    (figures / "not_drawn.csv").write_text("figure,title,reason\n" + "".join(f"{name},,x\n" for name in missing))
    lost = [str(figures / f"factorial.{kind}") for kind in ("png", "pdf", "rst")]
    assert study.figures == [str(figures / "not_drawn.csv"), *lost]
    assert study.tables_alone == "(?!)" and len(study.imported_tables) == len(study.tables)
    for path in lost:
        Path(path).touch()
    assert study.figures == [str(figures / "not_drawn.csv")]
    monkeypatch.setattr(sys, "argv", ["snakemake", "--report", "page.html"])
    assert targets(study) == [str(figures / "not_drawn.csv"), *lost]
    assert "gap" in study.tables_alone and len(study.imported_tables) == len(catalog.COLLECTED)


def test_what_an_import_has_left_out_is_printed_once(opened, tmp_path, monkeypatch, capsys):
    points = tmp_path / "points.csv"
    points.write_text("run_id,step,samples_seen,val_loss\na,1,32,2.0\n")
    study = opened(results=str(tmp_path), results_from=str(points))
    report_left_out(study, of_snakemake())
    log = tmp_path / "imported/logs/import_results.log"
    log.parent.mkdir(parents=True)
    log.write_text("a warning of a library\nleft out: A6: m.csv: 1 of 9 rows; row 3: val_loss is 'nan'\n")
    report_left_out(study, of_snakemake(quiet=Quietness.ALL))
    assert capsys.readouterr().err == ""
    report_left_out(study, of_snakemake())
    assert capsys.readouterr().err == "left out: A6: m.csv: 1 of 9 rows; row 3: val_loss is 'nan'\n"
    os.utime(log, (report.BEGUN - 1, report.BEGUN - 1))  # of an earlier call
    report_left_out(study, of_snakemake())
    assert capsys.readouterr().err == ""


def test_a_part_of_a_study_has_no_report(opened, tmp_path, capsys):
    make_report(opened(results=str(tmp_path)), None, "all")
    assert not (tmp_path / "report.html").exists() and capsys.readouterr().err == ""


def test_a_report_that_fails_names_its_log(workflow, monkeypatch):
    study = StudyOfRules(load(CONFIG, "smoke.yaml"), None)
    monkeypatch.chdir(workflow.folder)
    for path in (*study.tables, *study.figures, *study.decisions):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    with pytest.raises(WorkflowError, match=r"results/smoke/report\.html.*results/smoke/logs/report\.log"):
        make_report(study, of_snakemake(workflow.folder / "Snakefile", files=("nowhere.yaml",)), "all")
    assert "nowhere.yaml" in Path("results/smoke/logs/report.log").read_text()


# --- failures ---


class Failed(SimpleNamespace):
    """A failed job as the report sees it."""

    def __init__(self, rule: str, log: Path, **wildcards: str):
        rule, values = SimpleNamespace(name=rule), Wildcards(fromdict=wildcards)
        super().__init__(rule=rule, wildcards=values, log=[str(log)], is_group=lambda: False)


class FailedGroup(list):
    name = "decode"

    def is_group(self) -> bool:
        return True


@pytest.fixture
def log(tmp_path):
    """Writes a log and returns its path."""

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_failed_jobs_are_listed_with_their_last_lines(opened, tmp_path, log, capsys):
    (tmp_path / "runs/A6/state").mkdir(parents=True)
    for step in (100, 200):
        (tmp_path / f"runs/A6/state/step_{step:08d}.pt").touch()
    failed = [
        Failed("train", log("a.log", "step 1\nfvlm train: the loss is nan\n\n"), run="A6"),
        Failed("train", log("b.log", "Killed"), run="A7"),
        Failed("figure", tmp_path / "none.log", figure="gap"),
        Failed("table", log("old.log", "ValueError: of an earlier call"), table="gap"),
        FailedGroup(
            [Failed("shard", log("0", ""), shard="00000"), Failed("shard", log("1", "full disk"), shard="00001")]
        ),
        FailedGroup([Failed("shard", log("2", ""), shard="00002")]),
    ]
    os.utime(tmp_path / "old.log", (report.BEGUN - 1, report.BEGUN - 1))
    report_failures(opened(results=str(tmp_path)), of_snakemake(quiet=Quietness.RULES, failed=failed))
    assert capsys.readouterr().err.splitlines() == [
        "",
        "Failed jobs (6), each with the last line of its log:",
        "  figure gap: nothing in its log since this call began",
        f"    {tmp_path}/none.log",
        "  group decode: nothing in the logs of its jobs",
        "  shard 00001: full disk",
        f"    {tmp_path}/1",
        "  table gap: nothing in its log since this call began",
        f"    {tmp_path}/old.log",
        "  train A6: fvlm train: the loss is nan",
        f"    {tmp_path}/a.log; newest checkpoint: step 200",
        "  train A7: Killed",
        f"    {tmp_path}/b.log; no checkpoint yet",
        "The same command goes on: finished files stay, and trainings resume from their checkpoints (see fvlm status).",
    ]


def test_failures_of_another_snakefile_are_its_own(opened, tmp_path, log, capsys):
    elsewhere = Failed("pretrain", Path("/elsewhere/log"), part="x")
    without_log = Failed("plot", Path("unused"))
    without_log.log = []
    own = Failed("fvlm_train", log("a.log", "nan"), run="A6")
    report_failures(opened(results=str(tmp_path)), of_snakemake(failed=(elsewhere, without_log, own)))
    printed = capsys.readouterr().err
    assert "Failed jobs (1)" in printed and "fvlm_train A6: nan" in printed and "pretrain" not in printed


def test_a_stopped_call_says_how_to_go_on_and_a_quiet_one_nothing(opened, capsys):
    report_failures(opened(), of_snakemake())
    assert capsys.readouterr().err.startswith("\nStopped.\nThe same command goes on")
    report_failures(opened(), of_snakemake(quiet=Quietness.ALL))
    assert capsys.readouterr() == ("", "")


def test_a_long_log_is_shown_from_its_end(tmp_path, log):
    long = log("long", "".join(f"line {i}\n\n" for i in range(50_000)))
    assert list(ends_of([str(tmp_path / "none"), str(long)])) == [
        f"Log {tmp_path}/none is empty or does not exist.",
        f"Last lines of {long}:",
        *(f"    line {i}" for i in range(49_980, 50_000)),
    ]
