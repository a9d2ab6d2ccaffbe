"""Exporting in a process of its own: `python -m hpctool.export.child`, a request on stdin, files in its folder.

torch numbers the types that a process has scripted, so only a fresh process gives the same bytes every time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from hpctool import files
from hpctool.errors import HpctoolError, OperationError
from hpctool.export.torchscript import Graph
from hpctool.rundir import RunDir
from hpctool.world import Array


def graph_of(rundir: RunDir, temperature: float, example: Array) -> Graph:
    """The exported graph of a run; `example` is a batch to trace with. Raises OperationError with torch's reason."""
    with tempfile.TemporaryDirectory(prefix="hpctool-export-") as folder:
        np.save(Path(folder) / "example.npy", example, allow_pickle=False)
        request = {"run": str(rundir.path.absolute()), "temperature": temperature.hex(), "folder": folder}
        # The same modules are found as here, in the same order, the user's own among them.
        search_path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": search_path, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "hpctool.export.child"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise OperationError(f"The model of {rundir.id} could not be exported: {lines[-1]}")
        report = files.read_json(Path(folder) / "report.json")
        return Graph((Path(folder) / "graph").read_bytes(), report["method"], report["reason"], report["warnings"])


def main() -> int:
    """The child: load the run, export it, leave the bytes and a report."""
    import torch

    from hpctool.export import source, torchscript

    request = json.load(sys.stdin)
    folder = Path(request["folder"])
    torch.set_num_threads(1)
    try:
        module = source.deployed(RunDir(Path(request["run"])), float.fromhex(request["temperature"]))
        example = torch.from_numpy(np.load(folder / "example.npy", allow_pickle=False))
        graph = torchscript.to_graph(module, example)
    except HpctoolError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    (folder / "graph").write_bytes(graph.data)
    report = {"method": graph.method, "reason": graph.reason, "warnings": graph.warnings}
    files.write_json(folder / "report.json", report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
