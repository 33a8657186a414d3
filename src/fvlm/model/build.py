"""Build a model from its configuration: pretrained weights, or random ones that learn from scratch."""

import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from fvlm.config import schema
from fvlm.errors import BROKEN, UserError, first_line
from fvlm.model.connector import CONNECTORS
from fvlm.model.encoder import Encoder
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.language import Language


def build_model(model: schema.Model, seed: int, pretrained: bool = True) -> VideoLanguageModel:
    """Return the model of a configuration, float32, on the current default device; `seed` decides its random weights.

    pretrained   False: random weights even where the configuration names pretrained ones, so nothing is downloaded
    raises   UserError if weights cannot be loaded completely or do not have the declared sizes
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # the order decides which random numbers each part gets
        encoder = _encoder(model.encoder, pretrained) if model.variant.sees else nn.Module()
        language = Language(_language(model.language, model.visual_scale, pretrained))
        connector = CONNECTORS[model.architecture](model)
        _initialise(connector)
        connector.draw_queries()
    return VideoLanguageModel(model, encoder, language, connector)


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


def _encoder(size: schema.EncoderSize, pretrained: bool) -> Encoder:
    declared = encoder_config(size)
    if size.weights and pretrained:
        dino = load_pretrained(Dinov2Model, size.weights, declared, "encoder", ENCODER_FIELDS)
        return Encoder(dino, size.image)
    dino = Dinov2Model(declared)
    _initialise(dino)
    embeddings = dino.embeddings
    nn.init.normal_(embeddings.cls_token, std=0.02)
    positions = sin_cos_positions(size.position_side or size.side, size.width)
    with torch.no_grad():
        embeddings.position_embeddings.zero_()[0, 1:].copy_(positions)
    return Encoder(dino, size.image)


def _language(size: schema.LanguageSize, embedding_std: float, pretrained: bool) -> nn.Module:
    declared = language_config(size)
    if size.weights and pretrained:
        return load_pretrained(LlamaForCausalLM, size.weights, declared, "language", LANGUAGE_FIELDS).model
    llama = LlamaForCausalLM(declared).model
    _initialise(llama)
    # text and visual tokens enter the language model at the same scale
    nn.init.normal_(llama.embed_tokens.weight, std=embedding_std)
    return llama


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
        model, info = kind.from_pretrained(name, config=stored, dtype=torch.float32, output_loading_info=True)
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
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights that a run saved into a model of its configuration.

    raises   UserError if the file is missing, damaged, or from another model
    """
    try:
        load_model(model, str(path))
    except (*BROKEN, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be loaded ({reason}); put it back, or train the run again") from error


def _config_of(name: str, declared: PreTrainedConfig, part: str, fields: tuple[str, ...]) -> PreTrainedConfig:
    """Return a model's config.json, with the fields of its architecture alone.

    Other fields could name code to fetch (`attn_implementation`, `quantization_config`), other files to load, or a
    billion labels. Numbers are compared before the configuration is built, which allocates memory for its layers.
    """
    content, _ = type(declared).get_config_dict(name)
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


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Draw linear layers at std fan_in^-0.5: with the usual 0.02 a narrow model does not learn to use frames."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.normal_(child.weight, std=child.weight[0].numel() ** -0.5)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def sin_cos_positions(side: int, width: int) -> torch.Tensor:
    """Return position embeddings (side^2, width): a quarter each of sin and cos of row and column."""
    quarter = width // 4
    frequency = 10_000.0 ** (-torch.arange(quarter) / quarter)
    angle = torch.arange(side)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return nn.functional.pad(grid, (0, width - grid.shape[1]))
