"""A transformer encoder for images: patches become tokens, a learnt class token becomes the answer.

Shapes: N samples, C channels, H rows, W columns, T tokens, D width of a token, A attention heads, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpctool.errors import ConfigError


class Transformer(nn.Module):
    """Pre-norm encoder blocks over square patches of `patch_size` pixels, learnt positions, a class token."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[1] % patch_size or input_shape[2] % patch_size:
            raise ConfigError(
                "model.patch_size",
                f"patches of {patch_size}×{patch_size} pixels do not tile data of the shape {list(input_shape)}.",
            )
        if width % num_heads:
            raise ConfigError("model.num_heads", f"{num_heads} heads do not divide the width {width}.")
        channels, height, length = input_shape
        num_patches = (height // patch_size) * (length // patch_size)
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, num_patches + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, num_heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """float (N, C, H, W) → logits (N, K)."""
        tokens_NTD = self.patches(x_NCHW).flatten(2).transpose(1, 2)
        first_N1D = self.class_token.expand(tokens_NTD.shape[0], -1, -1)
        tokens_NTD = torch.cat([first_N1D, tokens_NTD], dim=1) + self.positions
        tokens_NTD = self.norm(self.blocks(tokens_NTD))
        logits_NK: Tensor = self.head(tokens_NTD[:, 0])
        return logits_NK


class Block(nn.Module):
    """Self-attention, then a two-layer perceptron of four times the width, each added to its input."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NTD: Tensor) -> Tensor:
        """float (N, T, D) → float (N, T, D)."""
        x_NTD = x_NTD + self.dropout(self.attention(self.norm_attention(x_NTD)))
        out_NTD: Tensor = x_NTD + self.dropout(self.mlp(self.norm_mlp(x_NTD)))
        return out_NTD

    def attention(self, x_NTD: Tensor) -> Tensor:
        """Scaled dot-product attention of each token to all: float (N, T, D) → float (N, T, D)."""
        n, t, d = x_NTD.shape
        qkv_NT3Ad = self.query_key_value(x_NTD).view(n, t, 3, self.num_heads, d // self.num_heads)
        qkv_3NATd = qkv_NT3Ad.permute(2, 0, 3, 1, 4)
        mixed_NATd = functional.scaled_dot_product_attention(qkv_3NATd[0], qkv_3NATd[1], qkv_3NATd[2])
        out_NTD: Tensor = self.project(mixed_NATd.transpose(1, 2).reshape(n, t, d))
        return out_NTD
