"""Two networks against each other, each with an optimizer of its own: digits out of noise.

    cd examples/gan
    hpctool prepare data.name=digits source=digits
    hpctool train --config-dir conf experiment=gan

What a task with several optimizers needs: `optim` names the parts of the model that have one, in the order in which a
step trains them (conf/optim/gan.yaml), and `loss` is told whose turn it is. Everything else is as ever: ranks,
accumulation, clipping, the average, and a resume to the bit.

Shapes: N samples, Z numbers of noise, F pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Tensor]


class Gan(nn.Module):
    """A generator, noise (N, Z) → images (N, F) in 0..1, and a discriminator, images (N, F) → logits (N,)."""

    def __init__(self, num_pixels: int = 64, noise_size: int = 16, width: int = 128) -> None:
        super().__init__()
        self.noise_size = noise_size
        self.generator = nn.Sequential(
            *(nn.Linear(noise_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, num_pixels), nn.Sigmoid()),
        )
        self.discriminator = nn.Sequential(
            *(nn.Linear(num_pixels, width), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
            *(nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1), nn.Flatten(0)),
        )

    def forward(self, noise_NZ: Tensor) -> Tensor:
        """What the trained model is for: images (N, F) out of noise."""
        images_NF: Tensor = self.generator(noise_NZ)
        return images_NF


class Pixels(nn.Module):
    """uint8 images → float32 (N, F) in 0..1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32).flatten(1) / 255.0


class Adversarial:
    """The discriminator learns to tell images from the generator's, the generator learns to pass for images."""

    def __init__(self) -> None:
        self.preprocess: nn.Module = Pixels()

    def loss(self, model: Gan, batch: Batch, part: str) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of one part; the parameters of the other ask for no gradients meanwhile."""
        real_NF = self.preprocess(batch["x"])
        rows = len(real_NF)
        fake_NF = model.generator(torch.randn(rows, model.noise_size, device=real_NF.device))
        if part == "generator":
            logits = model.discriminator(fake_NF)
            loss = functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
            return loss, {"generator": loss.detach() * rows}
        logits = model.discriminator(torch.cat([real_NF, fake_NF]))
        truth = torch.cat([torch.ones(rows), torch.zeros(rows)]).to(logits.device)
        loss = functional.binary_cross_entropy_with_logits(logits, truth)
        right = ((logits > 0) == (truth > 0)).sum()
        return loss, {"discriminator": loss.detach() * rows, "right": right, "rows": torch.tensor(rows)}

    def evaluate(self, model: Gan, batch: Batch) -> Mapping[str, Tensor]:
        """How much brighter or darker the generator's mean pixel is than that of as many images."""
        real_NF = self.preprocess(batch["x"])
        # A stream of its own: what is measured must not change what is drawn in the next step.
        chance = torch.Generator().manual_seed(0)
        fake_NF = model(torch.randn(len(real_NF), model.noise_size, generator=chance).to(real_NF.device))
        rows = torch.tensor(len(real_NF))
        return {"real": real_NF.mean(1).sum(), "fake": fake_NF.mean(1).sum(), "rows": rows}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        if "fake" in sums:
            return {"brightness_gap": abs(sums["fake"] - sums["real"]) / sums["rows"]}
        losses = {f"loss_{name}": sums[name] / sums["rows"] for name in ("discriminator", "generator")}
        return {**losses, "told_apart": sums["right"] / (2 * sums["rows"])}
