"""The gap between two architectures, raw and at equal parameters, from a user's points: `fvlm gap POINTS.csv`."""

import numpy as np
import pandas as pd

from fvlm.analysis.commands import check_out, natural, resamples, write_result
from fvlm.analysis.commands.inputs import add_columns, assignments, plain, read
from fvlm.analysis.compare.gap import gaps_of, linear
from fvlm.analysis.compare.reported import gaps_by_way, held_against, reported_of
from fvlm.errors import UserError

TWO = (
    "two points per curve: each curve is one straight line, so that the two directions agree almost by construction "
    "and do not check each other"
)
TOLERANCE = 1e-3  # by which a loss of the samples may differ from L before that is said; relative
DIRECTIONS = {
    "raw": "raw",
    "at_foveated": "at the foveated model's N",
    "at_baseline": "at the baseline's N",
}


def add_arguments(parser) -> None:
    parser.add_argument("points", help="CSV: architecture, N, L; optional group, pair, seed, run")
    parser.add_argument("--out", metavar="FILE", help="the JSON to write")
    parser.add_argument("--linear", action="store_true", help="read the curves off linearly in N, not in log N")
    parser.add_argument("--foveated", metavar="NAME", help="the architecture in question, as the file calls it")
    parser.add_argument("--baseline", metavar="NAME", help="the one it is compared with, as the file calls it")
    parser.add_argument(
        "--samples",
        metavar="SAMPLES.csv",
        help="losses by sample: run, or architecture and N (and group); key, loss_sum, tokens; optional video",
    )
    parser.add_argument(
        "--reported", default="", metavar="GROUP:PAIR=PERCENT,...", help="gaps to be held against those of the losses"
    )
    parser.add_argument("--bootstrap", type=resamples, default=2000, help="resamples of the samples")
    parser.add_argument("--seed", type=natural, default=0, help="of the resampling")
    add_columns(parser, "architecture=arch,N=params_M,L=loss,group=frames")


def main(args) -> None:
    if not args.bootstrap:
        raise UserError("--bootstrap 0: an interval takes resamples; expected some thousand, or no --samples")
    points = read(
        args.points, args.columns, args.keep, ("architecture", "N", "L"), ("group", "pair", "seed", "run"), ("N", "L")
    )
    names = architectures(args.points, points, args.foveated, args.baseline)
    points = points[points["architecture"].isin(names)]
    samples = read_samples(args.samples, points) if args.samples else None
    reported = reported_of(assignments(args.reported, "--reported"), "--reported")
    groups, said, ways = [], [], {}
    parts = points.groupby("group", sort=False) if "group" in points else [("", points)]
    for group, own in parts:
        side = Group(args.points, group, own, names)
        said += side.left_out() + side.rising()
        draws = None
        if samples is not None:
            draws, told = side.resample(args.samples, samples, args.bootstrap, args.seed)
            said += told
        groups.append({"group": group, **side.gaps(draws, linear if args.linear else np.log)})
        for name, scale in (("log N", np.log), ("N", linear)):
            ways |= gaps_by_way([{"group": group, **side.gaps(None, scale)}], name) if reported else {}
    content = {
        "n": len(points),
        "method": "each architecture's own curve of loss against parameters, piecewise linear in "
        f"{'N' if args.linear else 'log N'} and prolonged beyond its ends, read off at the other's N; percent of the "
        "baseline's loss, positive: the foveated model is worse",
        "foveated": names[0],
        "baseline": names[1],
        "scale": "N" if args.linear else "log N",
        "groups": groups,
        "reported": held_against(reported, ways),
        "warnings": said,
    }
    if args.out:
        check_out(args.out, args.samples or args.points)
        write_result(args.points, args.out, plain(content))
    print("\n".join(summary(content)))


def architectures(path: str, points: pd.DataFrame, foveated: str | None, baseline: str | None) -> tuple[str, str]:
    """The two names; guessed where there are just two and one begins with fov."""
    found = list(points["architecture"].drop_duplicates())
    for option, name in (("--foveated", foveated), ("--baseline", baseline)):
        if name and name not in found:
            raise UserError(f"{option} {name}: no such architecture in {path}; found {', '.join(found)}")
    guesses = [name for name in found if name.lower().startswith("fov")]
    foveated = foveated or (guesses[0] if len(guesses) == 1 and guesses[0] != baseline else None)
    others = [name for name in found if name not in (foveated, baseline)]
    if baseline and not foveated and len(others) == 1:
        foveated = others[0]
    if foveated and not baseline and len(others) == 1:
        baseline = others[0]
    if not foveated or not baseline or foveated == baseline:
        raise UserError(
            f"{path}: found the architectures {', '.join(found)}; say which two are compared: "
            "--foveated NAME --baseline NAME"
        )
    return foveated, baseline


class Group:
    """The runs that are compared with each other: two curves, and which of their points are pairs."""

    def __init__(self, path: str, name: str, points: pd.DataFrame, names: tuple[str, str]):
        self.where, self.name, self.names = f"{path}{f', group {name}' * bool(name)}", name, names
        self.sides = [self._side(points[points["architecture"] == name], name) for name in names]
        seeds = [set.intersection(*(set(own) for own in side["losses"])) for side in self.sides]
        self.seeds = sorted(seeds[0] & seeds[1])
        if not self.seeds:
            raise UserError(f"{self.where}: no seed is common to all runs; expected the same seeds, or no column seed")
        self.n = [side["N"].to_numpy(float) for side in self.sides]
        losses = [own for side in self.sides for own in side["losses"]]
        self.losses = np.array([[own[seed] for seed in self.seeds] for own in losses])
        self.pairs = self._pairs(paired="pair" in points)

    def left_out(self) -> list[str]:
        """The seeds that not every run has, in words."""
        other = {seed for side in self.sides for own in side["losses"] for seed in own} - set(self.seeds)
        if not other:
            return []
        return [f"{self.where}: seeds {', '.join(f'{seed:g}' for seed in sorted(other))} are not those of every run"]

    def rising(self) -> list[str]:
        """Curves that rise with N, in words."""
        cut = len(self.n[0])
        curves = zip(self.names, (self.losses[:cut], self.losses[cut:]), strict=True)
        return [
            f"{self.where}: the loss of {name} rises with N from one size to the next; beyond the best size for its "
            "compute a curve does not say what parameters are worth"
            for name, losses in curves
            if (np.diff(losses.mean(axis=1)) > 0).any()
        ]

    def _side(self, points: pd.DataFrame, name: str) -> pd.DataFrame:
        """One row per size, ascending in N: pair, N, losses {seed: loss}, run."""
        if points.empty:
            raise UserError(f"{self.where}: no run of architecture {name}; expected runs of both")
        by = "pair" if "pair" in points else "N"
        rows = []
        for key, own in points.groupby(by, sort=False):
            seeds = own["seed"] if "seed" in own else pd.Series(0.0, index=own.index)
            if seeds.duplicated().any():
                raise UserError(
                    f"{self.where}: {len(own)} runs of {name} have {by} {key}; expected one for each seed: give the "
                    "columns seed, pair or group, or choose rows with --keep"
                )
            losses = dict(zip(seeds, own["L"], strict=True))
            run = own["run"].iloc[0] if "run" in own else ""
            rows.append({"pair": str(key), "N": own["N"].mean(), "losses": losses, "run": run})
        side = pd.DataFrame(rows).sort_values("N", ignore_index=True)
        if side["N"].duplicated().any():
            raise UserError(f"{self.where}: two sizes of {name} have the same N; a curve needs one loss at each N")
        return side

    def _pairs(self, paired: bool) -> list[tuple[str, tuple[int, int]]]:
        """Name of a pair, and the places of its two runs in their curves."""
        left, right = (list(side["pair"]) for side in self.sides)
        if paired:
            common = [name for name in left if name in right]
            if common:
                return [(name, (left.index(name), right.index(name))) for name in common]
            raise UserError(f"{self.where}: no pair has runs of both architectures; found {', '.join(left + right)}")
        if len(left) != len(right):
            raise UserError(
                f"{self.where}: {len(left)} runs of {self.names[0]} and {len(right)} of {self.names[1]}; "
                "say in a column pair which belong together"
            )
        return [(f"{place + 1}", (place, place)) for place in range(len(left))]

    def resample(self, path: str, samples: pd.DataFrame, draws: int, seed: int) -> tuple[np.ndarray, list[str]]:
        """Bootstrap replicates (runs, draws) of the losses, drawn alike for all runs; what is to be said of them.

        The losses become those of the samples, so that an interval belongs to its value.
        """
        if len(self.seeds) > 1:
            raise UserError(f"{self.where}: with several seeds the interval is over seeds; leave --samples out")
        rows = pd.concat(self.sides, ignore_index=True)
        rows["architecture"] = np.repeat(self.names, [len(side) for side in self.sides])
        tables = [self._of(path, samples, row) for row in rows.to_dict("records")]
        keys = tables[0].index
        for table, name in zip(tables[1:], rows["architecture"][1:], strict=True):
            other = keys.symmetric_difference(table.index)
            if len(other):
                raise UserError(
                    f"{path}: sample {other[0]} is not there for every run ({name} has other samples); expected the "
                    "same samples for all runs, for the bootstrap is paired"
                )
        videos = tables[0].get("video", keys)
        names, place = np.unique(np.asarray(videos, str), return_inverse=True)
        if len(names) < 2:
            raise UserError(f"{path}: one sample or video alone has no spread; expected two or more")
        counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        weights = counts[:, place].T
        loss, tokens = (
            np.array([table.loc[keys, name].to_numpy(float) for table in tables]) for name in ("loss_sum", "tokens")
        )
        found = loss.sum(axis=1) / tokens.sum(axis=1)
        if not found.all():
            empty = rows["architecture"][int(np.argmin(found))]
            raise UserError(f"{path}: the losses of {empty} add up to zero; expected a positive sum: check loss_sum")
        away = np.abs(found / self.losses[:, 0] - 1)
        told = [
            f"{self.where}: L of {row['architecture']} at N {row['N']:.10g} is {old:.5g}, its samples give {new:.5g}; "
            "the gaps are those of the samples"
            for row, old, new, far in zip(rows.to_dict("records"), self.losses[:, 0], found, away, strict=True)
            if far > TOLERANCE
        ]
        self.losses = found[:, None]
        return (loss @ weights) / (tokens @ weights), told

    def _of(self, path: str, samples: pd.DataFrame, row: dict) -> pd.DataFrame:
        """The samples of one run, by key."""
        own, what = samples, f"run {row['run']}"
        if "run" in samples:
            own = own[own["run"] == row["run"]]
        else:
            what = f"{row['architecture']} with N {row['N']:.10g}"
            own = own[(own["architecture"] == row["architecture"]) & np.isclose(own["N"], row["N"], rtol=1e-9)]
            if "group" in own:
                own = own[own["group"] == self.name]
        if own.empty:
            raise UserError(f"{path}: no samples of {what}; expected those of every run of {self.where}")
        if own["key"].duplicated().any():
            key = own.loc[own["key"].duplicated(), "key"].iloc[0]
            raise UserError(f"{path}: {what} has sample {key} twice; keep one evaluation mode (and group) per run")
        return own.set_index("key")

    def gaps(self, draws: np.ndarray | None, scale) -> dict:
        sizes, cut = [len(side) for side in self.sides], len(self.n[0])
        found = []
        for name, (left, right) in self.pairs:
            gap = gaps_of(self.n, self.losses, draws, (left, right), scale)
            row = {
                "pair": name,
                "N": {"foveated": self.n[0][left], "baseline": self.n[1][right]},
                "L": {"foveated": self.losses[left].mean(), "baseline": self.losses[cut + right].mean()},
            }
            for direction in DIRECTIONS:
                numbers = {key: gap.get(f"{direction}_{key}") for key in ("percent", "low", "high")}
                row[direction] = numbers | (
                    {} if direction == "raw" else {"extrapolates": gap.get(f"{direction}_extrapolates")}
                )
            found.append(row | {key: gap.get(key) for key in ("directions_differ", "interval", "n_seeds", "note")})
        return {
            "sizes": {"foveated": sizes[0], "baseline": sizes[1]},
            "note": TWO if max(sizes) == 2 == min(sizes) else "",
            "pairs": found,
        }


def read_samples(path: str, points: pd.DataFrame) -> pd.DataFrame:
    """Losses by sample; they name their run, or its architecture and N (and group)."""
    by_run = "run" in points
    needed = ("run",) if by_run else ("architecture", "N")
    optional = ("source", "video") if by_run else ("group", "source", "video")
    samples = read(path, "", [], (*needed, "key", "loss_sum", "tokens"), optional, positive=("tokens",))
    if "source" in samples:
        samples["key"] = samples["source"] + "/" + samples["key"]
    return samples


def summary(content: dict) -> list[str]:
    lines = [f"{content['foveated']} above {content['baseline']}, percent; curves read off in {content['scale']}"]
    for group in content["groups"]:
        lines += [f"group {group['group']}"] if group["group"] else []
        for pair in group["pairs"]:
            parts = [f"{text} {_percent(pair[name])}" for name, text in DIRECTIONS.items() if _known(pair[name])]
            lines.append(f"  pair {pair['pair']}: {'; '.join(parts)}")
            lines += [f"    {pair['note']}"] if pair["note"] else []
        lines += [f"  {group['note']}"] if group["note"] else []
    kinds = {pair["interval"] for group in content["groups"] for pair in group["pairs"]}
    lines.append(f"intervals: {', '.join(sorted(kinds))}")
    lines += [one["text"] for one in content["reported"]]
    return lines + [f"warning: {text}" for text in content["warnings"]]


def _known(gap: dict) -> bool:
    return gap["percent"] is not None and bool(np.isfinite(gap["percent"]))


def _percent(gap: dict) -> str:
    sure = f" ({gap['low']:.2f} to {gap['high']:.2f})" if np.isfinite(gap["low"]) else ""
    return f"{gap['percent']:+.2f}{sure}{' (extrapolated)' * bool(gap.get('extrapolates'))}"
