"""The signature of a bundle: what goes in, what comes out and how it is meant, in the Open Inference Protocol's words.

signature.json is this as JSON; a server's model metadata needs nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

#: NumPy dtype → datatype of the Open Inference Protocol
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, datatype (UINT8, FP32 …) and shape; -1 is the batch."""

    name: str
    datatype: str
    shape: list[int]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype."""
        return np.dtype(_DTYPES[self.datatype])


@dataclass(frozen=True)
class Signature:
    """What a bundle takes and gives. The graph takes the inputs, and returns the outputs, in this order."""

    inputs: list[TensorSpec]
    #: probabilities: calibrated, they sum to 1. logits: raw, before the temperature.
    outputs: list[TensorSpec]
    #: names of the classes, in the order of the outputs' columns
    classes: list[str]
    #: what the graph does with the input before the model, in words
    preprocessing: str
    temperature: float
    #: the dtype of the model's parameters
    dtype: str
    #: allowed difference of the golden test, relative to the larger of 1 and the row's largest value
    tolerance: float
    #: the batch sizes at which parity was shown
    batch_sizes: list[int]
    #: how the graph was made (script or trace), and why it could not be scripted
    method: str
    reason: str = ""
    #: the torch that made it
    torch: str = ""
    platform: str = field(default="pytorch_torchscript")

    def to_json(self) -> dict[str, Any]:
        """The content of signature.json without its format."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Signature:
        """The signature of a signature.json; what a later hpctool of the same format has added is left out."""
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        known["inputs"] = [TensorSpec(**spec) for spec in value["inputs"]]
        known["outputs"] = [TensorSpec(**spec) for spec in value["outputs"]]
        return cls(**known)
