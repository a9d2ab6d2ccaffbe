"""Parity: a graph that answers otherwise is found, whatever the batch size or the call it happens in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpctool.errors import ParityError
from hpctool.export import parity, torchscript
from hpctool.export.deployed import Deployed
from hpctool.export.parity import Gate

GATE = Gate(batch_sizes=[1, 2, 3, 7, 16], repeats=3, tolerance=1e-5)
ROWS = torch.arange(5 * 4, dtype=torch.float32).reshape(5, 4) / 20


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits


class Branching(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 if x.shape[0] == 7 else 1.0)


class Baked(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(int(x.shape[0]), 4))


class Changing(nn.Module):
    """Answers otherwise from its second call on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        p, z = self.model(x)
        return p, z + (self.calls % 3 == 2)


def deployed(model: nn.Module) -> Deployed:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return Deployed(nn.Identity(), model, 1.5).eval()


def traced(module: nn.Module) -> nn.Module:
    with torchscript.quiet(), pytest.warns(torch.jit.TracerWarning):  # type: ignore[attr-defined]
        graph: nn.Module = torch.jit.trace(module, (ROWS[:3],), check_trace=False)  # type: ignore[no-untyped-call]
    return graph


def test_a_scripted_module_agrees_at_every_batch_size() -> None:
    module = deployed(Linear())
    with torchscript.quiet():
        assert parity.check(module, torch.jit.script(module), ROWS, GATE) <= 1e-6


def test_a_branch_that_tracing_lost_is_found_at_the_batch_that_takes_it() -> None:
    module = deployed(Branching())
    with pytest.raises(ParityError, match=r"batch of 7, call 1: 'probabilities' differs by up to .* in 7 of 7 rows"):
        parity.check(module, traced(module), ROWS, GATE)


def test_a_shape_that_tracing_baked_in_is_found() -> None:
    module = deployed(Baked())
    with pytest.raises(ParityError, match=r"batch of 1, call 1: the exported graph cannot take it: .*shape"):
        parity.check(module, traced(module), ROWS, GATE)


def test_a_graph_that_changes_after_its_first_call_is_found() -> None:
    module = deployed(Linear())
    with pytest.raises(ParityError, match="batch of 1, call 2: 'logits'"):
        parity.check(module, Changing(module), ROWS, GATE)


def test_the_probabilities_are_those_of_the_temperature() -> None:
    module = deployed(Linear())
    found = parity.answers(module, ROWS)
    expected = torch.softmax(torch.from_numpy(found["logits"]) / 1.5, dim=1).numpy()
    assert np.array_equal(found["probabilities"], expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda z: z + np.float32(1e-2),
            "'logits' differs by up to 0.01 .allowed 1e-05. in 2 of 2 rows; first at row 0",
        ),
        (lambda z: z * np.float32("nan"), "differs by up to nan"),
        (lambda z: z[:, :2], r"'logits' is float32 \(2, 2\) where float32 \(2, 3\) was expected"),
        (lambda z: z.astype(np.float64), "float64"),
    ],
)
def test_a_difference_says_where_and_how_much(change: Callable[[parity.Array], parity.Array], said: str) -> None:
    right = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    with pytest.raises(ParityError, match=said):
        parity.compare({"logits": change(right)}, {"logits": right}, 1e-5, "here")


def test_the_tolerance_grows_with_the_rows_largest_value() -> None:
    right = np.array([[1000.0, 0.0]], np.float32)
    assert parity.compare({"z": right + np.float32(1e-3)}, {"z": right}, 1e-5, "here") == pytest.approx(1e-6, rel=0.1)


def test_another_decision_is_found_and_a_tie_is_not_one() -> None:
    expected = np.array([[1.0, 2.0], [3.0, 3.0 + 1e-7]], np.float32)
    tie = np.array([[1.0, 2.0], [3.0 + 1e-6, 3.0]], np.float32)
    parity.check_decisions({"logits": tie}, expected, 1e-5, 0)
    with pytest.raises(ParityError, match="decides otherwise in 1 of 2 rows of the split; row 40: class 0 for 1"):
        parity.check_decisions({"logits": expected[:, ::-1]}, expected, 1e-5, 40)
