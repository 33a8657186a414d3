"""DINOv2 and Llama as parameters, with the names of transformers' `Dinov2Model` and `LlamaModel`.

How the tokens pass through them is written in fvlm.model.encoder and fvlm.model.language. Importing the two classes of
transformers takes 2.5 CPU seconds, more than half of what starting a training costs; they are imported where pretrained
weights are loaded (fvlm.model.pretrained), and the tests compare with them.
"""

import torch
from torch import nn
from torch.nn import functional as F

from fvlm.config import schema


def named(**parts: nn.Module | nn.Parameter) -> nn.Module:
    """Return a module that only holds others."""
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


class Dinov2(nn.Module):
    """The parameters of a DINOv2 encoder."""

    def __init__(self, size: schema.EncoderSize):
        super().__init__()
        self.size = size
        patches = nn.Conv2d(3, size.width, kernel_size=size.patch, stride=size.patch)
        positions = (size.position_side or size.side) ** 2 + 1
        self.embeddings = named(
            cls_token=nn.Parameter(torch.zeros(1, 1, size.width)),
            mask_token=nn.Parameter(torch.zeros(1, size.width), requires_grad=False),  # of DINOv2's own pretraining
            patch_embeddings=named(projection=patches),
            position_embeddings=nn.Parameter(torch.zeros(1, positions, size.width)),
        )
        self.encoder = named(layer=nn.ModuleList(Dinov2Layer(size) for _ in range(size.layers)))
        self.layernorm = nn.LayerNorm(size.width, eps=1e-6)


class Dinov2Layer(nn.Module):
    """One layer: attention and MLP, each behind a norm and before a scale."""

    def __init__(self, size: schema.EncoderSize):
        super().__init__()
        width, inner = size.width, int(size.width * size.mlp_ratio)
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = named(**{name: nn.Linear(width, width) for name in names})
        self.layer_scale1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = GeluMlp(width, inner)
        self.layer_scale2 = LayerScale(width)


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.lambda1


class GeluMlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Llama(nn.Module):
    """The parameters of a Llama language model with tied embeddings."""

    def __init__(self, size: schema.LanguageSize):
        super().__init__()
        self.size = size
        self.embed_tokens = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(LlamaLayer(size) for _ in range(size.layers))
        self.norm = RmsNorm(size)


class LlamaLayer(nn.Module):
    """One layer: attention and MLP, each behind a norm."""

    def __init__(self, size: schema.LanguageSize):
        super().__init__()
        head = size.width // size.heads
        outputs = {"q_proj": size.heads, "k_proj": size.kv_heads, "v_proj": size.kv_heads}
        self.self_attn = named(
            **{name: nn.Linear(size.width, heads * head, bias=False) for name, heads in outputs.items()},
            o_proj=nn.Linear(size.heads * head, size.width, bias=False),
        )
        self.mlp = SiluMlp(size.width, size.ffn)
        self.input_layernorm = RmsNorm(size)
        self.post_attention_layernorm = RmsNorm(size)


class SiluMlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RmsNorm(nn.Module):
    """The weight of an RMS norm; fvlm.model.language computes it."""

    def __init__(self, size: schema.LanguageSize):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size.width))
        self.eps = size.rms_norm_eps
