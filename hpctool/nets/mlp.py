"""A multilayer perceptron: the baseline for images and for plain feature vectors.

Shapes: N samples, F features, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, then hidden layers with GELU and dropout, then logits."""

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, hidden_sizes: Sequence[int] = (128,), dropout: float = 0.0
    ) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, x_NF: Tensor) -> Tensor:
        """float (N, *input_shape) → logits (N, K)."""
        logits_NK: Tensor = self.layers(x_NF)
        return logits_NK
