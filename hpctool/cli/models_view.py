"""What `hpctool models` shows: a row per version, and everything about one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpctool.cli.lineage import print_tree
from hpctool.cli.output import cell_text, console
from hpctool.cli.tables import Column, age_text, print_columns
from hpctool.errors import size_text
from hpctool.export import aliases
from hpctool.export.bundle import Bundle
from hpctool.track.lineage import Node
from hpctool.track.row import noting

_SHORT_HEX = 12


def row(models: Path, bundle: Bundle) -> dict[str, Any]:
    """A version as `models list --json` has it; what cannot be read is said in `problems`."""
    found: dict[str, Any] = {"name": bundle.name, "version": bundle.version, "aliases": [], "metrics": {}}
    found |= {"size_bytes": None, "run": None, "created": None, "content": None, "path": str(bundle.path)}
    problems: list[str] = []
    with noting(problems):
        found["aliases"] = aliases.of_version(models, bundle.name).get(bundle.version, [])
        manifest = bundle.manifest()
        found |= {"created": manifest["created"], "content": manifest["content"]}
        found["size_bytes"] = sum(one["size_bytes"] for one in manifest["files"].values())
        lineage = bundle.lineage()
        found |= {"run": lineage["run"], "metrics": lineage["metrics"]}
    return {**found, "problems": problems}


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the versions as a table that fits the terminal."""
    accuracies = [one["metrics"].get("val/accuracy") for one in rows]
    print_columns(
        [
            Column("model", [one["name"] for one in rows], style="bold"),
            Column("version", [Text(one["version"], "bold red" if one["problems"] else "") for one in rows]),
            Column("aliases", [", ".join(one["aliases"]) for one in rows], style="green", min_width=10),
            Column("val/accuracy", ["" if value is None else f"{value:.4f}" for value in accuracies]),
            Column("size", [size_text(one["size_bytes"] or 0) for one in rows], rank=1),
            Column("run", [one["run"] for one in rows], style="cyan", min_width=12),
            Column("age", [age_text(one["created"]) for one in rows], rank=1),
        ]
    )


def details(models: Path, bundle: Bundle) -> dict[str, Any]:
    """A version as `models show --json` has it, without its lineage. Raises CorruptError, NewerFormat."""
    reference = bundle.reference()
    histories = {alias: aliases.history(models, bundle.name, alias) for alias in aliases.names(models, bundle.name)}
    return {
        **row(models, bundle),
        "signature": bundle.signature().to_json(),
        "calibration": reference["calibration"],
        "num_reference_rows": reference["num_rows"],
        "history": {alias: [vars(move) for move in moves] for alias, moves in histories.items()},
        "files": bundle.manifest()["files"],
    }


def print_details(found: dict[str, Any], lineage: Node) -> None:
    """Print everything about one version."""
    out = console()
    head = Text.assemble((f"{found['name']}@{found['version']}", "bold"))
    head.append(f"  {', '.join(found['aliases'])}", "green")
    out.print(head)
    signature, calibration = found["signature"], found["calibration"]
    facts = [
        ("takes", _tensors(signature["inputs"])),
        ("gives", _tensors(signature["outputs"])),
        ("classes", _classes(signature["classes"])),
        ("preprocess", signature["preprocessing"]),
        ("graph", _graph(signature)),
        ("metrics", "   ".join(f"{k} {cell_text(v)}" for k, v in found["metrics"].items())),
        ("temperature", _calibration(calibration)),
        ("created", f"{found['created']}, {age_text(found['created'])} ago"),
        ("content", found["content"][:_SHORT_HEX]),
        ("path", found["path"]),
    ]
    out.print(Padding(_grid(facts), (1, 0, 1, 2), expand=False))
    print_tree(lineage)
    _print_history(found["history"])
    out.print()
    listed = sorted(found["files"].items())
    print_columns(
        [
            Column("file", [name for name, _ in listed]),
            Column("size", [size_text(one["size_bytes"]) for _, one in listed]),
            Column("sha256", [one["sha256"] for _, one in listed], style="dim", min_width=_SHORT_HEX),
        ]
    )


def _print_history(histories: dict[str, list[dict[str, Any]]]) -> None:
    moves = [(alias, move) for alias, found in histories.items() for move in found]
    if not moves:
        return
    console().print()
    print_columns(
        [
            Column("alias", [alias for alias, _ in moves], style="green"),
            Column("version", [move["version"] for _, move in moves]),
            Column("by", [f"{move['operation']}, {move['by']}" for _, move in moves], min_width=8),
            Column("age", [age_text(move["time"]) for _, move in moves], rank=1),
            Column("message", [move["message"] for _, move in moves], rank=2, min_width=12),
        ]
    )


def _grid(facts: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, text in facts:
        grid.add_row(name, Text(text))
    return grid


def _tensors(specs: list[dict[str, Any]]) -> str:
    return "   ".join(f"{s['name']} {s['datatype']} [{', '.join(map(str, s['shape']))}]" for s in specs)


def _classes(classes: list[str], limit: int = 20) -> str:
    more = f" and {len(classes) - limit} more" if len(classes) > limit else ""
    return f"{len(classes)}: {', '.join(classes[:limit])}{more}"


def _graph(signature: dict[str, Any]) -> str:
    sizes = ", ".join(map(str, signature["batch_sizes"]))
    reason = f" ({signature['reason']})" if signature["reason"] else ""
    made = f"{signature['method']}, torch {signature['torch']}, {signature['dtype']}{reason}"
    return f"{made}; parity within {signature['tolerance']:.0e} shown at batch sizes {sizes}"


def _calibration(found: dict[str, Any]) -> str:
    said = f"{found['temperature']:.4f}, from {found['num_rows']} rows"
    if not found["num_rows"]:
        return f"{said}; {found['note']}"
    loss = f"; log loss {found['nll_before']:.4f} before, {found['nll_after']:.4f} after"
    error = f"; calibration error {found['ece_before']:.4f} before, {found['ece_after']:.4f} after"
    return said + loss + error + (f"; {found['note']}" if found["note"] else "")
