"""Every counter of the broker, named once.

Each broker has a registry of its own, so that several in one process (tests) do not add up. Names follow the
Prometheus conventions; `server.metrics` in the configuration serves them over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server


class Metrics:
    """The counters and gauges; the attribute is the one place where a name is bound."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.creates = Counter(
            "workspace_creates",
            "CreateWorkspace by outcome: ok, or the reason",
            ["outcome"],
            registry=self.registry,
        )
        self.backend_calls = Counter(
            "backend_calls",
            "Calls to a backend by outcome",
            ["pool", "call", "outcome"],
            registry=self.registry,
        )
        self.backend_retries = Counter(
            "backend_retries",
            "Calls to a backend that are tried again",
            ["pool", "call"],
            registry=self.registry,
        )
        self.pool_unreachable = Counter(
            "pool_unreachable", "Times a pool's breaker opened", ["pool"], registry=self.registry
        )
        self.transitions = Counter(
            "node_transitions", "Node state changes", ["pool", "state", "cause"], registry=self.registry
        )
        self.policy_failures = Counter(
            "policy_failures",
            "Times a third party's policy did not answer as it has to, and the default did: error, late, or answer",
            ["kind", "name", "why"],
            registry=self.registry,
        )
        self._ok: dict[tuple[str, str], Counter] = {}  # looking a counter up by its labels costs more than counting
        self.watchers = Gauge("watchers", "Open watch streams", registry=self.registry)

    def succeeded(self, pool: str, call: str) -> None:
        """Counts a call to a backend that went well, as nearly all do."""
        counter = self._ok.get((pool, call))
        if counter is None:
            counter = self._ok[pool, call] = self.backend_calls.labels(pool, call, "ok")
        counter.inc()

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serves them over HTTP, in a thread of its own; returns what stops it. Raises OSError."""
        server, thread = start_http_server(port, host, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def value(self, name: str, /, **labels: str) -> float:
        """A sample's present value; 0 where nothing was counted yet."""
        return self.registry.get_sample_value(name, labels) or 0.0
