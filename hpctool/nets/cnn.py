"""A convolutional network for small images.

Shapes: N samples, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpctool.errors import ConfigError


class CNN(nn.Module):
    """Stages of two 3×3 convolutions with batch norm, each but the last halving H and W; mean over H, W; logits."""

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, channels: Sequence[int] = (32, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 2 ** (len(channels) - 1):
            raise ConfigError(
                "model.channels",
                f"{len(channels)} stages need images of at least {2 ** (len(channels) - 1)} pixels a side; "
                f"the data has the shape {list(input_shape)}.",
            )
        widths = [input_shape[0], *channels]
        stages = [_stage(c_in, c_out) for c_in, c_out in itertools.pairwise(widths)]
        halved = [part for stage in stages[:-1] for part in (stage, nn.MaxPool2d(2))]
        self.stages = nn.Sequential(*halved, stages[-1])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """float (N, C, H, W) → logits (N, K)."""
        features_NC = torch.mean(self.stages(x_NCHW), dim=(2, 3))
        logits_NK: Tensor = self.head(self.dropout(features_NC))
        return logits_NK


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
