"""Build a model from its configuration: pretrained weights, or random ones that learn from scratch."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from fvlm.config import schema
from fvlm.errors import BROKEN, UserError, first_line
from fvlm.model.backbones import Dinov2, Llama
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
        language = _language(model.language, model.visual_scale, pretrained)
        connector = CONNECTORS[model.architecture](model)
        _initialise(connector)
        connector.draw_queries()
    return VideoLanguageModel(model, encoder, language, connector)


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
