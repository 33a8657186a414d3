"""Runs in the form in which the published study left them: checkpoints, summaries, metrics, tables of results."""

import csv
import json
from pathlib import Path

import torch

from fvlm.model.foveated import VideoLanguageModel

COLUMNS = [
    *("run_id", "step", "samples_seen", "wall_time_sec", "event_type", "train_loss", "loss_fine", "loss_coarse"),
    *("loss_ratio", "grad_norm", "lr_connector", "lr_dino", "lr_llm", "throughput_samples_sec", "gpu_mem_gb"),
    *("val_loss", "val_loss_fine", "val_loss_coarse", "val_loss_ratio", "attention_entropy"),
]
GRID = [
    *("run_id", "size", "budget", "arch", "flop_budget", "total_samples", "status", "returncode", "wall_time_sec"),
    *("final_train_loss", "best_val_loss", "best_val_step"),
]
TIME = "20260216_080531"
PLACES = (  # name here -> place there
    ("connector.query_input_proj.", "encoder.query_input_proj."),
    ("connector.output_proj.", "encoder.output_proj."),
    ("connector.", ""),
    ("llm.llama.", "llm._orig_mod.model."),
)
DINO = {f".attention.{name[0]}_proj.": f".attention.attention.{name}." for name in ("query", "key", "value")}


def theirs(model: VideoLanguageModel, compiled: bool = True) -> dict[str, torch.Tensor]:
    """The weights of a model under the names of the published study, with DINOv2 as in transformers 4."""
    seeing = {"dino.dino.": "encoder._orig_mod.dino." if model.config.variant.queries else "dino."}
    state = {}
    for name, tensor in model.state_dict().items():
        old = name
        for here, there in (*seeing.items(), *PLACES):
            if old.startswith(here):
                old = there + old.removeprefix(here)
                break
        for here, there in (*DINO.items(), (".attention.o_proj.", ".attention.output.dense.")):
            old = old.replace(here, there) if name.startswith("dino.") else old
        tensor = tensor[None] if old in ("q_static", "q_init") else tensor
        state[old if compiled else old.replace("._orig_mod", "")] = tensor.clone()
    state["llm.lm_head.weight"] = model.llm.llama.embed_tokens.weight.detach().clone()
    if model.config.variant.queries:
        state["encoder._device_probe"] = torch.zeros(1)
    return state


def checkpoint(path: Path, model: VideoLanguageModel, step: int, **more) -> Path:
    """A checkpoint of the study, with everything that it has beside the weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = {0: {"step": torch.tensor(float(step)), "exp_avg": torch.zeros(3)}}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "name": "connector", "params": [0]}
    content = {
        "model_state_dict": theirs(model),
        "optimizer_state_dict": {"state": moments, "param_groups": [group]},
        "scaler_state_dict": {},
        "scheduler_state_dict": {"last_epoch": step, "lr_lambdas": [None]},
        "step": step, "data_position": 32 * step, "metric_value": 1.5, "timestamp": "2026-02-16T09:07:11",
    }  # fmt: skip
    torch.save(content | more, path)
    return path


def settings(**model) -> dict:
    """The configuration that the study stores in a checkpoint."""
    return {
        "stage": 1,
        "model": {"llm": "/w/SmolLM2", "dino": "/w/dinov2", "deep_query": True, "query_dim": 32, **model},
        "data": {"train_shards": ["/w/data/openvid/*.tar"], "text_shards": "/w/data/text_retention/stage1/*.tar",
                 "text_ratio": 0.14},
        "training": {"total_samples": 67_000, "batch_size": 8, "grad_accum": 4, "lr_connector": 1e-3, "lr_dino": 1e-5,
                     "lr_llm": 1e-5, "schedule": "cosine", "seed": 42, "dtype": "bfloat16", "weight_decay": 0.01},
        "loss": {"type": "text_ce_all"},
    }  # fmt: skip


def rows(run: str, first: int = 10, last: int = 40, final: float = 1.42, time: str = TIME) -> list[dict]:
    """Rows of metrics: a training step every 10 steps, an evaluation every 20; the last but one is the best."""
    found = []
    for step in range(first, last + 1, 10):
        about = {"run_id": f"{run}_{time}", "step": step, "samples_seen": 32 * step, "wall_time_sec": f"{step * 2.0}"}
        found.append(about | {
            "event_type": "train", "train_loss": f"{final + 0.5 - step / 100:.6f}", "loss_fine": f"{final:.6f}",
            "loss_coarse": "0.000000", "loss_ratio": "0.0000", "grad_norm": "1.2000", "lr_connector": "1.00e-03",
            "lr_dino": "1.00e-05", "lr_llm": "1.00e-05", "throughput_samples_sec": "17.1", "gpu_mem_gb": "12.30",
        })  # fmt: skip
        if step % 20 == 0:
            loss = final + (0.01 if step == last else 0.1 * (last - 20 - step) / 20)
            found.append(about | {
                "event_type": "eval", "val_loss": f"{loss:.6f}", "val_loss_fine": f"{loss:.6f}",
                "val_loss_coarse": "0.000000", "val_loss_ratio": "0.0000", "attention_entropy": "3.400000",
            })  # fmt: skip
    return found


def table(path: Path, records: list[dict], columns: list[str] = COLUMNS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    return path


def summary(path: Path, run: str, loss: float = 1.42, samples: int = 67_000, time: str = TIME, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "run_id": f"{run}_{time}", "git_hash": "236213d", "config_file": "release/configs/x.yaml",
        "final_train_loss": 0.91, "best_val_loss": loss, "best_val_step": 20, "total_steps": 40,
        "total_samples": samples, "wall_time_sec": 3708.0, "wall_time_hours": 1.03, "csv_path": "/w/x.csv",
        "timestamp": "2026-02-16T09:07:20",
    }  # fmt: skip
    path.write_text(json.dumps({key: value for key, value in (content | more).items() if value is not None}))
    return path


def finished_run(folder: Path, run: str, model: VideoLanguageModel, last=None, config=None) -> Path:
    """A finished run's folder: the checkpoints are links, the best of step 20 and the latest of step 40."""
    more = {} if config is None else {"config": config}
    checkpoint(folder / "step_0000020.pt", model, 20, **more)
    checkpoint(folder / "step_0000040.pt", last or model, 40, **more)
    for name, step in (("best.pt", 20), ("latest.pt", 40)):
        (folder / name).symlink_to(f"/elsewhere/{run}/step_{step:07d}.pt")  # absolute, as on the machine of the run
    summary(folder / f"run_summary_{run}_{TIME}.json", run)
    table(folder / f"metrics_{run}_{TIME}.csv", rows(run))
    return folder
