"""A small language model: the next character of a text, by a causal transformer; the text is a plain torch Dataset.

    cd examples/language
    hpctool train --config-dir conf experiment=language

The text is what scikit-learn says about the datasets that it ships: 43,000 characters, nothing is downloaded.

Shapes: N windows, T characters of a window, D width, V known characters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import resources

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from hpctool.nets.transformer import Block

Batch = dict[str, Tensor]
#: printable ASCII and the line break; everything else becomes the last one
CHARACTERS = [*map(chr, range(32, 127)), "\n"]


class Text(Dataset[dict[str, Tensor]]):
    """Windows of `length` + 1 characters as codes, int64; the last tenth of the text is for validation."""

    def __init__(self, split: str, length: int = 48, stride: int = 16) -> None:
        folder = resources.files("sklearn.datasets.descr")
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".rst"))
        text = "".join((folder / name).read_text(encoding="utf-8") for name in names)
        known = {character: code for code, character in enumerate(CHARACTERS)}
        codes = torch.tensor([known.get(character, len(CHARACTERS) - 1) for character in text])
        border = len(codes) * 9 // 10
        self.codes = codes[:border] if split == "train" else codes[border:]
        self.length, self.stride = length, stride

    def __len__(self) -> int:
        return (len(self.codes) - self.length - 1) // self.stride

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.codes[index * self.stride :][: self.length + 1]}


class CausalBlock(Block):
    """A transformer block in which a character sees itself and those before it."""

    def attention(self, x_NTD: Tensor) -> Tensor:
        n, t, d = x_NTD.shape
        qkv = self.query_key_value(x_NTD).view(n, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        out_NTD: Tensor = self.project(mixed.transpose(1, 2).reshape(n, t, d))
        return out_NTD


class LanguageModel(nn.Module):
    """Codes (N, T) → logits (N, T, V) of the character that comes next."""

    def __init__(self, width: int = 64, depth: int = 2, num_heads: int = 4, length: int = 48, dropout: float = 0.1):
        super().__init__()
        self.characters = nn.Embedding(len(CHARACTERS), width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(CausalBlock(width, num_heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(CHARACTERS))

    def forward(self, codes_NT: Tensor) -> Tensor:
        x_NTD = self.characters(codes_NT) + self.positions[: codes_NT.shape[1]]
        for block in self.blocks:
            x_NTD = block(x_NTD)
        logits_NTV: Tensor = self.head(self.norm(x_NTD))
        return logits_NTV


class NextCharacter:
    """Cross entropy of each character given those before it in its window."""

    def __init__(self) -> None:
        self.preprocess: nn.Module = nn.Identity()

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        sums = self.evaluate(model, batch)
        return sums["nats"] / batch["x"][:, 1:].numel(), sums

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Mapping[str, Tensor]:
        codes = self.preprocess(batch["x"])
        logits_NTV, next_NT = model(codes[:, :-1]), codes[:, 1:]
        nats = functional.cross_entropy(logits_NTV.float().flatten(0, 1), next_NT.flatten(), reduction="sum")
        return {"nats": nats, "characters": torch.tensor(next_NT.numel())}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"bits_per_character": sums["nats"] / sums["characters"] / math.log(2)}
