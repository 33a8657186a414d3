"""Jumps that several runs share, and where a power law in D may be fitted: `fvlm check-curves CURVES.csv`."""

import numpy as np
import pandas as pd

from fvlm.analysis.commands import write_result
from fvlm.analysis.commands.inputs import add_columns, plain, read_curves
from fvlm.analysis.fits.curves import CONFIRM, SIDE, STRONG, Jump, Step, between, find_jumps
from fvlm.errors import UserError

METHOD = (
    f"line and step over {SIDE} evaluations on each side, log loss; a jump is a step of {STRONG:g} standard errors in "
    f"one run and of {CONFIRM:g} in another, in the same direction at the same number of samples"
)


def add_arguments(parser) -> None:
    parser.add_argument("curves", help="CSV: run_id, samples_seen, val_loss; optional lr_schedule, seed")
    parser.add_argument("--out", metavar="FILE", help="the JSON to write")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="SAMPLES",
        help="how far apart the jumps of two runs may be; default: half the distance between evaluations",
    )
    add_columns(parser, "run=name,samples=images_seen,val_loss=loss")


def main(args) -> None:
    table = read_curves(args.curves, args.columns, args.keep, ("samples",))
    table = table[table["samples"] > 0]  # before the first step nothing is learnt
    if args.tolerance is not None and not args.tolerance >= 0:
        raise UserError(f"--tolerance {args.tolerance:g}: expected a number of samples, zero or more")
    if table.empty:
        raise UserError(f"{args.curves}: no evaluation after the first sample; expected curves")
    names = names_of(table)
    parts = dict(list(table.groupby(names, sort=False)))
    curves = {run: (own["samples"].to_numpy(), own["val_loss"].to_numpy()) for run, own in parts.items()}
    jumps, alone = find_jumps(curves, args.tolerance)
    intervals = between(jumps, table["samples"].min(), table["samples"].max())
    content = {
        "n": len(table),
        "method": METHOD,
        "jumps": [_jump(jump, curves) for jump in jumps],
        "in_one_run_only": [_step(step) for step in alone],
        "intervals": [
            {
                "from_samples": low,
                "to_samples": high,
                "evaluations": {
                    run: int(((low <= samples) & (samples <= high)).sum()) for run, (samples, _) in curves.items()
                },
            }
            for low, high in intervals
        ],
        "not_judged": [run for run, (samples, _) in curves.items() if len(samples) < 2 * SIDE],
        "decaying_rate": [run for run, own in parts.items() if _decays(own)],
        "never_falls": [run for run, (_, loss) in curves.items() if len(loss) > 1 and loss[1:].min() > loss[0]],
    }
    if args.out:
        write_result(args.curves, args.out, plain(content))
    print("\n".join(summary(content, len(curves))))


def names_of(table: pd.DataFrame) -> pd.Series:
    """The run's name, with its seed where a run has several."""
    several = table.groupby("run")["seed"].transform("nunique") > 1
    seeds = table["seed"].map(lambda seed: "" if seed < 0 else f"-s{seed:g}")
    return table["run"].where(~several, table["run"] + seeds).rename("name")


def _decays(own: pd.DataFrame) -> bool:
    """Whether the run says that its learning rate is not constant."""
    return "lr_schedule" in own and not own["lr_schedule"].isin(("", "constant")).all()


def _step(step: Step) -> dict:
    return {
        "run": step.run,
        "from_samples": step.low,
        "to_samples": step.high,
        "percent": 100 * float(np.expm1(step.change)),
        "score": step.score,
    }


def _jump(jump: Jump, curves: dict) -> dict:
    covered = [run for run, (samples, _) in curves.items() if samples[0] <= jump.low and samples[-1] >= jump.high]
    shown = [step.run for step in jump.steps]
    return {
        "from_samples": jump.low,
        "to_samples": jump.high,
        "runs": [_step(step) for step in jump.steps],
        "not_seen_in": [run for run in covered if run not in shown],
    }


def summary(content: dict, runs: int) -> list[str]:
    lines = [f"{content['n']} evaluations of {runs} run{'s' * (runs != 1)}"]
    for jump in content["jumps"]:
        where = f"{_count(jump['from_samples'])} and {_count(jump['to_samples'])} samples"
        seen = ", ".join(f"{step['run']} {step['percent']:+.1f} %" for step in jump["runs"])
        lines.append(f"jump between {where} in {len(jump['runs'])} runs: {seen}")
        if jump["not_seen_in"]:
            lines.append(f"  not clear in {len(jump['not_seen_in'])} that go past it: other data, or lost in the noise")
    if not content["jumps"]:
        lines.append("no jump that two runs share")
    for step in content["in_one_run_only"]:
        where = f"{_count(step['from_samples'])} and {_count(step['to_samples'])}"
        lines.append(f"in {step['run']} alone, between {where}: {step['percent']:+.1f} %")
    found = [f"{_count(part['from_samples'])} to {_count(part['to_samples'])}" for part in content["intervals"]]
    if found:
        lines.append(f"a power law in D may be fitted within: {'; '.join(found)} samples")
    else:
        lines.append("one place alone has evaluations: no power law in D can be fitted")
    if content["decaying_rate"]:
        lines.append(
            f"but not along {len(content['decaying_rate'])} of the runs, whose learning rate decays (only their last "
            f"evaluation is comparable): {', '.join(content['decaying_rate'])}"
        )
    if content["never_falls"]:
        lines.append(
            f"the loss is lowest at the first evaluation and never again so low, where no power law in D can be "
            f"fitted: {', '.join(content['never_falls'])}"
        )
    if content["not_judged"]:
        lines.append(f"fewer than {2 * SIDE} evaluations, not judged: {', '.join(content['not_judged'])}")
    return lines


def _count(samples: float) -> str:
    return f"{samples / 1000:.4g} K" if samples >= 10_000 else f"{samples:.10g}"
