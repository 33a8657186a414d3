"""`fvlm plan`: every run before it starts - parameters, samples, tokens, FLOPs, memory, hours, cost - and the total.

The Snakefile prints it as it begins; `snakemake plan` also writes plan.txt and plan.csv.
"""

import csv
import io
from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Study
from fvlm.costs.amounts import amounts_of
from fvlm.costs.flops import parameters
from fvlm.costs.limits import check_data, check_memory, check_sources
from fvlm.costs.memory import GB, predicted_bytes
from fvlm.costs.speed import calibration_path, hours_of, peak_tflops, read_calibration, speed_of
from fvlm.data.sources import sample_count
from fvlm.files import write_beside

SHORT = (("", 1), (" k", 1e3), (" M", 1e6), (" G", 1e9), (" T", 1e12))
FORM = "{:<10}{:<{parent}}{:>14}{:>11}{:>9}{:>9}{:>9}{:>10}{:>7}{:>9}{:>9}{:>9}  {}"
WIDTHS = {"run": 16, "parent": 9}  # at least; of a longer name what it takes
HEAD = ("run", "family", "parent", "parameters", "samples", "steps", "visual", "text", "FLOPs", "GPU GB", "hours",
        "GPU h", "cost", "speed")  # fmt: skip


def plan_rows(study: Study) -> list[dict]:
    """One row per run; None where something is not known.

    visual_tokens, text_tokens   that the language model reads in training
    memory_gb                    predicted peak of each GPU
    hours, gpu_hours             of the wall clock, and that times the number of GPUs
    basis                        of the hours: "measured" by `fvlm calibrate`, or "assumed" from `gpu.utilisation`
    """
    calibration, rows = read_calibration(study.results), []
    for run in study.runs.values():
        amounts, speed = amounts_of(run, study), speed_of(run, study, calibration)
        gpus = run.operation.gpus * run.operation.nodes
        hours = hours_of(run, amounts, speed)
        gpu_hours = hours * gpus if hours is not None and gpus else None
        price = study.gpu.price_per_hour if study.gpu else None
        rows.append({
            "run": run.name, "family": run.family, "parent": run.parent or "", "N": parameters(run.model)["total"],
            "samples": amounts.samples, "steps": amounts.steps,
            "visual_tokens": round(amounts.visual_tokens), "text_tokens": round(amounts.text_tokens),
            "flops": amounts.flops, "validation_flops": amounts.validation_flops,
            "memory_gb": predicted_bytes(run) / GB if gpus else None, "gpus": gpus,
            "hours": hours, "gpu_hours": gpu_hours,
            "cost": None if gpu_hours is None or price is None else gpu_hours * price,
            "tflops": None if speed is None else speed.flops_per_s / 1e12, "basis": speed.basis if speed else "",
        })  # fmt: skip
    return rows


def plan_text(study: Study, rows: list[dict] | None = None) -> str:
    """The plan as aligned text: one line per run, then the totals."""
    rows = plan_rows(study) if rows is None else rows
    widths = {name: max([at_least, *(len(row[name]) + 2 for row in rows)]) for name, at_least in WIDTHS.items()}
    form = "{:<{run}}" + FORM
    lines = [form.format(*HEAD, **widths)]
    for row in rows:
        lines.append(form.format(
            row["run"], row["family"], row["parent"], f"{row['N']:,}", f"{row['samples']:,}", f"{row['steps']:,}",
            short(row["visual_tokens"]), short(row["text_tokens"]), f"{row['flops']:.3g}",
            number(row["memory_gb"], 1), hours(row["hours"]), hours(row["gpu_hours"]), number(row["cost"], 2),
            row["basis"] or "-", **widths,
        ).rstrip())  # fmt: skip
    return "\n".join([*lines, *totals(study, rows)])


def totals(study: Study, rows: list[dict]) -> list[str]:
    """What all runs take together, and what the hours rest on."""

    def total(key: str) -> float:
        return sum(row[key] or 0 for row in rows)

    corpus = sum(sample_count(study.sources[name], study.results) for name in study.used_sources)
    lines = [
        f"{len(rows)} runs, {total('samples'):,} samples, {short(total('visual_tokens'))} visual and "
        f"{short(total('text_tokens'))} text tokens, {total('flops'):.3g} training FLOPs (two per multiply-add); "
        f"{corpus:,} samples in {len(study.used_sources)} sources"
    ]
    timed = [row for row in rows if row["hours"] is not None]
    if timed:
        names, longest = _longest_chain(timed)
        without = f", without {len(rows) - len(timed)} runs of unknown speed" if len(timed) < len(rows) else ""
        said = f"trainings with their validations{without}: {hours(total('hours'))} h one after another, at least "
        said += f"{hours(longest)} h side by side ({' > '.join(names)})"
        if total("gpu_hours"):
            said += f"; {hours(total('gpu_hours'))} GPU hours on {study.gpu.name}"
        if total("cost"):
            said += f", {total('cost'):,.2f} {study.gpu.currency} at an assumed {study.gpu.price_per_hour:g} an hour "
            said += "(gpu.price_per_hour)"
        lines.append(said)
    return [*lines, *_basis(study, rows)]


def _longest_chain(rows: list[dict]) -> tuple[list[str], float]:
    """The runs that wait for each other longest, and their hours."""
    of = {row["run"]: row for row in rows}

    def chain(row: dict) -> list[dict]:
        return [*(chain(of[row["parent"]]) if row["parent"] in of else []), row]

    found = max((chain(row) for row in rows), key=lambda runs: sum(run["hours"] for run in runs))
    return [row["run"] for row in found], sum(row["hours"] for row in found)


def _basis(study: Study, rows: list[dict]) -> list[str]:
    """Where the hours come from, or what is missing for them."""
    bases = [row["basis"] for row in rows]
    lines = []
    if "measured" in bases:
        device = read_calibration(study.results)["device"]
        lines.append(
            f"speed of {bases.count('measured')} runs measured on {device} ({calibration_path(study.results)})"
        )
    if "assumed" in bases:
        lines.append(
            f"speed of {bases.count('assumed')} runs assumed: {study.gpu.utilisation:.0%} of {study.gpu.name}'s "
            f"{peak_tflops(study):g} TFLOP/s in bfloat16 (gpu.utilisation); `fvlm calibrate` measures it there"
        )
    if "" in bases:
        lines.append(
            f"speed of {bases.count('')} runs not known: measure it with `fvlm calibrate`"
            + ("" if study.gpu is None else ", or give gpu.utilisation and, of a GPU that is not known, gpu.tflops")
        )
    return lines


def short(value: float) -> str:
    """Three digits and a unit: 41.2 M."""
    unit, size = next((pair for pair in reversed(SHORT) if value >= pair[1]), SHORT[0])
    return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:,.0f}{unit}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def hours(value: float | None) -> str:
    """More digits for less: a demo's run takes seconds."""
    return number(value, 1 if value is None or value >= 10 else 2 if value >= 0.1 else 4)


def plan_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def add_arguments(parser) -> None:
    parser.add_argument("--out", type=Path, help="folder for plan.txt and plan.csv; without it they are not written")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    check_sources(study)
    rows = plan_rows(study)
    text = plan_text(study, rows)
    print(text)
    if args.out is not None:
        write_beside(args.out / "plan.csv", lambda beside: beside.write_text(plan_csv(rows)))
        write_beside(args.out / "plan.txt", lambda beside: beside.write_text(text + "\n"))
    check_data(study)
    check_memory(study)
    return 0
