"""The version in service: loaded, tested and warm before the first request sees it, and changed between two batches."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from hpctool.errors import HpctoolError, OperationError, UnknownName, counted
from hpctool.export import aliases
from hpctool.export.bundle import Bundle
from hpctool.export.verify import Loaded, load_verified
from hpctool.serve.batcher import Batcher, Outputs
from hpctool.serve.log import say
from hpctool.serve.metrics import Metrics
from hpctool.serve.protocol import Query, Refused
from hpctool.serve.schema import ServeConfig
from hpctool.serve.writer import JournalWriter
from hpctool.world import Array

_WARM_UP_CALLS = 3  # TorchScript changes its kernels after the first call


class Served:
    """One version in service, with its own journal writer."""

    def __init__(self, loaded: Loaded, writer: JournalWriter, max_batch_rows: int) -> None:
        self.bundle = loaded.bundle
        self.signature = loaded.signature
        self.manifest = loaded.bundle.manifest()
        self.writer = writer
        self._loaded = loaded
        self._max_batch_rows = max_batch_rows
        spec = loaded.signature.inputs[0]
        self._fits = (spec.dtype, tuple(spec.shape[1:]))

    def refusal(self, query: Query) -> Refused | None:
        """Why this version cannot answer: another was asked for, or the inputs are of another kind. None if it can."""
        if query.version and query.version != self.bundle.version:
            return unknown_version(self, query.version)
        if (query.inputs.dtype, query.inputs.shape[1:]) == self._fits:
            return None
        spec = self.signature.inputs[0]
        return Refused(400, f"{self.bundle} is in service now, which takes {spec.datatype} of shape {spec.shape}.")

    def answer(self, inputs: Array) -> Outputs:
        """The outputs by name, each float32 (N, K); a large request goes through in parts."""
        parts = [
            self._loaded(inputs[i : i + self._max_batch_rows]) for i in range(0, len(inputs), self._max_batch_rows)
        ]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def record(self, request: Array, source: Array, inputs: Array, outputs: Outputs) -> int:
        """Take predictions into the journal; the first one's number."""
        return self.writer.add(request, source, inputs, outputs["probabilities"], outputs["logits"])


def warm_up(loaded: Loaded, max_batch_rows: int) -> None:
    """Run the smallest and the largest batch, so that no request pays for a first call."""
    spec = loaded.signature.inputs[0]
    for rows in (1, max_batch_rows):
        for _ in range(_WARM_UP_CALLS):
            loaded(np.zeros((rows, *spec.shape[1:]), spec.dtype))


def unknown_version(served: Served, version: str) -> Refused:
    """What is answered to somebody who asks for another version than the one in service."""
    return Refused(404, f"Version '{version}' is not in service; {served.bundle} is.")


class Runtime:
    """The version in service and the thread that follows its alias. A version that fails its test is refused."""

    def __init__(self, cfg: ServeConfig, run: str, metrics: Metrics) -> None:
        """Load the first version. Raises UnknownName, CorruptError, ParityError, NewerFormat."""
        self.cfg = cfg
        self.run = run
        self.models = Path(cfg.paths.models)
        self.name, _, self.revision = cfg.serve.model.partition("@")
        #: why the version that the alias points at is not in service; empty where it is
        self.refused = ""
        self._metrics = metrics
        self._retired: list[JournalWriter] = []
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="alias", daemon=True)
        self._seen = self._alias_entry()
        self.current = self._load(aliases.resolve(self.models, cfg.serve.model))
        self._announce()

    def start(self, batcher: Batcher) -> None:
        """Follow the alias from now on; a fixed version is never changed."""
        self._batcher = batcher
        if not self.revision.isdecimal():
            self._follower.start()

    @property
    def backlog_rows(self) -> int:
        """Predictions that are given and not yet on disk, also those of a version that was just replaced."""
        return sum(writer.backlog_rows for writer in (*self._retired, self.current.writer))

    def stop(self) -> None:
        """End following the alias."""
        self._stop.set()
        if self._follower.is_alive():
            self._follower.join()

    def close(self) -> None:
        """Write the rest of the journal; nothing may be recorded any more. Raises OperationError on what is lost."""
        problem: OSError | None = None
        for writer in (*self._retired, self.current.writer):
            try:
                writer.close()
            except OSError as error:
                problem = error
        if problem:
            raise OperationError(
                f"The journal in {self.current.writer.folder} cannot be written: {problem}. "
                f"{counted(self.backlog_rows, 'prediction')} that were answered are lost. Make room there before the "
                "next start."
            ) from problem

    def look(self) -> None:
        """Look where the alias points, and change to it if it has moved. Raises nothing: what goes wrong is said."""
        entry = self._seen
        try:
            entry = self._alias_entry()
            if entry == self._seen:
                return
            bundle = aliases.resolve(self.models, self.cfg.serve.model)
            if str(bundle) != str(self.current.bundle):
                self._change_to(self._load(bundle))
            self._seen, self.refused = entry, ""
        except Exception as error:  # whatever a model may raise, the one in service goes on
            # A network file system may show the alias before the bundle; what fails its test will fail again.
            if not isinstance(error, OSError | UnknownName):
                self._seen = entry
            self._refuse(str(error) if isinstance(error, HpctoolError) else f"{type(error).__name__}: {error}")

    def _change_to(self, new: Served) -> None:
        self._retired.append(self.current.writer)
        self.current = new
        self._batcher.swap(new)
        self._announce()
        self._metrics.swaps.labels("changed").inc()

    def _close_retired(self) -> None:
        """Close the writers that have written everything; the others keep trying (the disk may be full)."""
        for writer in [w for w in self._retired if not w.backlog_rows]:
            writer.close()
            self._retired.remove(writer)

    def _refuse(self, reason: str) -> None:
        said = f"{self.cfg.serve.model} has moved and is refused; {self.current.bundle} stays in service. {reason}"
        if said != self.refused:
            say(said)
            self._metrics.swaps.labels("refused").inc()
        self.refused = said

    def _announce(self) -> None:
        say(f"{self.current.bundle} is in service")
        self._metrics.model(self.current.bundle.name, self.current.bundle.version)

    def _load(self, bundle: Bundle) -> Served:
        import torch

        # In every thread that runs a model: OpenMP's default would take all cores from the requests.
        torch.set_num_threads(self.cfg.num_threads)
        loaded = load_verified(bundle.path)
        warm_up(loaded, self.cfg.serve.max_batch_rows)
        writer = JournalWriter(
            Path(self.cfg.paths.journals) / self.name,
            model=str(bundle),
            bundle=bundle.manifest()["digest"],
            origin="server",
            run=self.run,
            segment_rows=self.cfg.journal.segment_rows,
            flush_s=self.cfg.journal.flush_s,
        )
        return Served(loaded, writer, self.cfg.serve.max_batch_rows)

    def _alias_entry(self) -> int:
        """The number of the alias's newest entry; 0 for a fixed version."""
        move = None if self.revision.isdecimal() else aliases.current(self.models, self.name, self.revision)
        return move.number if move else 0

    def _follow(self) -> None:
        while not self._stop.wait(self.cfg.serve.poll_s):
            self.look()
            self._close_retired()
