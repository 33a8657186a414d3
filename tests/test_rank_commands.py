"""`fvlm factorial` and `fvlm rank` on files of a user's own."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind, ttest_rel

from fvlm.analysis.compare.factorial import welch
from fvlm.analysis.fits.curves import ends
from tests.compare_cases import curve, ending, made, run, save

CELLS = "deep_fine=baseline,shallow_fine=A1,deep_coarse=A6,shallow_coarse=A7"


# --- factorial ---


def cells_of(seeds, noise=0.002, named=True):
    rng = np.random.default_rng(3)
    level = {"baseline": 1.36, "A1": 1.35, "A6": 1.37, "A7": 1.375}
    frames = []
    for name, loss in level.items():
        for seed in range(seeds):
            own = loss + noise * rng.normal()
            suffix = f"-s{seed}" if named and seed else ""
            frames.append(curve(name + suffix, ending(own), **({} if named else {"seed": seed})))
    return frames


def effects_of(folder, *frames):
    """What the command writes of curves."""
    run("factorial", save(folder / "curves.csv", *frames), "--cells", CELLS, "--out", folder / "f.json")
    return made(folder / "f.json")


@pytest.mark.parametrize("named", [True, False])
def test_effects_over_seeds_by_hand(tmp_path, named):
    frames = cells_of(3, named=named)
    found = effects_of(tmp_path, *frames)
    final = np.array([frame["val_loss"].iloc[-1] for frame in frames]).reshape(4, 3)
    depth = (final[0] - final[1] + final[2] - final[3]) / 2
    sure = ttest_rel(depth, np.zeros(3)).confidence_interval()
    row = found["evaluations"]["final"]["effects"][0]
    assert row["effect"].startswith("query depth") and row["n_seeds"] == 3
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx((depth.mean(), sure.low, sure.high))
    best = np.array([frame["val_loss"].min() for frame in frames]).reshape(4, 3)
    interaction = best[0] - best[1] - best[2] + best[3]
    assert found["evaluations"]["best"]["effects"][2]["estimate"] == pytest.approx(interaction.mean())
    assert found["warnings"] == [] and "Student" in found["method"]


def test_one_seed_has_effects_without_interval(tmp_path, capsys):
    path = save(tmp_path / "curves.csv", *cells_of(1))
    run("factorial", path, "--cells", CELLS, "--out", tmp_path / "f.json")
    rows = made(tmp_path / "f.json")["evaluations"]["final"]["effects"]
    assert all(row["low"] is None and row["interval"] == "none" for row in rows)
    assert "one seed in at least one cell: no interval" in capsys.readouterr().out


def test_welch_is_that_of_scipy():
    one, two = np.array([1.0, 1.4, 1.1]), np.array([0.7, 0.9, 0.4, 0.8])
    sure = ttest_ind(one, two, equal_var=False).confidence_interval()
    found = welch([one, two], (1.0, -1.0))
    assert (found.value, found.low, found.high) == pytest.approx((one.mean() - two.mean(), sure.low, sure.high))


def test_other_seeds_in_each_cell_are_not_paired(tmp_path):
    frames = [
        curve(name, ending(loss + 0.001 * seed), seed=10 * place + seed)
        for place, (name, loss) in enumerate((("baseline", 1.36), ("A1", 1.35), ("A6", 1.37), ("A7", 1.375)))
        for seed in range(2)
    ]
    found = effects_of(tmp_path, *frames)
    row = found["evaluations"]["final"]["effects"][1]
    assert "Welch" in found["method"] and row["low"] < row["estimate"] < row["high"]
    assert row["estimate"] == pytest.approx((1.36 + 1.35 - 1.37 - 1.375) / 2)


def test_cells_with_other_amounts_of_data_have_a_warning(tmp_path, capsys):
    frames = cells_of(1)
    frames[0] = frames[0].iloc[:15]
    run("factorial", save(tmp_path / "curves.csv", *frames), "--cells", CELLS)
    said = capsys.readouterr().out
    assert "last steps differ: 3000 to 4000" in said and "samples seen at the end differ" in said


# --- rank ---


def seeded(levels, spread=0.001, seeds=3):
    rng = np.random.default_rng(0)
    return [
        curve(name, ending(loss + spread * rng.normal()), seed=seed)
        for name, loss in levels.items()
        for seed in range(seeds)
    ]


def test_runs_without_significant_difference_share_a_group(tmp_path, capsys):
    levels = {"baseline": 1.40, "same": 1.4003, "good": 1.30, "as_good": 1.3004, "bad": 1.5}
    path, out = save(tmp_path / "curves.csv", *seeded(levels)), tmp_path / "rank.csv"
    run("rank", path, "--baseline", "baseline", "--out", out)
    table = pd.read_csv(out).set_index("run")
    assert table["group"].to_dict() == {"good": 1, "as_good": 1, "baseline": 2, "same": 2, "bad": 3}
    assert table["final_loss"].is_monotonic_increasing and (table["n_seeds"] == 3).all()
    row = table.loc["good"]
    assert row["final_low"] < row["final_difference"] < row["final_high"] < 0
    assert row["interval"] == "t over seeds" and np.isnan(table.loc["baseline", "final_low"])
    assert "one group: no significant difference" in capsys.readouterr().out


def test_one_seed_claims_no_groups(tmp_path, capsys):
    path = save(tmp_path / "curves.csv", *seeded({"baseline": 1.4, "other": 1.3}, seeds=1))
    run("rank", path, "--baseline", "baseline", "--out", tmp_path / "rank.csv")
    assert pd.read_csv(tmp_path / "rank.csv")["group"].isna().all()
    assert "no order is claimed and no ties are grouped" in capsys.readouterr().out


def test_an_early_best_and_other_data_have_a_warning(tmp_path, capsys):
    frames = [
        curve("baseline", ending(1.4), lr_schedule="cosine"),
        curve("early", ending(1.5, best=1.2, at=1), lr_schedule="cosine"),
        curve("short", ending(1.45, n=12, at=11), lr_schedule="constant"),
    ]
    path, out = save(tmp_path / "curves.csv", *frames), tmp_path / "rank.csv"
    run("rank", path, "--baseline", "baseline", "--out", out)
    table = pd.read_csv(out, keep_default_na=False).set_index("run")
    assert table.index.tolist() == ["baseline", "short", "early"] and table.loc["early", "best_rank"] == 1
    assert "best at evaluation 1 of 20, step 200 of 4000; 25.0 % worse" in table.loc["early", "warning"]
    short = table.loc["short", "warning"]
    assert "saw 76800 samples, the baseline 128000" in short and "schedule: constant" in short
    assert table.loc["baseline", "warning"] == ""
    capsys.readouterr()
    run("rank", path, "--baseline", "baseline", "--by", "best")
    assert capsys.readouterr().out.splitlines()[2].split()[1] == "early"


@pytest.mark.parametrize(
    ("evaluations", "at", "early"), [(60, 6, True), (60, 7, False), (20, 3, True), (20, 4, False), (5, 3, False)]
)
def test_early_is_a_tenth_or_three_of_the_evaluations_and_the_first_half(evaluations, at, early):
    loss = np.full(evaluations, 1.5)
    loss[at - 1] = 1.2
    curves = pd.DataFrame({"run": "r", "seed": 1.0, "step": np.arange(evaluations), "val_loss": loss})
    assert ends(curves)["best_is_early"].tolist() == [early]


def test_a_short_curve_that_falls_has_no_early_best(tmp_path, capsys):
    frames = [curve("baseline", [3.0, 2.0, 1.5, 1.4]), curve("late", [3.0, 2.0, 1.4, 1.5])]
    run("rank", save(tmp_path / "curves.csv", *frames), "--baseline", "baseline")
    assert "warning" not in capsys.readouterr().out


def ragged(names, rng):
    """Runs with one to four of five seeds, so that not every pair has a seed in common; r3 has three."""
    frames = []
    for place in range(names):
        level = 1.4 + 0.05 * rng.normal()
        for seed in range(3) if place == 3 else rng.choice(5, size=rng.integers(1, 5), replace=False):
            n = int(rng.integers(1, 25))
            loss = level + 0.01 * rng.normal() + rng.choice([0.5, -0.2]) * np.exp(-np.arange(n) / 3)
            frames.append(curve(f"r{place}", loss, seed=int(seed), lr_schedule=str(rng.choice(["cosine", "constant"]))))
    return frames


@pytest.mark.parametrize("draw", range(3))
def test_ragged_seeds_give_what_scipy_gives_run_by_run(tmp_path, draw):
    frames = ragged(30, np.random.default_rng(draw))
    path, out = save(tmp_path / "curves.csv", *frames), tmp_path / "rank.csv"
    run("rank", path, "--baseline", "r3", "--out", out)
    table = pd.read_csv(out, keep_default_na=False).set_index("run")
    whole = pd.concat(frames).groupby(["run_id", "seed"])["val_loss"]
    kinds = set()
    for measure, losses in (("best", whole.min()), ("final", whole.last())):
        for name, row in table.drop(index="r3").iterrows():
            own, base = losses[name], losses["r3"]
            common = own.index.intersection(base.index)
            kinds.add(min(len(common), 2))
            assert row[f"{measure}_loss"] == pytest.approx(own.mean(), abs=1e-5)
            if len(common) < 2:
                gap = (own - base)[common].mean() if len(common) else own.mean() - base.mean()
                assert float(row[f"{measure}_difference"]) == pytest.approx(gap, abs=1e-5)
                assert row[f"{measure}_low"] == "" and row["interval"] == "none"
                continue
            sure = ttest_rel(own[common], base[common]).confidence_interval()
            found = [float(row[f"{measure}_{end}"]) for end in ("low", "high")]
            assert found == pytest.approx([sure.low, sure.high], rel=1e-4, abs=1e-5)
    assert kinds == {0, 1, 2}  # seeds in common
