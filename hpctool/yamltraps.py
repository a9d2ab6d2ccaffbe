"""What YAML 1.1 sees where people mean a text: `4:00:00` without quotes is 14400 to it, `00123` is 83, `on` is true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig, StringNode
from omegaconf.base import Node

from hpctool.errors import ConfigError

_BASE_60_OR_8 = re.compile(r"[-+]?(?:[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|0[0-7_]+)")


def check_file(path: Path) -> None:
    """Raises ConfigError on the first value of a user's file that YAML takes for a number to the base of 60 or 8."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not _BASE_60_OR_8.search(text):
        return
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return  # who composes it says what is wrong
    for key, node in _scalars(root):
        if node.style is None and _BASE_60_OR_8.fullmatch(node.value) and not node.tag.endswith(":str"):
            raise ConfigError(
                key,
                f"{path}, line {node.start_mark.line + 1}, has {node.value} without quotes, which YAML takes for the "
                f'number {yaml.safe_load(node.value)}. Write "{node.value}".',
            )


def _scalars(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every value with its dotted key."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _scalars(one, key)
    elif isinstance(node, yaml.MappingNode):
        for name, one in node.value:
            yield from _scalars(one, f"{key}.{name.value}" if key else str(name.value))


def check_texts(typed: DictConfig, cfg: DictConfig, prefix: str = "") -> None:
    """Raises ConfigError where a text of `typed` was true or false in `cfg`, and is the text `True` now."""
    for key in typed.keys() & cfg.keys():
        node, given = typed._get_node(key), cfg._get_node(key)
        if not isinstance(given, Node) or given._is_none() or given._is_missing() or given._is_interpolation():
            continue
        name = f"{prefix}{key!s}"
        if isinstance(node, DictConfig) and isinstance(given, DictConfig):
            check_texts(node, given, f"{name}.")
        elif isinstance(node, StringNode) and isinstance(given._value(), bool):
            said = str(given._value()).lower()
            raise ConfigError(
                name, f"it takes a text and got {said}; YAML also takes on, off, yes and no so. Quote it."
            )
