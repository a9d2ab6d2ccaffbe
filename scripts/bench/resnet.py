"""A small residual network for 32×32 images, for loop.py: steps of the length that real trainings have.

Shapes: N samples, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class ResNet(nn.Module):
    """Three stages of `depth` blocks with 1, 2 and 4 times `width` channels (He et al. 2015, section 4.2)."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        blocks, channels = [], width
        for stage, wider in enumerate(widths):
            for number in range(depth):
                blocks.append(Block(channels, wider, stride=2 if stage and not number else 1))
                channels = wider
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features_NC = self.blocks(functional.relu(self.stem(x_NCHW))).mean(dim=(2, 3))
        logits_NK: Tensor = self.head(features_NC)
        return logits_NK


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        same = stride == 1 and channels_in == channels
        self.short = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        inner_NCHW = functional.relu(self.norms[0](self.first(x_NCHW)))
        return functional.relu(self.norms[1](self.second(inner_NCHW)) + self.short(x_NCHW))
