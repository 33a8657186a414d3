"""`fvlm gap`, `factorial`, `rank` and `check-curves` on files of a user's own."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fvlm.__main__ import main
from fvlm.analysis.fits import curves
from fvlm.analysis.fits.curves import SIDE, find_jumps, steps_of
from tests.compare_cases import curve, ending, made, points, run, samples_of, save, smooth
from tests.test_analysis_fits import REFERENCE

ROOT = Path(__file__).resolve().parents[1]
CELLS = "deep_fine=baseline,shallow_fine=A1,deep_coarse=A6,shallow_coarse=A7"
reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data (FVLM_TEST_REFERENCE)")


# --- check-curves ---


@pytest.mark.parametrize(("runs", "noise"), [(2, 0.002), (4, 0.01), (6, 0.005)])
def test_smooth_noisy_curves_raise_no_alarm(runs, noise):
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        samples = 8000.0 * np.arange(1, 83)
        curves = {str(place): (samples, smooth(82, rng, noise)) for place in range(runs)}
        alarms += bool(find_jumps(curves)[0])
    assert alarms <= 1


def test_smooth_curves_without_noise_have_no_step():
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = steps_of("one", 8000.0 * np.arange(1, 83), smooth(82, rng, noise=0.0))
        assert steps["score"].abs().max() < 2


def jumping(seed=0, runs=3, at=15, size=-0.04, noise=0.004, n=60):
    """Curves that jump after evaluation `at`; all but the last of one more, which does not."""
    rng = np.random.default_rng(seed)
    step = np.where(np.arange(n) >= at, size, 0.0)
    frames = [curve(f"run{k}", smooth(n, rng, noise) * np.exp(step), every=8000) for k in range(runs)]
    return [*frames, curve("other", smooth(n, rng, noise), every=8000)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [-0.04, 0.04])
def test_a_jump_that_runs_share_is_found_where_it_is(tmp_path, seed, size):
    path, out = save(tmp_path / "curves.csv", *jumping(seed, size=size)), tmp_path / "jumps.json"
    run("check-curves", path, "--out", out)
    found = made(out)
    (jump,) = found["jumps"]
    assert (jump["from_samples"], jump["to_samples"]) == (120_000, 128_000)
    assert {row["run"] for row in jump["runs"]} == {"run0", "run1", "run2"} and jump["not_seen_in"] == ["other"]
    assert all(row["percent"] == pytest.approx(100 * np.expm1(size), abs=1.5) for row in jump["runs"])
    edges = [(part["from_samples"], part["to_samples"]) for part in found["intervals"]]
    assert edges == [(8000, 120_000), (128_000, 480_000)]
    assert found["intervals"][0]["evaluations"]["other"] == 15


@pytest.mark.parametrize(("size", "jumps"), [(-0.004, 0), (-0.006, 1)])
def test_a_jump_below_half_a_percent_is_none_however_clear(size, jumps):
    place = np.arange(1, 41)
    step = np.where(place > 20, size, 0.0)
    curves = {name: (8000 * place, np.exp(0.3 / place + step)) for name in ("one", "two")}
    assert len(find_jumps(curves)[0]) == jumps


def test_a_jump_of_one_run_alone_is_no_jump_of_the_data(tmp_path, capsys):
    path, out = save(tmp_path / "curves.csv", *jumping(runs=1)), tmp_path / "jumps.json"
    run("check-curves", path, "--out", out)
    found = made(out)
    assert found["jumps"] == [] and [row["run"] for row in found["in_one_run_only"]] == ["run0"]
    assert len(found["intervals"]) == 1 and "no jump that two runs share" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scores", "jumps", "alone"),
    [
        ((3.4, 3.4, 3.4), 0, 0),  # none is clear
        ((3.6, 3.1), 1, 0),
        ((3.6, 2.9), 0, 1),  # the other does not confirm it
        ((3.6, -3.6), 0, 2),  # opposite directions
    ],
)
def test_a_jump_is_clear_in_one_run_and_confirmed_by_another(monkeypatch, scores, jumps, alone):
    samples = 8000.0 * np.arange(1, 41)
    runs = {f"run{place}": (samples, np.full(40, score)) for place, score in enumerate(scores)}

    def steps(run, samples, loss):
        percent = 2.0 * np.sign(loss[0])  # a little of the step shows at the next place, too
        rows = [(run, 8000.0, 16_000.0, percent, loss[0]), (run, 16_000.0, 24_000.0, percent, 0.9 * loss[0])]
        return pd.DataFrame(rows, columns=list(curves.STEP))

    monkeypatch.setattr(curves, "steps_of", steps)
    found = curves.find_jumps(runs)
    assert (len(found[0]), len(found[1])) == (jumps, alone)


def test_one_stray_evaluation_is_no_jump():
    rng = np.random.default_rng(0)
    samples, curves = 8000.0 * np.arange(1, 61), {}
    for name in ("one", "two"):
        loss = smooth(60, rng, 0.002)
        loss[30] *= 1.06
        curves[name] = (samples, loss)
    assert find_jumps(curves)[0] == []


def test_runs_that_are_evaluated_at_other_times_share_a_jump():
    rng = np.random.default_rng(2)
    curves = {}
    for name, every in (("often", 4000), ("seldom", 14_000)):
        samples = float(every) * np.arange(1, 420_000 // every)
        curves[name] = (samples, (1.1 + 9 * samples**-0.3) * np.exp(0.002 * rng.normal(size=len(samples))))
        curves[name][1][samples > 201_000] *= 0.95
    ((jump,), _) = find_jumps(curves)
    place = tuple(jump.iloc[0][["from_samples", "to_samples"]])
    assert place in ((200_000, 204_000), (196_000, 210_000)) and len(jump) == 2


def test_tolerance_joins_what_lies_apart(tmp_path):
    one, two = jumping(runs=2, at=20)[:2], jumping(seed=1, runs=2, at=23)[:2]
    path = save(tmp_path / "c.csv", one[0], two[1].assign(run_id="run9"))
    counts = []
    for options in ([], ["--tolerance", 20_000]):
        run("check-curves", path, "--out", tmp_path / "j.json", *options)
        counts.append(len(made(tmp_path / "j.json")["jumps"]))
    assert counts == [0, 1]


def test_short_curves_and_decaying_rates_are_reported(tmp_path, capsys):
    rng = np.random.default_rng(0)
    frames = [
        curve("long", smooth(40, rng), lr_schedule="constant"),
        curve("short", smooth(2 * SIDE - 1, rng), lr_schedule="cosine"),
    ]
    run("check-curves", save(tmp_path / "curves.csv", *frames), "--out", tmp_path / "j.json")
    found, said = made(tmp_path / "j.json"), capsys.readouterr().out
    assert found["not_judged"] == ["short"] and found["decaying_rate"] == ["short"]
    assert "not judged: short" in said and "learning rate decays" in said


@reference
def test_jumps_of_the_reference(tmp_path):
    path = REFERENCE / "release_scaling_data" / "all_eval_points.csv"
    run("check-curves", path, "--out", tmp_path / "jumps.json")
    jumps = made(tmp_path / "jumps.json")["jumps"]
    places = {(round(jump["from_samples"], -3), round(jump["to_samples"], -3)): jump for jump in jumps}
    early, late = places[120_000, 128_000], places[232_000, 240_000]
    assert {"135M-scaling", "360M-scaling", "135M-C4-F"} <= {row["run"] for row in early["runs"]}
    assert {"360M-scaling", "135M-C4-F"} == {row["run"] for row in late["runs"]}
    assert all(row["percent"] < -1 for row in [*early["runs"], *late["runs"]])


# --- the page about them ---


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    page = (ROOT / "docs/compare.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    (table,) = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)
    (tmp_path / "points.csv").write_text(table)
    names = {"baseline": 1.36, "A1": 1.35, "A6": 1.37, "A7": 1.375}
    (tmp_path / "results/tables").mkdir(parents=True)
    frames = [curve(name, ending(loss)) for name, loss in names.items()]
    save(tmp_path / "all_eval_points.csv", *frames)
    columns = {"run_id": "run", "samples_seen": "samples"}  # as the workflow collects them
    save(tmp_path / "results/tables/validation_curves.csv", *[frame.rename(columns=columns) for frame in frames])
    lines = [
        line.split("  #")[0]
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(lines) >= 8
    for line in lines:
        run(*shlex.split(line)[1:])
    for out in ("gap.json", "factorial.json", "rank.csv", "jumps.json", "mine/factorial.csv", "figures/factorial.png"):
        assert (tmp_path / out).exists(), out


# --- mistakes, and what a command costs ---

POINTS, CURVES = points(), pd.concat(jumping(), ignore_index=True)
MISTAKES = {
    "a column of --columns": ("gap", POINTS, ["--columns", "L=loss"], "no column 'loss'"),
    "no run": ("rank", CURVES.drop(columns="run_id"), ["--baseline", "x"], "no column 'run' or 'run_id'"),
    "no resamples": ("gap", POINTS, ["--bootstrap", "0"], "expected some thousand"),
    "an unknown name": ("gap", POINTS, ["--columns", "loss=L"], "no column is called 'loss'"),
    "two losses": ("gap", pd.concat([POINTS, POINTS[:1].assign(L=4)]), [], "2 runs of foveated have pair p0"),
    "three architectures": ("gap", pd.concat([POINTS, POINTS[:1].assign(architecture="x")]), [], "say which two"),
    "no such architecture": ("gap", POINTS, ["--foveated", "fov"], "--foveated fov: no such architecture"),
    "one architecture": ("gap", POINTS[POINTS["architecture"] == "pooled"], [], "say which two"),
    "no pair": ("gap", POINTS.assign(pair=range(6)), [], "no pair has runs of both"),
    "nothing kept": ("gap", POINTS, ["--keep", "pair=none"], "no row is left"),
    "a broken --keep": ("gap", POINTS, ["--keep", "pair"], "expected COLUMN=VALUE"),
    "no cells": ("factorial", CURVES, ["--cells", "deep_fine=run0"], "expected a run for each"),
    "no such run": ("factorial", CURVES, ["--cells", CELLS], "no such run"),
    "no such baseline": ("rank", CURVES, ["--baseline", "x"], "--baseline x: no such run"),
    "two at one step": ("rank", pd.concat([CURVES, CURVES[:1].assign(val_loss=9)]), ["--baseline", "run0"], "step 200"),
    "a wrong tolerance": ("check-curves", CURVES, ["--tolerance", "-1"], "zero or more"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, capsys, name):
    command, frame, options, expected = MISTAKES[name]
    path, out = tmp_path / "in.csv", tmp_path / "made" / "out"
    frame.to_csv(path, index=False)
    assert main([command, str(path), "--out", str(out), *options]) == 2
    said = capsys.readouterr()
    assert expected in said.err and len(said.err.strip().splitlines()) == 1 and said.out == ""
    assert not out.parent.exists()


def test_rows_that_are_not_kept_are_not_looked_at(tmp_path, capsys):
    other = POINTS.assign(pair="x", note="old").astype({"L": object}).assign(L="")
    path = save(tmp_path / "in.csv", POINTS.assign(note=7), other, other)
    assert main(["gap", path]) == 2
    assert "row 8: L is empty" in capsys.readouterr().err
    assert main(["gap", path, "--keep", "note=7.0"]) == 0
    assert main(["gap", path, "--keep", "note=new"]) == 2
    assert "no row is left whose note is new" in capsys.readouterr().err


BROKEN = {
    "a run is missing": (lambda rows: rows[rows["N"] > 1.1e8], "no samples of foveated"),
    "other samples": (lambda rows: rows[~((rows["N"] > 1e9) & (rows["key"] == "k3"))], "sample k3 is not there"),
    "twice": (lambda rows: pd.concat([rows, rows[:1].assign(tokens=1)]), "sample k0 twice"),
    "one sample": (lambda rows: rows[rows["key"] == "k0"], "no spread"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_samples_that_cannot_be_paired_are_refused(tmp_path, capsys, name):
    change, expected = BROKEN[name]
    frame = points()
    path = save(tmp_path / "points.csv", frame)
    samples = save(tmp_path / "samples.csv", change(samples_of(frame, n=20)))
    assert main(["gap", path, "--samples", samples, "--out", str(tmp_path / "gap.json")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "gap.json").exists()
