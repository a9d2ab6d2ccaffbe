from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpctool.errors import ConfigError
from hpctool.nets import CNN, MLP, Transformer

IMAGES: list[type[nn.Module]] = [MLP, CNN, Transformer]


def scripted(model: nn.Module) -> Any:
    with warnings.catch_warnings():  # torch has declared script deprecated; it is what bundles are made of
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


@pytest.mark.parametrize("net", IMAGES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 16)])
def test_images_become_logits(net: type[nn.Module], shape: tuple[int, ...]) -> None:
    logits_NK: Tensor = net(input_shape=shape, num_classes=7)(torch.rand(5, *shape))
    assert logits_NK.shape == (5, 7)
    assert torch.isfinite(logits_NK).all()


@pytest.mark.slow
@pytest.mark.parametrize("net", IMAGES)
def test_torchscript_answers_like_the_original_at_any_batch_size(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = net(input_shape=(1, 8, 8), num_classes=10, dropout=0.5).eval()
    script = scripted(model)
    for n in (1, 2, 33):
        x_NCHW = torch.rand(n, 1, 8, 8)
        torch.testing.assert_close(script(x_NCHW), model(x_NCHW))


@pytest.mark.parametrize("net", IMAGES)
def test_every_parameter_gets_a_gradient(net: type[nn.Module]) -> None:
    model = net(input_shape=(1, 8, 8), num_classes=10)
    model(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_mlp_takes_plain_feature_vectors() -> None:
    assert MLP(input_shape=(13,), num_classes=2, hidden_sizes=(8, 8))(torch.rand(3, 13)).shape == (3, 2)


def test_dropout_acts_in_training_only() -> None:
    model = MLP(input_shape=(1, 4, 4), num_classes=2, dropout=0.5)
    x_NCHW = torch.rand(3, 1, 4, 4)
    assert not torch.equal(model(x_NCHW), model(x_NCHW))
    model.eval()
    assert torch.equal(model(x_NCHW), model(x_NCHW))


@pytest.mark.parametrize(
    ("net", "arguments", "words"),
    [
        (CNN, {"input_shape": (13,)}, "channels"),
        (CNN, {"input_shape": (1, 2, 2), "channels": (8, 8, 8)}, "at least 4 pixels"),
        (Transformer, {"input_shape": (1, 7, 8)}, "do not tile"),
        (Transformer, {"input_shape": (1, 8, 8), "width": 30, "num_heads": 4}, "do not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_said(net: type[nn.Module], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        net(num_classes=10, **arguments)
