"""The parts of gpu_day.sh that are no commands of the package: missing packages, a study with its data, the table."""

import csv
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {  # module -> package; torch, transformers and what they bring are expected
    "pydantic": "pydantic", "pydantic_core": "pydantic_core", "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection", "av": "av", "simplejpeg": "simplejpeg", "ffmpeg": "ffmpeg-python",
    "future": "future", "imageio_ffmpeg": "imageio-ffmpeg", "webdataset": "webdataset", "braceexpand": "braceexpand",
    "PIL": "pillow", "psutil": "psutil", "scipy": "scipy", "pandas": "pandas", "matplotlib": "matplotlib",
    "seaborn": "seaborn", "jinja2": "jinja2", "yaml": "pyyaml",
}  # fmt: skip
SAMPLES = {"grid": 104, "grid_held_out": 16}
TINY_SAMPLES = {"grid": 32, "grid_held_out": 8}
SECONDS = 8  # of each generated video, one frame each
MODELS = {"135M": "SmolLM2-135M", "360M": "SmolLM2-360M"}


def packages(site: Path, lock: Path) -> None:
    """Install the packages that are missing into a folder, in the versions of requirements.lock."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    wanted = [f"{name}=={pins[name.lower().replace('_', '-')]}" for name in missing]
    print(f"missing: {' '.join(wanted) or 'none'}")
    if wanted:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
        subprocess.run([*pip, *wanted], check=True)


def data(work: Path, tiny: bool) -> None:
    """Write a study with random weights, its shards, indices and tokenizer; and a second one on the same data."""
    from fvlm.config.resolve import study_from_files
    from fvlm.data.shards.index import write_index
    from fvlm.data.shards.text import train_tokenizer

    study = _study_file(work, tiny)
    resolved = study_from_files([str(study)], {})
    results = Path(resolved.results)
    samples, texts = TINY_SAMPLES if tiny else SAMPLES, []
    for name, count in samples.items():
        texts += _write_shard(results / "shards" / name / "00000.tar", name, count)
    train_tokenizer(texts, 512, results / "tokenizer")
    for name in samples:
        source, tar = resolved.sources[name], results / "shards" / name / "00000.tar"
        index = results / "index" / f"{name}.npz"
        write_index([tar], index, name, source.kind, results / "tokenizer", source.prompt, results)
    again = _study_file(work / "again", tiny).parent / "results"
    again.mkdir()
    for name in ("shards", "index", "tokenizer"):
        (again / name).symlink_to(results / name)


def _study_file(folder: Path, tiny: bool) -> Path:
    import torch
    import yaml

    config = folder / "config"
    shutil.copytree(ROOT / "config", config)
    models = yaml.safe_load((config / "models.yaml").read_text())
    for sizes in models.values():
        for size in sizes.values():
            size.pop("weights", None)
    (config / "models.yaml").write_text(json.dumps(models))
    baseline = {
        "data.sources": ["grid"], "data.share": {"video": 1.0}, "data.max_frames": SECONDS,
        "optim.batch_size": 4 if tiny else 8, "optim.lr": {"connector": 1e-3, "dino": 1e-4, "llm": 1e-4},
        "train.samples": 24 if tiny else 96, "train.evaluations": 1, "train.validation_samples": 8,
        "train.precision": "bfloat16", "operation.checkpoint_steps": 100,
    }  # fmt: skip
    changes = {"gpu": None}
    if tiny:
        larger = "smoke-L"
    else:
        about = torch.cuda.get_device_properties(0)
        changes["gpu"] = {"name": about.name, "memory_gb": about.total_memory / 2**30, "utilisation": 0.25}
        larger = MODELS["360M"]
        baseline |= {
            "model.encoder": "dinov2-small", "model.language": MODELS["135M"], "model.query_dim": 384,
            "model.query_init_std": 1.0, "model.visual_scale": 0.14, "operation.gpus": 1, "operation.threads": 8,
            "operation.micro_frames": 128, "operation.micro_tokens": 4096, "operation.loader_workers": 4,
        }  # fmt: skip
    samples = TINY_SAMPLES if tiny else SAMPLES
    content = {
        "study": "gpu", "based_on": "smoke.yaml", "results": str(config / "results"), "prepare": [], **changes,
        "sources": {name: {"samples": count} for name, count in samples.items()}, "baseline": baseline,
        "ablations": {"larger": {"question": "How much memory does the next size take?", "model.language": larger}},
        "only": {"stages": [], "ablations": ["baseline", "larger"], "grid": []}, "seeds": {"baseline": None},
        "evaluation": {"samples": 16, "attention_videos": 2},
    }  # fmt: skip
    (config / "study.yaml").write_text(json.dumps(content))
    return config / "study.yaml"


def _write_shard(tar: Path, name: str, count: int) -> list[str]:
    """Write a shard of scenes of the demo as JPEG frames; return its texts. No video is encoded, so no program for it
    is needed."""
    import numpy as np
    from PIL import Image

    from fvlm.data.demo.scenes import background, draw, grid_scene
    from fvlm.data.shards.write import open_tar

    tar.parent.mkdir(parents=True, exist_ok=True)
    texts = []
    with tar.open("wb") as file, open_tar(file) as out:
        for number in range(count):
            random = np.random.default_rng([len(name), number])
            scene = grid_scene(random, SECONDS)
            texts.append(scene.rows[0]["caption"])
            text = {"user": "Which colours?", "assistant": texts[-1], "source": name, "frame_count": SECONDS}
            sample = {"__key__": f"{name}-{number:05d}", "json": json.dumps(text).encode()}
            for second, things in enumerate(scene.seconds):
                jpeg = io.BytesIO()
                Image.fromarray(draw(background(random, 224, 224), things)).save(jpeg, "JPEG", quality=92)
                sample[f"{second:03d}.jpg"] = jpeg.getvalue()
            out.write(sample)
    return texts


def table(work: Path, out: Path) -> None:
    """Write gpu.json and gpu.md: all that the steps measured; what a failed step would have given is missing."""
    lines = [line.split("\t") for line in (out / "steps.tsv").read_text().splitlines()]
    found = {"date": str(date.today()), "steps": {name: [int(status), float(s)] for name, status, s in lines}}
    if (out / "speed.json").exists():
        speed = json.loads((out / "speed.json").read_text())
        found |= {"about": speed["about"], "speed": {r["size"]: r["throughput"] for r in speed["results"]}}
    calibration = work / "config/results/calibration.json"
    if calibration.exists():
        models = json.loads(calibration.read_text())["models"].values()
        kept = ("predicted_gb", "memory_gb", "flops_per_s", "seconds_per_step")
        found["memory"] = {model["language"]: {key: model[key] for key in kept} for model in models}
    runs = [folder / "config/results/runs/baseline" for folder in (work, work / "again")]
    if all((run / "run_summary.json").exists() for run in runs):
        found["resume"] = _difference(*runs)
    preflight = work / "config/results/preflight.txt"
    if preflight.exists():
        lines = preflight.read_text().splitlines()
        problems = [line for line in lines if line.startswith("problem") or " worst batch " in line]
        found["preflight"] = [" ".join(line.split()) for line in (*problems, lines[-1])]
    if (out / "evaluation.csv").exists():
        found["evaluation"] = _losses(out / "evaluation.csv")
    (out / "gpu.json").write_text(json.dumps(found, indent=1))
    (out / "gpu.md").write_text(_markdown(found))


def _difference(one: Path, other: Path) -> dict:
    """Return how far a resumed training is from an undisturbed one."""
    from safetensors.torch import load_file

    weights, others = (load_file(run / "model/final.safetensors") for run in (one, other))
    pairs = [(value.double(), others[name].double()) for name, value in weights.items()]
    losses = [
        [json.loads(line)["train_loss"] for line in (run / "state/metrics.jsonl").read_text().splitlines()]
        for run in (one, other)
    ]
    return {
        "bit_for_bit": all(bool((a == b).all()) for a, b in pairs) and losses[0] == losses[1],
        "largest_relative_difference": max(float((a - b).norm() / a.norm().clamp(min=1e-12)) for a, b in pairs),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "steps": len(losses[0]),
    }


def _losses(file: Path) -> dict[str, float]:
    """Return the held-out loss of each mode with its own frames, nats per token."""
    sums: dict[str, list[float]] = {}
    for row in csv.DictReader(file.read_text().splitlines()):
        if row["frames"] == "own":
            total = sums.setdefault(row["mode"], [0.0, 0.0])
            total[0] += float(row["loss_sum"])
            total[1] += int(row["tokens"])
    return {mode: total / tokens for mode, (total, tokens) in sums.items()}


def _markdown(found: dict) -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from measure import markdown

    parts, about = [], found.get("about", {})
    parts.append(f"{found['date']}: {about.get('gpu') or about.get('cpu')}, torch {about.get('torch')}")
    rows = [
        [size, way, f"{one['samples_per_s']:.1f}", *(_short(one[key]) for key in ("tflops", "mfu", "memory_gb"))]
        for size, ways in found.get("speed", {}).items()
        for way, one in ways.items()
    ]
    parts.append(markdown(["size", "", "samples / s", "TFLOP/s", "utilisation", "memory, GB"], rows, words=2))
    rows = [
        [name, *(_short(one[key]) for key in ("predicted_gb", "memory_gb"))]
        for name, one in found.get("memory", {}).items()
    ]
    parts.append(markdown(["language model", "predicted for the fullest micro-batch, GB", "used, GB"], rows))
    if resume := found.get("resume"):
        far = f"weights differ by {resume['largest_relative_difference']:.1e} at most"
        far += f", losses by {resume['largest_loss_difference']:.1e}"
        parts.append(f"Resumed after a stop, {resume['steps']} steps: " + ("equal" if resume["bit_for_bit"] else far))
    if losses := found.get("evaluation"):
        parts.append("Held-out loss: " + ", ".join(f"{mode} {loss:.3f}" for mode, loss in losses.items()))
    parts += found.get("preflight", [])
    failed = [f"{name} (status {status})" for name, (status, _) in found["steps"].items() if status]
    parts.append(f"Failed steps: {', '.join(failed) or 'none'}; {sum(s for _, s in found['steps'].values()):.0f} s")
    return "\n\n".join(parts) + "\n"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    if command == "packages":
        packages(Path(paths[0]), Path(paths[1]))
    elif command == "data":
        data(Path(paths[0]), tiny="--tiny" in paths)
    else:
        table(Path(paths[0]), Path(paths[1]))
