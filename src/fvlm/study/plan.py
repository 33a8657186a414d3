"""`fvlm plan`: parameters, samples, tokens, FLOPs, memory, hours and cost of every run before it starts, and totals.

The Snakefile prints the plan when it starts; `snakemake plan` also writes plan.txt and plan.csv.
"""

from pathlib import Path

from fvlm.config.resolve import add_study_arguments, study_of
from fvlm.config.schema import Study
from fvlm.costs.amounts import amounts_of
from fvlm.costs.flops import parameters
from fvlm.costs.limits import check_data, check_memory, check_sources, check_tokenizer
from fvlm.costs.memory import GB, cpu_bytes, predicted_bytes
from fvlm.costs.speed import THREAD_FLOPS, calibration_path, hours_of, peak_tflops, read_calibration, speed_of
from fvlm.data.sources import sample_count
from fvlm.files import write_beside
from fvlm.records import csv_of, write_csv

SHORT = (("", 1), (" k", 1e3), (" M", 1e6), (" G", 1e9), (" T", 1e12))
FORM = "{:<10}{:<{parent}}{:>14}{:>11}{:>9}{:>9}{:>9}{:>10}{:>7}{:>9}{:>9}{:>9}  {}"
WIDTHS = {"run": 16, "parent": 9}  # at least; wider for a longer name
HEAD = ("run", "family", "parent", "parameters", "samples", "steps", "visual", "text", "FLOPs", "GB", "hours",
        "GPU h", "cost", "speed")  # fmt: skip


def plan_rows(study: Study) -> list[dict]:
    """Return one row per run; None for unknown values.

    visual_tokens, text_tokens   read by the language model in training
    memory_gb                    predicted peak memory of each GPU, on CPUs of each process
    hours, gpu_hours             wall time, and wall time times the number of GPUs
    basis                        of the hours: "measured" by `fvlm calibrate`, or "assumed": from `gpu.utilisation`, on
                                 CPUs per thread
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
            "memory_gb": (predicted_bytes(run) if gpus else cpu_bytes(run)) / GB, "gpus": gpus,
            "hours": hours, "gpu_hours": gpu_hours,
            "cost": None if gpu_hours is None or price is None else gpu_hours * price,
            "tflops": None if speed is None else speed.flops_per_s / 1e12, "basis": speed.basis if speed else "",
        })  # fmt: skip
    return rows


def plan_text(study: Study, rows: list[dict] | None = None) -> str:
    """Return the plan as text: one line per run, then the totals."""
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
    """Return the totals of all runs, and where their hours come from."""

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
        line = f"training and validation{without}: {hours(total('hours'))} h one run at a time, at least "
        line += f"{hours(longest)} h in parallel ({' > '.join(names)})"
        if total("gpu_hours"):
            line += f"; {hours(total('gpu_hours'))} GPU hours on {study.gpu.name}"
        if total("cost"):
            line += f", {total('cost'):,.2f} {study.gpu.currency} at an assumed {study.gpu.price_per_hour:g} per hour "
            line += "(gpu.price_per_hour)"
        lines.append(line)
    return [*lines, *_basis(study, rows)]


def _longest_chain(rows: list[dict]) -> tuple[list[str], float]:
    """Return the chain of a run and its parents that takes longest, and its hours."""
    by_name = {row["run"]: row for row in rows}

    def chain(row: dict) -> list[dict]:
        return [*(chain(by_name[row["parent"]]) if row["parent"] in by_name else []), row]

    longest = max((chain(row) for row in rows), key=lambda runs: sum(run["hours"] for run in runs))
    return [row["run"] for row in longest], sum(row["hours"] for row in longest)


def _basis(study: Study, rows: list[dict]) -> list[str]:
    """Return where the speeds come from, and what to do for those that are missing."""
    bases = [row["basis"] for row in rows if row["gpus"] or row["basis"] != "assumed"]
    lines = []
    if "measured" in bases:
        device = read_calibration(study.results)["device"]
        lines.append(
            f"speed measured for {bases.count('measured')} runs, on {device} ({calibration_path(study.results)})"
        )
    if "assumed" in bases:
        lines.append(
            f"speed assumed for {bases.count('assumed')} runs: {study.gpu.utilisation:.0%} of {study.gpu.name}'s "
            f"{peak_tflops(study):g} TFLOP/s in bfloat16 (gpu.utilisation); `fvlm calibrate` on that GPU measures it"
        )
    if len(bases) < len(rows):
        exact, fast = (f"{THREAD_FLOPS[precision] / 1e9:g}" for precision in ("float32", "bfloat16"))
        lines.append(
            f"speed assumed for {len(rows) - len(bases)} runs on CPUs: {exact} GFLOP/s per thread in float32, {fast} "
            "in bfloat16 (operation.threads), right within a factor of two; `fvlm calibrate` measures it"
        )
    if "" in bases:
        lines.append(
            f"speed not known for {bases.count('')} runs: measure it with `fvlm calibrate`, or set gpu.utilisation, "
            "and gpu.tflops if the GPU is not known"
        )
    return lines


def short(value: float) -> str:
    """Return a value with three digits and a unit, such as 41.2 M."""
    unit, size = next((pair for pair in reversed(SHORT) if value >= pair[1]), SHORT[0])
    return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:,.0f}{unit}"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def hours(value: float | None) -> str:
    """Return hours as text, with more digits for small values: a run of the demo takes seconds."""
    return number(value, 1 if value is None or value >= 10 else 2 if value >= 0.1 else 4)


def plan_csv(rows: list[dict]) -> str:
    return csv_of(rows)


def add_arguments(parser) -> None:
    parser.add_argument("--out", type=Path, help="write plan.txt and plan.csv into this folder")
    add_study_arguments(parser)


def main(args) -> int:
    study = study_of(args)
    check_sources(study)
    rows = plan_rows(study)
    text = plan_text(study, rows)
    print(text)
    if args.out is not None:
        write_csv(args.out / "plan.csv", rows)
        write_beside(args.out / "plan.txt", lambda beside: beside.write_text(text + "\n"))
    check_data(study)
    check_memory(study)
    check_tokenizer(study)
    return 0
