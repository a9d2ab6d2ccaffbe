"""What /metrics says, in a registry of its own: one process, no files shared between processes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = tuple(float(2**n) for n in range(13))


class Metrics:
    """The counters of one server; prometheus-client makes them safe for threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("hpctool_requests", "Requests by HTTP status.", ["code"], registry=self.registry)
        self.request_s = self._histogram("hpctool_request_seconds", "From a request's head to its answer.", _SECONDS)
        self.rows = Counter("hpctool_rows", "Rows that went through the model.", registry=self.registry)
        self.batch_rows = self._histogram("hpctool_batch_rows", "Rows in a batch.", _ROWS)
        self.queue_wait = self._histogram("hpctool_queue_wait_seconds", "The longest wait in each batch.", _SECONDS)
        self.swaps = Counter("hpctool_model_swaps", "Changes of the version.", ["result"], registry=self.registry)
        self._model = Gauge(
            "hpctool_model_info", "The version in service.", ["model", "version"], registry=self.registry
        )

    def model(self, name: str, version: str) -> None:
        """Say which version is in service."""
        self._model.clear()
        self._model.labels(name, version).set(1)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is asked for its value when somebody looks."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=buckets)
