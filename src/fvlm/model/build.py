"""Build a model from its configuration: pretrained weights, or random ones that learn from scratch."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from fvlm.batch import Batch
from fvlm.config import schema
from fvlm.errors import BROKEN, UserError, first_line
from fvlm.model.backbones import Dinov2, Llama
from fvlm.model.connector import CONNECTORS
from fvlm.model.encoder import Encoder
from fvlm.model.foveated import VideoLanguageModel
from fvlm.model.language import Cache, Language

PICTURES, TOKENS = 4, 64  # that the start of a connector is measured on


def build_model(model: schema.Model, seed: int, pretrained: bool = True) -> VideoLanguageModel:
    """Return the model of a configuration, float32, on the current default device; `seed` decides its random weights.

    pretrained   False: random weights even where the configuration names pretrained ones, so nothing is downloaded
    raises   UserError if weights cannot be loaded completely or do not have the declared sizes
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # the order decides which random numbers each part gets
        encoder = _encoder(model.encoder, pretrained) if model.variant.sees else nn.Module()
        language = _language(model.language, model.visual_scale, pretrained)
        connector = CONNECTORS[model.architecture](model)
        _initialise(connector)
        connector.draw_queries()
    built = VideoLanguageModel(model, encoder, language, connector)
    if pretrained and (model.encoder.weights or model.language.weights):
        _match_scales(built)
    return built


def _encoder(size: schema.EncoderSize, pretrained: bool) -> Encoder:
    if size.weights and pretrained:
        from fvlm.model.pretrained import encoder_weights  # imports transformers

        return Encoder(_filled(Dinov2, size, encoder_weights(size)))
    dino = Dinov2(size)
    _initialise(dino)
    embeddings = dino.embeddings
    nn.init.normal_(embeddings.cls_token, std=0.02)
    with torch.no_grad():
        embeddings.position_embeddings[0, 1:] = sin_cos_positions(size.position_side or size.side, size.width)
    return Encoder(dino)


def _language(size: schema.LanguageSize, embedding_std: float, pretrained: bool) -> Language:
    if size.weights and pretrained:
        from fvlm.model.pretrained import language_weights  # imports transformers

        return Language(_filled(Llama, size, language_weights(size)))
    llama = Llama(size)
    _initialise(llama)
    # text and visual tokens enter the language model at the same scale
    nn.init.normal_(llama.embed_tokens.weight, std=embedding_std)
    return Language(llama)


def _filled(kind: type[nn.Module], size, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Return a backbone with these weights, without drawing random ones first."""
    with torch.device("meta"):
        backbone = kind(size)
    backbone.load_state_dict(weights, assign=True)
    return backbone


@torch.no_grad()
def _match_scales(model: VideoLanguageModel) -> None:
    """Scale the connector's last layers: visual tokens start at the text embeddings' scale, queries at q_init's.

    Pretrained backbones leave features and hidden states of other sizes behind their final norms than 1, which random
    backbones have. The sizes are measured on generated pictures and on evenly spaced tokens. Factors have two digits,
    so that all machines start with the same weights.
    """
    if not model.config.variant.sees:
        return
    connector = model.connector
    batch = _measured_batch(model)
    text_SE = model.llm.embed(batch.token_ids)
    mode = "coarse_only" if model.config.variant.queries else "direct"
    visual_PE, *_ = model.visual_tokens(batch, text_SE, model.plan(batch), mode)
    _scale(connector.dino_to_llm, visual_PE, float(model.llm.llama.embed_tokens.weight.std()))
    if model.config.variant.queries:
        hidden = model.llm.run_next(text_SE[None], 0, Cache())
        _scale(connector.llm_to_query, connector.llm_to_query(hidden), model.config.query_init_std)


def _scale(layer: nn.Linear, output: torch.Tensor, std: float) -> None:
    """Scale a layer so that its `output` would have this standard deviation."""
    layer.weight.mul_(float(f"{std / float(output.std()):.2g}"))


def _measured_batch(model: VideoLanguageModel) -> Batch:
    """Return a sample: generated frames of coloured blocks of many sizes, and evenly spaced tokens."""
    random, side = np.random.default_rng(0), model.config.encoder.image
    pictures = np.zeros((PICTURES, side, side, 3))
    for blocks in (2, 4, 8, 16, 32):
        place = np.arange(side) * blocks // side
        pictures += random.uniform(-1, 1, (PICTURES, blocks, blocks, 3))[:, place[:, None], place]
    pictures *= 127 / np.abs(pictures).max((1, 2, 3), keepdims=True)
    device = next(model.parameters()).device
    vocabulary = model.config.language.vocabulary
    batch = Batch(
        frames=torch.from_numpy((128 + pictures).astype(np.uint8)),
        frame_index=torch.arange(PICTURES, device="cpu"),
        frame_counts=torch.tensor([PICTURES], device="cpu"),
        token_ids=torch.arange(TOKENS, device="cpu") * vocabulary // TOKENS,
        token_counts=torch.tensor([TOKENS], device="cpu"),
        loss_mask=torch.ones(TOKENS, dtype=torch.bool, device="cpu"),
        keys=["generated"],
        sources=["generated"],
    )
    return batch.to(device)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights that a run saved into a model of its configuration.

    raises   UserError if the file is missing, damaged, or from another model
    """
    try:
        load_model(model, str(path))
    except (*BROKEN, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be loaded ({reason}); put it back, or train the run again") from error


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
