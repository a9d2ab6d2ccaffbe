"""What goes into service: preprocessing, model and calibrated probabilities as one graph.

N batch, H height, W width, C channels, K classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: The outputs in the order in which `Deployed` returns them.
OUTPUTS = ("probabilities", "logits")


class Deployed(nn.Module):
    """Raw inputs as they are stored → probabilities; any batch size."""

    def __init__(self, preprocess: nn.Module, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.model = model
        self.temperature = float(temperature)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x`: uint8 images (N, H, W, C) or feature rows (N, …) → probabilities and raw logits, float32 (N, K)."""
        logits_NK = self.model(self.preprocess(x)).to(torch.float32)
        return torch.softmax(logits_NK / self.temperature, dim=1), logits_NK
