"""`fvlm export RUN --out DIR`: write a finished run as a folder that transformers loads without this project."""

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

from fvlm.config.schema import Data, Model
from fvlm.config.trained import summary_in
from fvlm.data.decode.media import MAX_FRAMES
from fvlm.data.shards.text import END, END_OF_TEXT, largest_id, load_tokenizer
from fvlm.errors import UserError
from fvlm.evaluate.read import SOURCES, files_of, read_run
from fvlm.use.card import card
from fvlm.use.options import TOKENS, shown_like

CODE = ("configuration_fvlm.py", "modeling_fvlm.py", "processing_fvlm.py")
TEMPLATE, TOKENIZER = "chat_template.jinja", "tokenizer.json"
ARCHITECTURES = ("foveated", "multi_token", "pixel_shuffle", "blind")  # of exported/configuration_fvlm.py
STARTS = {"dino.dino.": "vision_model.", "llm.llama.": "language_model.", "connector.": "connector."}


def add_arguments(parser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run, for example results/runs/stage3")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write; it may not exist, or be empty")


def main(args) -> None:
    run, beside = read_run(args.run)
    saved = files_of(args.run)
    if saved.exported:
        raise UserError(f"{args.run} is an exported folder already; copy it, or name a finished run")
    if run.model.architecture not in ARCHITECTURES:
        raise UserError(
            f"{args.run}: architecture {run.model.architecture!r} cannot be exported; expected one of "
            f"{', '.join(ARCHITECTURES)}: add it to src/fvlm/use/exported/modeling_fvlm.py"
        )
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"{args.out} exists and is not empty; name a new folder, or delete it first")
    ids = _control_ids(saved.tokenizer, run.model)
    shown = {kind: shown_like(beside[SOURCES], kind, run.name).get("crop", True) for kind in ("image", "video")}

    from fvlm.evaluate.load import load_run  # imports torch, which takes seconds

    weights = load_run(args.run)[1].state_dict()
    out = args.out.absolute()  # "." has no name
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in CODE:
        (part / name).write_text(files("fvlm.use").joinpath("exported", name).read_text())
    _write_json(part / "config.json", config_of(run.model, ids[END_OF_TEXT]))
    _write_json(part / "generation_config.json", _generation(ids[END]))
    _write_json(part / "processor_config.json", _processor(run.model, run.data, shown))
    (part / TEMPLATE).write_text(_template(run.data.question_first > 0.5))  # as in most of the run's training samples
    _copy_tokenizer(saved.tokenizer, part)
    _write_weights(part / "model.safetensors", weights)
    shutil.copyfile(saved.configuration, part / "run.json")  # for `--run` of `fvlm ask` and others
    (part / "README.md").write_text(card(args.run.absolute(), run, beside[SOURCES], summary_in(args.run)))
    if out.is_dir():
        out.rmdir()
    os.replace(part, out)
    size = sum(file.stat().st_size for file in out.iterdir()) / 2**20
    print(f"{args.out}: {run.name} for transformers, {size:,.0f} MiB; its README.md shows how to load it")


def config_of(model: Model, frame_token: int) -> dict:
    """Return config.json: the architecture and sizes of a model; `frame_token` is the id that stands for a frame."""
    encoder, language = model.encoder, model.language
    modeling = "modeling_fvlm.FvlmForConditionalGeneration"
    return {
        "architectures": ["FvlmForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_fvlm.FvlmConfig",
            "AutoModel": modeling,
            "AutoModelForImageTextToText": modeling,
            "AutoModelForMultimodalLM": modeling,
            "AutoProcessor": "processing_fvlm.FvlmProcessor",
        },
        "model_type": "fvlm",
        "dtype": "float32",
        "tie_word_embeddings": True,
        "architecture": model.architecture,
        "tokens_per_frame": model.visual_tokens,
        "deep_query": model.deep_query,
        "fine_passes": model.fine_passes if model.fine_pass else 0,
        "lambda_coarse": model.lambda_coarse,
        "query_dim": model.query_dim,
        "query_init_std": model.query_init_std,
        "visual_scale": model.visual_scale,
        "image_size": encoder.image,
        "frame_token_id": frame_token,
        "vision_config": {
            "model_type": "dinov2",
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.layers,
            "num_attention_heads": encoder.heads,
            "mlp_ratio": encoder.mlp_ratio,
            "patch_size": encoder.patch,
            "image_size": (encoder.position_side or encoder.side) * encoder.patch,  # of the stored positions
        },
        # without a pad token: its embedding would get no gradient
        "text_config": {
            "model_type": "llama",
            "vocab_size": language.vocabulary,
            "hidden_size": language.width,
            "intermediate_size": language.ffn,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "max_position_embeddings": language.max_positions,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_theta},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        },
    }


def exported_name(name: str) -> str:
    """Return the name of a tensor in an exported folder: dino.dino.layernorm.bias -> vision_model.layernorm.bias."""
    start = next(start for start in STARTS if name.startswith(start))
    return STARTS[start] + name.removeprefix(start)


def _control_ids(folder: Path, model: Model) -> dict[str, int]:
    """Return the ids of the tokens that end an answer and stand for a frame.

    raises   UserError if the tokenizer is missing, or is not that of the model
    """
    if not (folder / TOKENIZER).is_file():
        weights = model.language.weights or "NAME"
        raise UserError(
            f"{folder / TOKENIZER}: no such file, and the folder needs the run's tokenizer; make it: "
            f"fvlm tokenizer --weights {weights} --out {folder}"
        )
    tokenizer = load_tokenizer(folder)
    if largest_id(tokenizer) >= model.language.vocabulary:
        raise UserError(
            f"{folder}: the tokenizer has ids up to {largest_id(tokenizer)}, the run's vocabulary has "
            f"{model.language.vocabulary} entries; put the run's own tokenizer there"
        )
    ids = {token: tokenizer.token_to_id(token) for token in (END, END_OF_TEXT)}
    if ids[END_OF_TEXT] is None:
        raise UserError(
            f"{folder}: the tokenizer lacks {END_OF_TEXT}, which stands for frames in an exported folder; use a "
            "tokenizer that has it"
        )
    return ids


def _generation(end: int) -> dict:
    return {"eos_token_id": end, "pad_token_id": end, "do_sample": False, "max_new_tokens": TOKENS}


def _processor(model: Model, data: Data, crop: dict[str, bool]) -> dict:
    return {
        "processor_class": "FvlmProcessor",
        "auto_map": {"AutoProcessor": "processing_fvlm.FvlmProcessor"},
        "image_size": model.encoder.image,
        "crop_images": crop["image"],
        "crop_videos": crop["video"],
        "static_frames": data.static_frames,
        "max_frames": min(data.max_frames, MAX_FRAMES),
        "tokens_per_frame": model.visual_tokens,
    }


def _template(question_first: bool) -> str:
    text = files("fvlm.use").joinpath("exported", TEMPLATE).read_text()
    return text.replace("question_first | default(false)", f"question_first | default({str(question_first).lower()})")


def _copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy a tokenizer without its own chat template, with <|im_end|> for padding unless it has a padding token."""
    shutil.copyfile(folder / TOKENIZER, out / TOKENIZER)
    name = "tokenizer_config.json"
    settings = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    settings.pop("chat_template", None)
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    _write_json(out / name, {"pad_token": END, "eos_token": END, **settings, "padding_side": "left"})


def _write_weights(path: Path, weights: dict) -> None:
    from safetensors.torch import save_file

    tensors = {exported_name(name): tensor.cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod((path.parent / TOKENIZER).stat().st_mode)  # safetensors leaves it readable for its owner alone


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
