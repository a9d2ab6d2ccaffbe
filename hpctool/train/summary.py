"""What a model consists of, as a table: parameters and bytes of each block. Written into the run's artifacts."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hpctool.errors import size_text

#: deeper modules are counted with the one that they are in
_DEPTH = 2


def headline(model: nn.Module) -> str:
    """`MLP: 25,994 parameters (102 kB)`, and how many of them are frozen."""
    num, num_bytes, num_trained = _count(model)
    frozen = f", {num - num_trained:,} of them frozen" if num_trained < num else ""
    return f"{type(model).__name__}: {num:,} parameters ({size_text(num_bytes)}){frozen}"


def table(model: nn.Module) -> str:
    """One line for each block: name, class, parameters, bytes; shared parameters count where they are first met."""
    rows = [("block", "class", "parameters", "size", "trained")]
    for name, module in _blocks(model):
        num, num_bytes, num_trained = _count(module)
        rows.append((name, type(module).__name__, f"{num:,}", size_text(num_bytes), _yes(num_trained)))
    listed = {id(p) for _, module in _blocks(model) for p in module.parameters()}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in listed]
    rows += [(n, "Parameter", f"{p.numel():,}", size_text(p.nbytes), _yes(p.requires_grad)) for n, p in rest]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(_cell(row, column, widths) for column in range(5)).rstrip() for row in rows]
    return "\n".join([headline(model), "", *lines, ""])


def _yes(trained: int) -> str:
    return "yes" if trained else "no"


def _blocks(module: nn.Module, prefix: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        inside = list(_blocks(child, f"{prefix}{name}.", depth - 1)) if depth > 1 else []
        covered = sum(_count(part)[0] for _, part in inside)
        yield from inside if inside and covered == _count(child)[0] else [(f"{prefix}{name}", child)]


def _count(module: nn.Module) -> tuple[int, int, int]:
    parameters = list(module.parameters())
    num_trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters), num_trained


def _cell(row: tuple[str, ...], column: int, widths: list[int]) -> str:
    return row[column].rjust(widths[column]) if column in (2, 3) else row[column].ljust(widths[column])
