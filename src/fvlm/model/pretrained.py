"""Load pretrained weights of DINOv2 and Llama with transformers, which also knows the names of older checkpoints.

Importing transformers' models takes 2.5 CPU seconds, so this module is imported only where there is something to load.
"""

import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from fvlm.config import schema
from fvlm.errors import UserError, first_line
from fvlm.hub import only_local

# fields of config.json that the model's layers and the FLOP counts rely on
ENCODER_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "patch_size", "image_size"),
    *("num_channels", "hidden_act", "layer_norm_eps", "qkv_bias", "use_swiglu_ffn", "use_mask_token"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
)
LANGUAGE_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters"),
    *("tie_word_embeddings", "hidden_act", "attention_bias", "mlp_bias", "attention_dropout"),
)
# older forms of `rope_parameters`, and the token whose embedding is never trained
ALSO_READ = ("rope_theta", "rope_scaling", "pad_token_id")


def encoder_weights(size: schema.EncoderSize) -> dict[str, torch.Tensor]:
    """Return the pretrained weights of an encoder, float32; raises UserError as `load_pretrained`."""
    return load_pretrained(Dinov2Model, size.weights, encoder_config(size), "encoder", ENCODER_FIELDS).state_dict()


def language_weights(size: schema.LanguageSize) -> dict[str, torch.Tensor]:
    """Return the pretrained weights of a language model, float32; raises UserError as `load_pretrained`."""
    declared = language_config(size)
    model = load_pretrained(LlamaForCausalLM, size.weights, declared, "language", LANGUAGE_FIELDS).model
    return model.state_dict()


def load_pretrained(
    kind: type[PreTrainedModel], name: str, declared: PreTrainedConfig, part: str, fields: tuple[str, ...]
) -> PreTrainedModel:
    """Load pretrained weights from a hub name or a local folder, in float32; no other function does.

    raises   UserError if they cannot be loaded, have other sizes than declared, or miss or add a tensor
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(
            f"model.{part}.weights: the folder {name!r} has no config.json; give a folder with config.json and "
            "model.safetensors"
        )
    try:
        stored = _config_of(name, declared, part, fields)
        _compare(stored, declared, name, part, fields)
        model, info = kind.from_pretrained(
            name, config=stored, dtype=torch.float32, output_loading_info=True, local_files_only=only_local(name)
        )
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.{part}.weights: {name!r} holds a pickle with more in it than tensors, which is not loaded; give "
            "a folder with config.json and model.safetensors"
        ) from error
    except Exception as error:  # transformers documents no exceptions for a damaged config
        reason = first_line(error)
        where = "a local folder" if Path(name).exists() else "neither a local folder nor a reachable hub name"
        raise UserError(
            f"model.{part}.weights: {name!r} ({where}) cannot be loaded: {reason}; give a folder with "
            "config.json and model.safetensors, download it first where there is no network, or write null"
        ) from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {key: sorted(map(str, info[key])) for key in kinds if info[key]}
    if wrong:
        raise UserError(
            f"model.{part}.weights: {name!r} does not fit {kind.__name__}: "
            + "; ".join(f"{key} {len(names)}, first {names[0]}" for key, names in wrong.items())
            + "; use a checkpoint of exactly this architecture"
        )
    return model


def encoder_config(size: schema.EncoderSize) -> Dinov2Config:
    side = size.position_side or size.side
    return Dinov2Config(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        mlp_ratio=size.mlp_ratio,
        patch_size=size.patch,
        image_size=side * size.patch,
    )


def language_config(size: schema.LanguageSize) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.max_positions,
        rms_norm_eps=size.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": size.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def _config_of(name: str, declared: PreTrainedConfig, part: str, fields: tuple[str, ...]) -> PreTrainedConfig:
    """Return a model's config.json, with the fields of its architecture alone.

    Other fields could name code to fetch (`attn_implementation`, `quantization_config`), other files to load, or a
    billion labels. Numbers are compared before the configuration is built, which allocates memory for its layers.
    """
    content, _ = type(declared).get_config_dict(name, local_files_only=only_local(name))
    content = {field: content[field] for field in (*fields, *ALSO_READ) if field in content}
    numbers = [field for field in fields if type(getattr(declared, field)) is int and field in content]
    _compare(SimpleNamespace(**content), declared, name, part, tuple(numbers))
    return type(declared)(**content)


def _compare(
    stored: PreTrainedConfig | SimpleNamespace, declared: PreTrainedConfig, name: str, part: str, fields: tuple
) -> None:
    different = [
        f"{field} is {getattr(stored, field)!r}, declared {getattr(declared, field)!r}"
        for field in fields
        if not _equal(getattr(stored, field), getattr(declared, field))
    ]
    if different:
        raise UserError(f"model.{part}: the config of {name!r} differs: {'; '.join(different)}; correct the size")


def _equal(stored: object, declared: object) -> bool:
    """Whether two values of a field are equal; a number may have been stored in single precision."""
    if isinstance(stored, float) and isinstance(declared, float):
        return math.isclose(stored, declared, rel_tol=1e-6)
    if isinstance(stored, dict) and isinstance(declared, dict):
        return stored.keys() == declared.keys() and all(_equal(stored[key], declared[key]) for key in stored)
    return stored == declared
