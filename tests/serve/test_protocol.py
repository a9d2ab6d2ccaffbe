from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from hpctool.export.signature import Signature, TensorSpec
from hpctool.serve import protocol
from hpctool.serve.protocol import Query, Refused


def signature(datatype: str = "UINT8", shape: tuple[int, ...] = (2, 2)) -> Signature:
    outputs = [TensorSpec(name, "FP32", [-1, 3]) for name in ("probabilities", "logits")]
    return Signature([TensorSpec("image", datatype, [-1, *shape])], outputs, ["a", "b", "c"], "", 1.0, "", 0, [], "")


def body(data: Any = ((1, 2), (3, 4)), *, name: str = "image", datatype: str = "UINT8", **more: Any) -> bytes:
    shape = more.pop("shape", [1, 2, 2])
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": [data] if shape == [1, 2, 2] else data}
    return orjson.dumps({"inputs": [tensor], **more})


def refusal(message: bytes, of: Signature | None = None) -> str:
    with pytest.raises(Refused) as caught:
        protocol.parse(message, of or signature())
    assert caught.value.status == 400
    return str(caught.value)


def test_nested_and_flat_data_are_the_same() -> None:
    nested = protocol.parse(body(), signature())
    flat = protocol.parse(
        orjson.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 2], "data": [1, 2, 3, 4]}]}),
        signature(),
    )
    assert nested.inputs.dtype == np.uint8
    assert nested.inputs.tolist() == flat.inputs.tolist() == [[[1, 2], [3, 4]]]


def test_every_row_gets_the_name_of_its_request() -> None:
    query = protocol.parse(body([1] * 8, shape=[2, 2, 2], id="é", parameters={"source": "worn"}), signature())
    assert [text.decode() for text in query.request.tolist()] == ["é:0", "é:1"]
    assert query.source == b"worn"
    one, two = protocol.parse(body(), signature()), protocol.parse(body(), signature())
    assert one.id != two.id


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"{", "The body is not JSON"),
        (b'{"inputs": [NaN]}', "JSON has no NaN"),
        (b"[1]", "a JSON list; an object with 'inputs' is needed"),
        (b"{}", "'inputs' must be a list"),
        (body(name="picture"), "takes one input, 'image'; the request names: picture"),
        (orjson.dumps({"inputs": []}), "the request names: none"),
        (body(datatype="FP32"), "must be UINT8, not FP32"),
        (body([1, 2], shape=[1, 2]), r"has the shape [1, 2]; [N, 2, 2] is needed"),
        (body([1, 2], shape=["1", 2]), "must be a list of whole numbers"),
        (body([], shape=[0, 2, 2]), "has no rows"),
        (body([1, 2, 3]), "3 values in lists of shape [1, 3]"),
        (body([[1, 2], [3]]), "differ in length"),
        (body([[1, 2], [3, "4"]]), "numbers only; some are text"),
        (body([[1, 2], [3, None]]), "numbers only; some are null"),
        (body([[True, True], [True, False]]), "numbers only; some are true or false"),
        (body([[1, 2], [3, 256]]), "goes from 1 to 256; UINT8 holds 0 to 255"),
        (body([[1, 2], [3, -1]]), "UINT8 holds 0 to 255"),
        (body([[1, 2], [3, 0.5]]), "must be whole numbers"),
        (body(id="x" * 53), "'id' must be a text of at most 52 bytes"),
        (body(id=7), "'id' must be a text"),
        (body(parameters=[]), "'parameters' must be an object"),
        (body(parameters={"source": "x" * 33}), "'parameters.source' must be a text of at most 32 bytes"),
        (body(outputs=[{"name": "label"}]), "probabilities, logits"),
    ],
)
def test_a_request_that_does_not_fit_is_told_why(message: bytes, reason: str) -> None:

    assert reason in refusal(message)


def test_floats_must_be_finite_in_their_own_datatype() -> None:
    floats = signature("FP32")
    assert protocol.parse(body([[1, 2.5], [3, 4]], datatype="FP32"), floats).inputs.dtype == np.float32
    assert "not finite as FP32" in refusal(body([[1, 2], [3, 1e39]], datatype="FP32"), floats)


def test_a_float_just_beyond_the_largest_whole_number_is_refused() -> None:
    found = refusal(body([[1, 2], [3, 2.0**63]], datatype="INT64"), signature("INT64"))
    assert "INT64 holds -9223372036854775808 to 9223372036854775807" in found
    largest = protocol.parse(body([[1, 2], [3, 2**63 - 1]], datatype="INT64"), signature("INT64"))
    assert largest.inputs.max() == 2**63 - 1
    assert protocol.parse(body([[1, 2], [3, 255.0]]), signature()).inputs.max() == 255


def test_an_answer_names_its_version_its_predictions_and_the_outputs_asked_for() -> None:
    query = Query("r1", np.zeros((2, 2, 2), np.uint8), np.array([b"r1:0", b"r1:1"]), b"", ["logits"])
    outputs = {"probabilities": np.ones((2, 3), np.float32), "logits": np.arange(6, dtype=np.float32).reshape(2, 3)}
    answer = orjson.loads(protocol.encode(query, ("digits", "0001"), "3fa1c09b", 41, outputs))
    assert answer == {
        "model_name": "digits",
        "model_version": "0001",
        "id": "r1",
        "parameters": {"prediction_ids": ["3fa1c09b-000041", "3fa1c09b-000042"]},
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}],
    }
