"""The block that Transformers are made of, and the attention in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., "Attention Is All You Need", 2017).

    `bias` (..., queries, keys) is added to the scores. `past` are the keys and values, each (batch, heads, time,
    width / heads), that come before those of `x`. Gives the result, and all keys and values.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, width = x.shape
        parts = self.qkv(x).chunk(3, dim=-1)
        query, key, value = (p.reshape(batch, time, self.heads, -1).transpose(1, 2) for p in parts)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, bias)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width)), key, value


class Block(nn.Module):
    """Attention and two dense layers, each after a layer norm and beside a shortcut; gives keys and values too."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, key, value = self.attention(self.norm1(x), bias, past)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.dense(self.norm2(x))), key, value
