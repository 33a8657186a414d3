"""`fvlm gap` on files of a user's own."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from tests.compare_cases import SIZES, made, points, run, samples_of, save
from tests.test_analysis_fits import REFERENCE

NAMED = ["--columns", "architecture=arch,N=params_M,L=loss_train,group=frames,pair=config"]
reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data (FVLM_TEST_REFERENCE)")


def gaps(folder, *frames):
    """What the command writes of points."""
    run("gap", save(folder / "points.csv", *frames), "--out", folder / "gap.json")
    return made(folder / "gap.json")


def test_parallel_curves_have_one_gap_in_both_directions(tmp_path, capsys):
    path, out = save(tmp_path / "points.csv", points()), tmp_path / "gap.json"
    run("gap", path, "--out", out)
    found = made(out)
    assert (found["foveated"], found["baseline"], found["n"]) == ("foveated", "pooled", 6)
    (group,) = found["groups"]
    for pair in group["pairs"]:
        assert pair["at_foveated"]["percent"] == pytest.approx(2) == pair["at_baseline"]["percent"]
        assert pair["raw"]["percent"] > 2 and pair["raw"]["low"] is None and pair["interval"] == "none"
    assert [pair["at_foveated"]["extrapolates"] for pair in group["pairs"]] == [True, False, False]
    assert [pair["at_baseline"]["extrapolates"] for pair in group["pairs"]] == [False, False, True]
    said = capsys.readouterr().out
    assert "baseline's curve below its smallest" in said and "foveated curve above its largest" in said
    assert "two points per curve" not in said


def test_linear_curves_are_read_off_linearly_on_request(tmp_path):
    path = save(tmp_path / "points.csv", points(law=lambda n: 4 - 1e-9 * n))
    for options, expected in (([], False), (["--linear"], True)):
        run("gap", path, "--out", tmp_path / "gap.json", *options)
        pair = made(tmp_path / "gap.json")["groups"][0]["pairs"][1]
        assert (pair["at_foveated"]["percent"] == pytest.approx(2, abs=1e-9)) is expected


def test_a_curve_is_read_off_on_its_own_segment(tmp_path):
    """A baseline that bends: at each N of the foveated model, the loss by hand."""
    sizes = ((2e8, 1e8), (4e8, 2.5e8), (8e8, 1e9), (1.6e9, 3e9))
    frame = points(sizes=sizes)
    losses = {1e8: 4.0, 2.5e8: 3.0, 1e9: 2.8, 3e9: 2.7}
    frame.loc[frame["architecture"] == "pooled", "L"] = list(losses.values())
    pairs = gaps(tmp_path, frame)["groups"][0]["pairs"]
    for pair in pairs:
        n, loss = pair["N"]["foveated"], pair["L"]["foveated"]
        there = np.interp(np.log(n), np.log(list(losses)), list(losses.values()))
        assert pair["at_foveated"]["percent"] == pytest.approx(100 * (loss / there - 1))
        assert pair["at_foveated"]["extrapolates"] is False


def test_a_size_without_partner_still_shapes_its_curve(tmp_path):
    """The baseline's extra size makes the smallest pair an interpolation."""
    more = pd.DataFrame([{"architecture": "pooled", "N": 5e7, "L": 5 - 0.15 * np.log(5e7), "pair": "small"}])
    (group,) = gaps(tmp_path, points(), more)["groups"]
    assert [pair["pair"] for pair in group["pairs"]] == ["p0", "p1", "p2"]
    assert group["pairs"][0]["at_foveated"]["extrapolates"] is False and group["sizes"]["baseline"] == 4


def test_without_names_of_pairs_the_sizes_are_matched_by_rank(tmp_path):
    frame = points().drop(columns="pair").sample(frac=1, random_state=0)
    pairs = gaps(tmp_path, frame)["groups"][0]["pairs"]
    assert [(pair["N"]["foveated"], pair["N"]["baseline"]) for pair in pairs] == list(SIZES)


def test_one_size_has_a_raw_gap_alone(tmp_path, capsys):
    (pair,) = gaps(tmp_path, points(sizes=SIZES[:1]))["groups"][0]["pairs"]
    assert pair["raw"]["percent"] > 2 and pair["at_foveated"]["percent"] is None
    assert "no curve to correct with" in capsys.readouterr().out


def test_seeds_give_the_gaps_a_t_interval(tmp_path):
    frames = [points(above).assign(seed=seed) for seed, above in enumerate((1.01, 1.02, 1.04))]
    found = gaps(tmp_path, *frames)["groups"][0]["pairs"][1]["at_foveated"]
    sure = ttest_rel([1.0, 2.0, 4.0], [0.0, 0.0, 0.0]).confidence_interval()
    assert (found["percent"], found["low"], found["high"]) == pytest.approx((7 / 3, sure.low, sure.high))


def test_seeds_that_some_runs_lack_are_left_out(tmp_path, capsys):
    frames = [points(1.01).assign(seed=1), points(1.03).assign(seed=2), points(2.0)[:1].assign(seed=3)]
    found = gaps(tmp_path, *frames)["groups"][0]["pairs"][1]
    assert found["n_seeds"] == 2 and found["at_foveated"]["percent"] == pytest.approx(2)
    assert "seeds 3 are left out" in capsys.readouterr().out


def test_the_interval_over_samples_is_paired(tmp_path, capsys):
    frame = points()
    path, out = save(tmp_path / "points.csv", frame), tmp_path / "gap.json"
    table = samples_of(frame)
    run("gap", path, "--samples", save(tmp_path / "samples.csv", table.sample(frac=1, random_state=1)), "--out", out)
    pair = made(out)["groups"][0]["pairs"][1]
    raw = pair["raw"]
    assert raw["low"] < raw["percent"] < raw["high"] and pair["interval"] == "bootstrap over evaluation videos"
    one, two = (
        table[np.isclose(table["N"], n)].set_index("key") for n in SIZES[1]
    )  # delta method: what a sample adds to log(loss one) - log(loss two)
    influence = one["loss_sum"] / one["loss_sum"].sum() - two["loss_sum"] / two["loss_sum"].sum()
    error = 100 * (1 + raw["percent"] / 100) * np.sqrt((influence**2).sum())
    assert raw["high"] - raw["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    alone = 100 * 0.5 / np.sqrt(400) / frame["L"].mean()  # of one loss, in percent
    assert raw["high"] - raw["low"] < alone
    assert "warning" not in capsys.readouterr().out
    first = out.read_text()
    run("gap", path, "--samples", tmp_path / "samples.csv", "--out", out)
    assert out.read_text() == first


def shuffled(parts):
    return [part.sample(frac=1, random_state=place) for place, part in enumerate(parts)]


def test_videos_are_drawn_whole(tmp_path):
    """The same samples four times over know no more than once."""
    frame = points()
    once = samples_of(frame, n=100).assign(video=lambda rows: rows["key"])
    copies = [once.assign(key=once["key"] + f"-{copy}") for copy in range(4)]
    path, widths = save(tmp_path / "points.csv", frame), []
    for parts in ([once], copies, [part.drop(columns="video") for part in copies]):
        run("gap", path, "--samples", save(tmp_path / "samples.csv", *shuffled(parts)), "--out", tmp_path / "gap.json")
        raw = made(tmp_path / "gap.json")["groups"][0]["pairs"][0]["raw"]
        widths.append(raw["high"] - raw["low"])
    assert widths[1] == pytest.approx(widths[0], rel=0.1) and widths[2] == pytest.approx(widths[0] / 2, rel=0.15)


@pytest.mark.parametrize("by_run", [True, False])
def test_samples_name_their_run_or_its_group(tmp_path, by_run):
    """Two groups with the same N; one source's keys are another's too."""
    frames = [points(above).assign(frames=frames) for frames, above in ((8, 1.02), (64, 1.05))]
    every = pd.concat(frames, ignore_index=True)
    every["run"] = [f"r{place}" for place in range(len(every))]
    parts = []
    for place, row in enumerate(every.to_dict("records")):
        own = pd.concat([samples_of(pd.DataFrame([row]), n=30, seed=seed).assign(source=f"s{seed}") for seed in (0, 1)])
        named = {"run": f"r{place}"} if by_run else {"group": row["frames"]}
        parts.append((own.drop(columns=["architecture", "N"]) if by_run else own).assign(**named))
    table = every if by_run else every.drop(columns="run")
    path, samples = save(tmp_path / "points.csv", table), save(tmp_path / "samples.csv", *parts)
    run("gap", path, "--columns", "group=frames", "--samples", samples, "--out", tmp_path / "gap.json")
    groups = made(tmp_path / "gap.json")["groups"]
    for group, expected in zip(groups, (2, 5), strict=True):
        for pair in group["pairs"]:
            assert pair["at_baseline"]["percent"] == pytest.approx(expected, abs=1e-6)
            assert pair["at_baseline"]["low"] < expected < pair["at_baseline"]["high"]


def test_samples_that_disagree_with_their_loss_have_a_warning(tmp_path, capsys):
    frame = points()
    path = save(tmp_path / "points.csv", frame.assign(L=frame["L"] * 1.01))
    run("gap", path, "--samples", save(tmp_path / "samples.csv", samples_of(frame)), "--out", tmp_path / "gap.json")
    assert capsys.readouterr().out.count("its samples give") == 6
    pair = made(tmp_path / "gap.json")["groups"][0]["pairs"][0]
    assert pair["L"]["foveated"] == pytest.approx(frame["L"][0])


@reference
def test_the_published_gaps_are_linear_and_of_eight_frames(tmp_path):
    """2.44 and 1.60 %, published for 64 frames: the mean of both directions of the 8-frame losses, linear in N."""
    path, out = REFERENCE / "derived" / "comprehensive_scaling.csv", tmp_path / "gap.json"
    run("gap", path, *NAMED, "--keep", "config=S-S,M-S", "--linear", "--out", out)
    groups = {group["group"]: group for group in made(out)["groups"]}
    assert all("agree almost by construction" in group["note"] for group in groups.values())
    gaps = {frames: group["pairs"] for frames, group in groups.items()}
    means = [np.mean([pair[name]["percent"] for name in ("at_foveated", "at_baseline")]) for pair in gaps["8"]]
    assert means == pytest.approx([2.44, 1.60], abs=0.01)
    assert all(gap["at_foveated"]["percent"] > 2.5 for gap in gaps["64"])
