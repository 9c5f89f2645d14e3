"""When a pool counts as unreachable: a breaker over all its calls.

So many failures in a row with no answer between them open it; then the pool is UNREACHABLE, its tasks wait, and only
the observer's probe asks the backend, until it answers again. Silence changes nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker.core.clock import Clock
from broker.core.errors import Failure, Reason
from broker.metrics import Metrics
from broker.pools import Pool

log = logging.getLogger(__name__)


class Breaker:
    """Opens and closes one pool."""

    def __init__(self, pool: Pool, clock: Clock, metrics: Metrics) -> None:
        self._pool = pool
        self._clock = clock
        self._metrics = metrics
        self._failures = 0
        self._opened_at: float | None = None
        self.on_change: Callable[[float | None], None] = lambda outage: None
        """Called with None when it opens, with the outage's seconds when it closes."""

    @property
    def open(self) -> bool:
        """Whether the pool counts as unreachable."""
        return not self._pool.reachable.is_set()

    def failed(self, error: BaseException) -> None:
        """A call failed without an answer."""
        self._failures += 1
        if self._failures == 1:
            log.warning("pool=%s error=%s", self._pool.name, error)
        self._pool.last_error = Failure(
            reason=Reason.BACKEND_UNREACHABLE,
            message=str(error),
            resource=f"pools/{self._pool.name}",
            metadata={"failures": str(self._failures)},
        )
        if self._opened_at is None and self._failures >= self._pool.settings.breaker.failures:
            self._opened_at = self._clock.monotonic()
            self._pool.reachable.clear()
            self._metrics.pool_unreachable.labels(self._pool.name).inc()
            log.warning("pool=%s state=UNREACHABLE failures=%d error=%s", self._pool.name, self._failures, error)
            self.on_change(None)

    def answered(self) -> None:
        """The backend answered, if only with a refusal. While open, only a complete look closes it (`looked`)."""
        if not self.open and self._failures:
            self._failures = 0
            self._pool.last_error = None

    def looked(self) -> None:
        """The backend answered a complete look."""
        self._failures = 0
        if self.open:
            outage = self._clock.monotonic() - self._opened_at if self._opened_at is not None else 0.0
            self._opened_at = None
            self._pool.reachable.set()
            log.info("pool=%s state=ACTIVE outage=%.1fs", self._pool.name, outage)
            self.on_change(outage)
