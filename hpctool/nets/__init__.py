"""Small reference networks for experiments and tests: float x (N, *input_shape), 0..1, to logits (N, num_classes).

Each is made from `input_shape`, `num_classes` and a few named sizes, and can be turned into TorchScript.
"""

from hpctool.nets.cnn import CNN
from hpctool.nets.mlp import MLP
from hpctool.nets.transformer import Transformer

__all__ = ["CNN", "MLP", "Transformer"]
