"""Verify: a bundle is whole, loads, and answers here as the original did where it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpctool.errors import CorruptError
from hpctool.export import golden
from hpctool.export.bundle import Bundle
from hpctool.export.schema import FORMATS
from hpctool.export.signature import Signature

if TYPE_CHECKING:
    import torch

REPEATS = 3  # TorchScript changes its kernels after the first call


@dataclass(frozen=True)
class Loaded:
    """A bundle that has passed its golden test, with the largest difference that was found in it."""

    bundle: Bundle
    module: torch.jit.ScriptModule
    signature: Signature
    num_golden: int
    worst: float

    def __call__(self, inputs: golden.Array) -> dict[str, golden.Array]:
        """The outputs by name for a batch of any size; shape and dtype as the signature's input."""
        import torch

        from hpctool.export.parity import answers

        return answers(self.module, torch.from_numpy(np.ascontiguousarray(inputs)))


def load_verified(path: Path) -> Loaded:
    """Load the bundle in a folder: checksums first, then the golden rows, all together and one alone, three times.

    Raises CorruptError, NewerFormat, and ParityError where the answers differ by more than the signature's tolerance.
    """
    import torch

    from hpctool.export import parity, torchscript

    bundle = Bundle(path)
    bundle.check_files()
    signature = bundle.signature()
    rows = golden.read(path / "golden.npz")
    if list(rows.outputs) != [spec.name for spec in signature.outputs]:
        raise CorruptError(
            path / "golden.npz", f"it holds {', '.join(rows.outputs)}, which is not what signature.json says"
        )
    module = torchscript.load(path / FORMATS["torchscript"])
    worst = 0.0
    for count in (len(rows.inputs), 1):
        x = torch.from_numpy(rows.inputs[:count])
        expected = {name: values[:count] for name, values in rows.outputs.items()}
        for call in range(1, REPEATS + 1):
            where = f"{bundle}, golden test of {count} rows, call {call}"
            found = parity.answers_or_refusal(module, x, where)
            worst = max(worst, parity.compare(found, expected, signature.tolerance, where))
    return Loaded(bundle, module, signature, len(rows.inputs), worst)
