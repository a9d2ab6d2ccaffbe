"""The Open Inference Protocol v2 in JSON: requests that fit a signature, answers, and sentences for what does not fit.

N rows, K classes
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from hpctool.errors import listing
from hpctool.export.signature import Signature, TensorSpec
from hpctool.serve.journal import REQUEST_BYTES, SOURCE_BYTES, prediction_id
from hpctool.world import Array

#: What a client may call a request: the journal's column holds `<id>:<row>`.
ID_BYTES = REQUEST_BYTES - 12

# Requests without an id are numbered: a random id for each costs more than a small model.
_SERVER = uuid.uuid4().hex
_unnamed = itertools.count()


class Refused(Exception):
    """A request that is answered with an HTTP status and one sentence, `{"error": sentence}`."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = dict(headers or {})
        super().__init__(sentence)


@dataclass(frozen=True)
class Query:
    """A valid request: `inputs` (N, …) in the signature's dtype, and the journal's names of its rows."""

    id: str
    inputs: Array
    #: `<id>:<row>`, bytes (N,)
    request: Array
    source: bytes
    #: the outputs that were asked for; empty for all
    outputs: list[str] = field(default_factory=list)
    #: the only version that may answer; empty for the one in service
    version: str = ""


def parse(body: bytes, signature: Signature, version: str = "") -> Query:
    """Read a request and compare it with the signature. Raises Refused 400, with the reason."""
    message = _json(body)
    spec = signature.inputs[0]
    inputs = _tensor(_one_input(message.get("inputs"), spec), spec)
    parameters = message.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused(400, "'parameters' must be an object.")
    request_id = _text("id", message.get("id", f"{_SERVER}-{next(_unnamed)}"), ID_BYTES)
    source = _text("parameters.source", parameters.get("source", ""), SOURCE_BYTES)
    request = np.array([f"{request_id}:{row}".encode() for row in range(len(inputs))], f"S{REQUEST_BYTES}")
    outputs = _outputs(message.get("outputs"), signature)
    return Query(request_id, inputs, request, source.encode(), outputs, version)


def encode(
    query: Query, version: tuple[str, str], writer: str, first: int, outputs: Mapping[str, npt.NDArray[np.float32]]
) -> bytes:
    """The answer to a request: `version` is (model, version), `writer` and `first` number its predictions."""
    tensors = [
        {"name": name, "datatype": "FP32", "shape": list(values_NK.shape), "data": values_NK.reshape(-1)}
        for name, values_NK in outputs.items()
        if not query.outputs or name in query.outputs
    ]
    ids = [prediction_id(writer, first + row) for row in range(len(query.inputs))]
    answer = {
        "model_name": version[0],
        "model_version": version[1],
        "id": query.id,
        "parameters": {"prediction_ids": ids},
        "outputs": tensors,
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def metadata(name: str, version: str, signature: Signature, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's model metadata; what it has no word for stands in `parameters`."""
    specs = {
        key: [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in found]
        for key, found in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    said = {key: getattr(signature, key) for key in ("classes", "preprocessing", "temperature")}
    return {
        "name": name,
        "versions": [version],
        "platform": signature.platform,
        **specs,
        "parameters": {**said, **parameters},
    }


def _json(body: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = " JSON has no NaN and no Infinity." if b"NaN" in body or b"Infinity" in body else ""
        raise Refused(400, f"The body is not JSON: {error}.{hint}") from None
    if not isinstance(message, dict):
        raise Refused(400, f"The body is a JSON {_kind(message)}; an object with 'inputs' is needed.")
    return message


def _one_input(inputs: Any, spec: TensorSpec) -> dict[str, Any]:
    """The only input, with the name and datatype of the signature."""
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise Refused(400, "'inputs' must be a list of objects with name, shape, datatype and data.")
    names = [str(tensor.get("name")) for tensor in inputs]
    if names != [spec.name]:
        raise Refused(400, f"The model takes one input, '{spec.name}'; the request names: {listing(names)}.")
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("datatype") != spec.datatype:
        raise Refused(400, f"Input '{spec.name}' must be {spec.datatype}, not {tensor.get('datatype')}.")
    return tensor


def _tensor(tensor: dict[str, Any], spec: TensorSpec) -> Array:
    """The values of an input as an array of the signature's dtype and shape."""
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(400, f"The shape of input '{spec.name}' must be a list of whole numbers.")
    if len(shape) != len(spec.shape) or any(want not in (-1, n) for want, n in zip(spec.shape, shape, strict=True)):
        wanted = [n if n >= 0 else "N" for n in spec.shape]
        raise Refused(400, f"Input '{spec.name}' has the shape {shape}; {_plain(wanted)} is needed.")
    if not prod(shape):
        raise Refused(400, f"Input '{spec.name}' has no rows.")
    if not isinstance(data, list):
        raise Refused(400, f"The data of input '{spec.name}' must be a list of numbers.")
    try:
        values = np.array(data)
    except (ValueError, OverflowError):
        raise Refused(400, f"The data of input '{spec.name}' is no array: its lists differ in length.") from None
    if values.shape not in ((prod(shape),), tuple(shape)):
        found = f"{values.size} values in lists of shape {list(values.shape)}"
        raise Refused(400, f"Input '{spec.name}' says the shape {shape}, but its data holds {found}.")
    return _converted(values, spec).reshape(shape)


def _converted(values: Array, spec: TensorSpec) -> Array:
    """Numbers as the signature's dtype, or the reason why they cannot be."""
    dtype, what = spec.dtype, f"The data of input '{spec.name}'"
    if dtype.kind == "b":
        if values.dtype.kind != "b":
            raise Refused(400, f"{what} must be true and false only.")
        return values
    if values.dtype.kind not in "iuf":
        raise Refused(400, f"{what} must be numbers only; some are {_other_than_numbers(values)}.")
    if dtype.kind == "f":
        # Beyond the range of the datatype, it becomes infinite; NumPy's warning about that is said in our words.
        with np.errstate(over="ignore"):
            converted = values.astype(dtype)
        if not np.isfinite(converted).all():
            raise Refused(400, f"{what} has values that are not finite as {spec.datatype}.")
        return converted
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise Refused(400, f"{what} must be whole numbers: it is {spec.datatype}.")
    # As a float the largest INT64 is 2^63, which is one too many.
    is_beyond = values.max() >= float(high) + 1 if values.dtype.kind == "f" else values.max() > high
    if values.min() < low or is_beyond:
        found = f"{values.min():.15g} to {values.max():.15g}"
        raise Refused(400, f"{what} goes from {found}; {spec.datatype} holds {low} to {high}.")
    return values.astype(dtype)


def _outputs(outputs: Any, signature: Signature) -> list[str]:
    if outputs is None:
        return []
    known = [spec.name for spec in signature.outputs]
    if not isinstance(outputs, list) or not all(isinstance(o, dict) and o.get("name") in known for o in outputs):
        raise Refused(400, f"'outputs' must be a list of objects with a name: {listing(known)}.")
    return [o["name"] for o in outputs]


def _text(key: str, text: Any, max_bytes: int) -> str:
    # The journal's columns have a fixed length and end at a zero byte.
    if not isinstance(text, str) or "\0" in text or len(text.encode()) > max_bytes:
        raise Refused(400, f"'{key}' must be a text of at most {max_bytes} bytes.")
    return text


def _other_than_numbers(values: Array) -> str:
    flat = values.reshape(-1).tolist()
    return next((_kind(value) for value in flat if type(value) not in (int, float)), "too large")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "text", list: "list", dict: "object"}
    return names.get(type(value), "number")


def _plain(shape: list[Any]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
