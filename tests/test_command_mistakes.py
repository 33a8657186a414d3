"""A mistake in a user's files, options or outputs is reported in one line, and no file is lost or half-written."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from fvlm import __version__
from fvlm.__main__ import COMMANDS, main
from fvlm.analysis.finished import check_results
from fvlm.analysis.fits import sums as fits
from fvlm.analysis.fits.sums import bootstrap, fit_power_laws
from fvlm.errors import UserError
from tests.compare_cases import curve, ending, points
from tests.config_cases import load
from tests.fit_cases import joint_points, training_curves

RUNS = pd.concat([curve(run, ending(2 + 0.1 * place)) for place, run in enumerate(("baseline", "A1", "A6", "A7"))])
CELLS = ["--cells", "deep_fine=baseline,shallow_fine=A1,deep_coarse=A6,shallow_coarse=A7"]
LOSSES = {"fit": "L", "powerlaw": "L", "isoflop": "L", "envelope": "L", "gap": "L"}
GIVEN = {
    "fit": (joint_points(), []),
    "powerlaw": (joint_points(), ["--lowest", "--bootstrap", "0"]),
    "isoflop": (joint_points(noise=0.0005), []),
    "envelope": (training_curves(), []),
    "gap": (points(), []),
    "factorial": (RUNS, CELLS),
    "rank": (RUNS, ["--baseline", "baseline"]),
    "check-curves": (RUNS, []),
    "import": (RUNS, []),
}
every = pytest.mark.parametrize("command", GIVEN)


def call(command, path, out, *options):
    where = "--out-dir" if command == "import" else "--out"
    return main([command, str(path), where, str(out), *GIVEN[command][1], *options])


def refused(capsys, folder, expected, call, *arguments):
    """Check that `call` ends with status 2 and one line, and leaves the folder as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert call(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and re.search(expected, printed.err), printed.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


FILES = {
    "semicolons": (lambda text, loss: text.replace(",", ";"), "separated by semicolons; expected commas"),
    "tabs": (lambda text, loss: text.replace(",", "\t"), "separated by tabs; expected commas"),
    "null bytes": (lambda text, loss: text.replace("\n", "\0\n", 1), "null bytes"),
    "UTF-16": (lambda text, loss: text.encode("utf-16"), "no CSV file"),
    "an open quote": (lambda text, loss: text + '"', "no CSV file"),
    "a column twice": (lambda text, loss: text.replace("\n", ",x\n").replace(",x", f",{loss}", 1), "is there twice"),
}


@every
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_table_is_refused(tmp_path, capsys, command, name):
    change, expected = FILES[name]
    content = change(GIVEN[command][0].to_csv(index=False), LOSSES.get(command, "val_loss"))
    path = tmp_path / "in.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(capsys, tmp_path, expected, call, command, path, tmp_path / "out")


@every
@pytest.mark.parametrize("cell", ["1,234.5", "3,21", "1e-300", "1e300", "1_0", "-inf", "0x10"])
def test_a_loss_that_is_no_positive_number_is_refused(tmp_path, capsys, command, cell):
    loss = LOSSES.get(command, "val_loss")
    table = GIVEN[command][0].astype({loss: object}).reset_index(drop=True)
    table.loc[1, loss] = cell
    path = tmp_path / "in.csv"
    table.to_csv(path, index=False)
    refused(capsys, tmp_path, f"row 3: {loss} is .*expected a positive number", call, command, path, tmp_path / "out")


@pytest.mark.parametrize("command", ["factorial", "rank", "import"])
@pytest.mark.parametrize("column", ["step", "samples_seen"])
def test_steps_and_samples_are_not_negative(tmp_path, capsys, command, column):
    path = tmp_path / "in.csv"
    RUNS.assign(**{column: RUNS[column] - 1e6}).to_csv(path, index=False)
    refused(capsys, tmp_path, f"{column} is -.*zero or more", call, command, path, tmp_path / "out")


@every
@pytest.mark.parametrize("where", ["a folder", "the input", "under a file"])
def test_an_output_that_cannot_be_written_is_refused(tmp_path, capsys, command, where):
    path = tmp_path / ("runs.csv" if command == "import" else "in.csv")
    GIVEN[command][0].to_csv(path, index=False)
    outs = {"a folder": tmp_path, "the input": path, "under a file": path / "out"}
    expected = {"a folder": "not a folder", "the input": "was read", "under a file": "cannot be written"}
    if command == "import":  # it writes a folder
        outs |= {"a folder": path, "the input": tmp_path}
        expected["a folder"] = "cannot be written"
    refused(capsys, tmp_path, expected[where], call, command, path, outs[where])


@every
def test_blanks_in_a_header_are_ignored_and_a_new_folder_is_made(tmp_path, command):
    path = tmp_path / "in.csv"
    path.write_text(GIVEN[command][0].to_csv(index=False).replace(",", " , "))
    assert call(command, path, tmp_path / "a" / "b") == 0 and (tmp_path / "a" / "b").exists()


def test_the_samples_of_a_gap_are_positive_and_not_overwritten(tmp_path, capsys):
    path, samples = tmp_path / "in.csv", tmp_path / "samples.csv"
    points().to_csv(path, index=False)
    rows = [one | {"key": str(key), "loss_sum": one["L"] * 10, "tokens": 10} for key in range(3)
            for one in points().to_dict("records")]  # fmt: skip
    pd.DataFrame(rows).to_csv(samples, index=False)
    refused(capsys, tmp_path, "was read", call, "gap", path, samples, "--samples", str(samples))
    for factor, expected in ((-1.0, "loss_sum is -.*zero or more"), (0.0, "add up to zero")):
        table = pd.DataFrame(rows)
        table.assign(loss_sum=factor * table["loss_sum"].abs()).replace(-0.0, 0.0).to_csv(samples, index=False)
        refused(capsys, tmp_path, expected, call, "gap", path, tmp_path / "out", "--samples", str(samples))


@pytest.mark.parametrize("command", ["fit", "powerlaw", "gap"])
@pytest.mark.parametrize(("option", "value"), [
    ("--bootstrap", "1"), ("--bootstrap", "-1"), ("--bootstrap", "9" * 12), ("--seed", "-1"), ("--seed", "1.5"),
])  # fmt: skip
def test_wrong_numbers_of_resamples_and_seeds_are_refused(tmp_path, capsys, command, option, value):
    path = tmp_path / "in.csv"
    GIVEN[command][0].to_csv(path, index=False)
    with pytest.raises(SystemExit) as ended:
        call(command, path, tmp_path / "out", option, value)
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert re.search(rf"argument {option}: found '?{value}'?; expected", capsys.readouterr().err)


def test_a_block_as_long_as_the_curve_is_refused(tmp_path, capsys):
    path = tmp_path / "in.csv"
    joint_points().to_csv(path, index=False)
    arguments = ["powerlaw", str(path), "--x", "D", "--out", str(tmp_path / "out"), "--block"]
    refused(capsys, tmp_path, "half of them at most", main, [*arguments, "25"])
    assert main([*arguments, "24"]) == 0


def test_a_bootstrap_in_parts_equals_one_at_once(monkeypatch):
    table = joint_points()
    x = table[["N", "D"]].to_numpy()
    fit = fit_power_laws(x, table["L"].to_numpy())
    at_once = bootstrap(fit, x, draws=100, block=3, seed=4)
    monkeypatch.setattr(fits, "AT_ONCE", 48 * 7)
    assert bootstrap(fit, x, draws=100, block=3, seed=4) == pytest.approx(at_once, rel=1e-5)


def test_one_column_cannot_be_two(tmp_path, capsys):
    path = tmp_path / "in.csv"
    points().to_csv(path, index=False)
    refused(capsys, tmp_path, "'N' would be N and L", call, "gap", path, tmp_path / "out", "--columns", "L=N")
    RUNS.to_csv(path, index=False)
    refused(capsys, tmp_path, "'step' would be", call, "rank", path, tmp_path / "out", "--columns", "run=step")


def test_a_curve_that_is_extrapolated_below_zero_gives_no_gap(tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "out"
    table = points()
    table.loc[table["pair"].eq("p2") & table["architecture"].eq("pooled"), "N"] = 1e30
    table.to_csv(path, index=False)
    assert call("gap", path, out) == 0
    pair = json.loads(out.read_text())["groups"][0]["pairs"][2]
    assert pair["at_baseline"]["percent"] is None and pair["at_baseline"]["extrapolates"]
    assert "no loss is left" in pair["note"] and pair["raw"]["percent"] is not None


def test_a_curve_that_rises_with_n_is_reported(tmp_path, capsys):
    path = tmp_path / "in.csv"
    table = points()
    table.to_csv(path, index=False)
    assert call("gap", path, tmp_path / "out") == 0 and "rises" not in capsys.readouterr().out
    table.assign(L=1 / table["L"]).to_csv(path, index=False)
    assert call("gap", path, tmp_path / "out") == 0
    assert "the loss of foveated rises with N" in capsys.readouterr().out


def test_one_evaluation_per_run_gives_no_interval(tmp_path, capsys):
    path = tmp_path / "in.csv"
    pd.concat([curve(run, np.array([2.0])) for run in ("a", "b")]).to_csv(path, index=False)
    assert call("check-curves", path, tmp_path / "out") == 0
    assert "no power law in D can be fitted" in capsys.readouterr().out


def test_an_import_that_fails_leaves_no_table(tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "tables"
    RUNS.to_csv(path, index=False)
    (out / "evaluation.csv").mkdir(parents=True)
    refused(capsys, tmp_path, "cannot be written", call, "import", path, out)


RESULT = {"config": "S", "model_type": "fov", "step": 1, "loss_mean": 3.0, "samples_seen": 5}
NO_FRAMES = {"model_type": "fov", "step": 1, "loss_mean": 2, "total_flops": 1, "flops_per_sample": 0, "num_frames": 0}
IMPORTED = {
    "no FLOPs": (RUNS.assign(total_flops=-1.0), "total_flops is -1.0; expected a number, zero or more"),
    "infinite N": (RUNS.assign(total_params=np.inf), "total_params is inf; expected"),
    "a huge integer": ([RESULT | {"step": 10**400}], "step is 1000"),
    "a negative step": ([RESULT | {"step": -1}], "step is -1"),
    "no frames": ([NO_FRAMES], "no samples_seen"),
}


@pytest.mark.parametrize("name", IMPORTED)
def test_wrong_values_in_results_are_refused(tmp_path, capsys, name):
    content, expected = IMPORTED[name]
    table = isinstance(content, pd.DataFrame)
    path = tmp_path / ("points.csv" if table else "results.json")
    path.write_text(content.to_csv(index=False) if table else json.dumps(content))
    refused(capsys, tmp_path, expected, call, "import", path, tmp_path / "out")


def test_tables_and_pages_do_not_overwrite_what_they_read(tmp_path, capsys):
    path, tables = tmp_path / "in.csv", tmp_path / "tables"
    RUNS.to_csv(path, index=False)
    assert call("import", path, tables) == 0
    where = ["--tables", str(tables)]
    refused(capsys, tmp_path, "was read", main, ["table", "factorial", *where, "--out", str(tables / "runs.csv")])
    drawing = ["figure", "factorial", *where, "--out-dir", str(tables)]
    refused(capsys, tmp_path, "the folder of the tables", main, drawing)
    for name in ("scaling_fits", "isoflop", "decisions"):
        assert main(["table", name, *where, "--out", str(tables / f"{name}.csv")]) == 0
    page = ["decisions", *where, "--study", "s", "--out"]
    text = str(tmp_path / "text")
    refused(capsys, tmp_path, "one file", main, [*page, text, "--text", text])
    refused(capsys, tmp_path, "not a folder", main, [*page, str(tables), "--text", text])
    refused(capsys, tmp_path, "was read", main, [*page, str(tables / "decisions.csv"), "--text", text])
    refused(capsys, tmp_path, "cannot be written", main, [*page, str(path / "page"), "--text", text])
    runs = (tables / "runs.csv").read_text()
    (tables / "runs.csv").write_text(runs + runs.split("\n", 1)[1])
    refused(capsys, tmp_path, "is there twice", main, ["table", "ablations", *where, "--out", text])


@pytest.mark.parametrize("value", [[], None, "", 3, {"a": 1}, [""], [3]])
def test_results_from_needs_a_path(folder, value):
    with pytest.raises(UserError, match=r"results_from: found .*; expected a file or folder"):
        load(folder, results_from=value)


def test_missing_and_repeated_results_are_named(folder, tmp_path):
    path = tmp_path / "a.csv"
    RUNS.to_csv(path, index=False)
    check_results(load(folder, results_from=str(path)))
    with pytest.raises(UserError, match=r"a\.csv,b\.csv: no such file or folder"):
        check_results(load(folder, results_from=f"{path},b.csv"))
    with pytest.raises(UserError, match="is there twice"):
        check_results(load(folder, results_from=[str(path), str(path)]))


def summary_of(folder, run, text=None):
    """A finished run's summary in a folder of its name."""
    path = folder / run / "run_summary.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"run": run, "family": "ablation"}) if text is None else text)
    return path


WRONG_RESULTS = {
    "an empty file": (lambda folder: (folder / "a.csv").write_text(""), "no column 'run_id', .*found nothing"),
    "no column": (lambda folder: RUNS.drop(columns="val_loss").to_csv(folder / "a.csv"), "no column 'val_loss'"),
    "no text": (lambda folder: (folder / "a.csv").write_bytes(b"\xff\xfe"), "no CSV file"),
    "a folder without runs": (lambda folder: (folder / "runs").mkdir(), "no run_summary.json"),
    "a broken summary": (lambda folder: summary_of(folder / "runs", "A1", "{"), "expected the summary of a finished"),
    "an empty summary": (lambda folder: summary_of(folder / "runs", "A1", "{}"), "expected a mapping with the field"),
    "another folder": (lambda folder: summary_of(folder / "runs", "A1").parent.rename(folder / "runs/A2"), "rename"),
    "no JSON": (lambda folder: (folder / "a.json").write_text("[{"), "cannot be read as JSON"),
    "a list of words": (lambda folder: (folder / "a.json").write_text('["a"]'), "expected a list of results"),
    "a result without loss": (
        lambda folder: (folder / "a.json").write_text(json.dumps([RESULT, {**RESULT, "loss_mean": None}])),
        "result 2: no loss_mean",
    ),
    "another kind of file": (lambda folder: (folder / "a.txt").write_text(""), r"expected a \.csv"),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_results_that_cannot_be_read_fail_before_the_first_job(folder, tmp_path, capsys, name):
    """With the message of the import, which would be the job."""
    made, expected = tmp_path / "made", WRONG_RESULTS[name][1]
    made.mkdir()
    WRONG_RESULTS[name][0](made)
    (path,) = made.iterdir()
    with pytest.raises(UserError, match=expected):
        check_results(load(folder, results_from=str(path)))
    refused(capsys, tmp_path, "" if name == "an empty file" else expected, call, "import", path, tmp_path / "out")


def test_a_run_that_two_results_hold_fails_before_the_first_job(folder, tmp_path, capsys):
    points, runs, results = tmp_path / "points.csv", tmp_path / "runs", tmp_path / "list.json"
    RUNS.assign(run_id=RUNS["run_id"].replace("A1", "A1_deep_query_off")).to_csv(points, index=False)
    summary_of(runs, "A2")
    results.write_text(json.dumps([RESULT]))
    given = [str(points), str(runs), str(results)]
    check_results(load(folder, results_from=given))
    for extra in ("A1", "S-fov"):  # the name that A1_deep_query_off gets, and that of the result
        path = summary_of(tmp_path / extra, extra)
        with pytest.raises(UserError, match=f"runs {extra} are in several of the results"):
            check_results(load(folder, results_from=[*given, str(path)]))
        where = [str(path), "--out-dir", str(tmp_path / "out")]
        refused(capsys, tmp_path, f"runs {extra} are in several", main, ["import", *given, *where])


@pytest.mark.parametrize(
    "arguments", [*([command, "--nope"] for command in GIVEN), ["fit", "x", "--out", "y", "--seed", "z"]]
)
def test_a_mistake_in_the_arguments_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed, named = capsys.readouterr(), f"fvlm {arguments[0]}"
    assert ended.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"{named}: ") and f"({named} --help " in printed.err
    with pytest.raises(SystemExit) as ended:
        main([arguments[0], "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: {named} ")


@pytest.mark.parametrize(("arguments", "fact"), [([], "missing"), (["trian"], "'train'"), (["zzz"], "'zzz'")])
def test_a_missing_or_unknown_command_is_one_sentence(capsys, arguments, fact):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and fact in printed.err and "fvlm --help" in printed.err


def test_the_help_lists_every_command_and_the_version_is_printed(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^  {command} ", listed, re.MULTILINE) for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fvlm {__version__}\n"


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("query depth", "query\0 depth", "null bytes"),
    ("best", "bst", "measure is 'bst'; expected one of best"),
    ("query depth (", "query depth [", r"effect is 'query depth \[deep"),
])  # fmt: skip
def test_a_table_with_unknown_values_is_not_drawn(tmp_path, capsys, old, new, expected):
    path, tables = tmp_path / "in.csv", tmp_path / "tables"
    RUNS.to_csv(path, index=False)
    assert main(["import", str(path), "--out-dir", str(tables)]) == 0
    table = tables / "factorial.csv"
    assert main(["table", "factorial", "--tables", str(tables), "--out", str(table)]) == 0
    drawing = ["figure", "factorial", "--tables", str(tables), "--out-dir", str(tmp_path / "figures")]
    text = table.read_text()
    table.write_text(text.replace(old, new, 1))
    refused(capsys, tmp_path, expected, main, drawing)
    table.write_text(text)
    assert main(drawing) == 0


def test_a_loss_that_only_rises_is_reported(tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "out"
    rising = curve("up", np.linspace(2.0, 3.0, 20))
    pd.concat([RUNS, rising]).to_csv(path, index=False)
    assert call("check-curves", path, out) == 0
    assert json.loads(out.read_text())["never_falls"] == ["up"]
    assert "never again as low as at the first evaluation: up\n" in capsys.readouterr().out
