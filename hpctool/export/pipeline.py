"""From a trained run to a published bundle: observe, calibrate, export, compare, write, publish. In this order.

A bundle that fails on the way is not published; its staging folder goes, and the error says where and how much.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpctool.errors import ConfigError, ParityError, size_text
from hpctool.export import calibration, child, golden, parity, torchscript
from hpctool.export.deployed import OUTPUTS, Deployed
from hpctool.export.lineage import lineage_of
from hpctool.export.observe import Observed, check_decisions, observe
from hpctool.export.publish import Published, publish, put, put_json, staging
from hpctool.export.reference import reference
from hpctool.export.schema import FORMATS, ExportConfig
from hpctool.export.signature import DATATYPES, Signature, TensorSpec
from hpctool.export.source import Source, deployed, model_dtype
from hpctool.export.statistics import output_statistics
from hpctool.train.scores import softmax

_EXAMPLE_ROWS = 3  # for tracing: neither 1, which broadcasts, nor a size that anybody would bake in on purpose

Say = Callable[[str], None]


def export_job(cfg: ExportConfig) -> dict[str, Any]:
    """The job: export, say what came of it, and give what result.json keeps."""
    published = export_run(cfg)
    bundle = published.bundle
    print(f"{bundle} is published: {bundle.path}" if published.is_new else f"{bundle} has the same content already.")
    lineage, calibrated = bundle.lineage(), bundle.reference()["calibration"]
    return {
        "metrics": {f"calibration/{key}": calibrated[key] for key in ("ece_before", "ece_after")},
        "param_digest": lineage["param_digest"],
        "data_commit": lineage["data"]["commit"],
        "outputs": {"model": str(bundle), "path": str(bundle.path), "content": bundle.manifest()["content"]},
    }


def export_run(cfg: ExportConfig, say: Say = print) -> Published:
    """Export `cfg.run` as the next version of `cfg.bundle.name`, or find the version that has the same content.

    Raises ParityError where the graph does not answer like the model, OperationError, InputError, CorruptError.
    """
    assert cfg.bundle.name is not None, "resolve has pinned the bundle's name"
    source = Source.open(cfg)
    original = deployed(source.rundir)
    gate = _gate(original, cfg)
    seen = observe(source, original, max(gate.batch_sizes))
    fit = calibration.Fit(1.0, "not asked for")
    if cfg.calibration.fit:
        fit = calibration.fit_temperature(seen.logits, seen.labels)
    say(f"temperature {fit.temperature:.4f}" + (f": {fit.note}" if fit.note else ""))
    original.temperature = fit.temperature
    with staging(Path(cfg.paths.models), cfg.bundle.name) as staged:
        signature = _export_graph(staged, source, original, seen, gate, say)
        put_json(staged, "signature.json", signature.to_json())
        put(staged, "golden.npz", golden.to_bytes(_golden(source, original, seen, cfg.bundle.num_golden)))
        found = reference(
            seen.inputs,
            seen.logits,
            seen.labels,
            fit,
            split=cfg.data.split,
            num_bins=cfg.reference.num_bins,
            num_calibration_bins=cfg.calibration.num_bins,
        )
        put_json(staged, "reference.json", found)
        return publish(staged, lineage_of(source))


def _gate(original: Deployed, cfg: ExportConfig) -> parity.Gate:
    dtype = model_dtype(original)
    if dtype not in cfg.parity.tolerance:
        raise ConfigError("parity.tolerance", f"the model's parameters are {dtype}; add +parity.tolerance.{dtype}=….")
    return parity.Gate(cfg.parity.batch_sizes, cfg.parity.repeats, cfg.parity.tolerance[dtype])


def _export_graph(
    staged: Path, source: Source, original: Deployed, seen: Observed, gate: parity.Gate, say: Say
) -> Signature:
    """Write model.ts and show that it answers like the original."""
    rows = source.inputs(source.rows[: max(gate.batch_sizes)])
    graph = child.graph_of(source.rundir, original.temperature, np.resize(rows, (_EXAMPLE_ROWS, *rows.shape[1:])))
    say(f"{graph.method}, {size_text(len(graph.data))}" + (f" ({graph.reason})" if graph.reason else ""))
    for warning in graph.warnings:
        say(f"torch warns: {warning}")
    path = staged / FORMATS["torchscript"]
    put(staged, path.name, graph.data)
    module = torchscript.load(path)

    try:
        worst = parity.check(original, module, torch.from_numpy(rows), gate)
        check_decisions(source, module, seen, max(gate.batch_sizes), gate.tolerance)
    except ParityError as error:
        how = f"It was traced because it could not be scripted: {graph.reason}." if graph.method == "trace" else ""
        raise ParityError(f"{source.rundir.id} is not published. {error} {how}".strip()) from error
    sizes = ", ".join(map(str, gate.batch_sizes))
    say(f"parity: largest difference {worst:.2g} at batch sizes {sizes}; all {len(source.rows)} decisions agree")
    return _signature(source, original, graph, gate, rows)


def _signature(
    source: Source, original: Deployed, graph: torchscript.Graph, gate: parity.Gate, rows: golden.Array
) -> Signature:
    num_classes = len(source.classes)
    return Signature(
        inputs=[TensorSpec(source.feature, DATATYPES[str(rows.dtype)], [-1, *rows.shape[1:]])],
        outputs=[TensorSpec(name, "FP32", [-1, num_classes]) for name in OUTPUTS],
        classes=source.classes,
        preprocessing=_in_words(original.preprocess),
        temperature=original.temperature,
        dtype=model_dtype(original),
        tolerance=gate.tolerance,
        batch_sizes=list(gate.batch_sizes),
        method=graph.method,
        reason=graph.reason,
        torch=torch.__version__,
    )


def _in_words(preprocess: torch.nn.Module) -> str:
    """What a preprocessing module does: its name and the first paragraph of its docstring."""
    kind = type(preprocess)
    paragraph = (kind.__doc__ or "").strip().split("\n\n")[0]
    return f"{kind.__name__}: {' '.join(paragraph.split())}" if paragraph else kind.__name__


def _golden(source: Source, original: Deployed, seen: Observed, num_rows: int) -> golden.Golden:
    """Rows of the split, the hardest among them, and the edge cases, with the original's answers."""
    margins_N = output_statistics(softmax(seen.logits))["margin"]
    chosen = source.rows[golden.choose_rows(margins_N, num_rows)]
    inputs, uids = golden.with_edges(source.inputs(chosen), source.version.uids(chosen))
    return golden.Golden(inputs, parity.answers(original, torch.from_numpy(inputs)), uids)
