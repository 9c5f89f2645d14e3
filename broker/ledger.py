"""Mutations, once: a request id gets one effect and one answer, however often and whenever it is sent.

A mutation is decided in one transaction that also writes down its request id with a hash of all that was asked; the
answer waits until both are durable. The same id with the same request gets the resource as it is now; with other
content it is refused. What is refused, or only tried, leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from msgspec import Struct

from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Reason
from broker.core.model import Ensemble, RequestRecord, Workspace

Resource = TypeVar("Resource", Workspace, Ensemble)
"""What a mutation makes or changes; which of the two, its method says."""


class Call(Struct, frozen=True, kw_only=True):
    """Which call it is: the scope of its request id ("": none), and what was asked."""

    tenant: str
    method: str
    request_id: str
    digest: str


class _OnlyTried(Exception):
    """Takes a trial back."""


class Ledger:
    """The answered request ids."""

    def __init__(self, book: Book, clock: Clock) -> None:
        self._book = book
        self._clock = clock

    async def once(self, call: Call, decide: Callable[[Transaction], Resource], *, trial: bool = False) -> Resource:
        """Decides a mutation, or finds how it was decided before. `trial`: every check is made and nothing kept."""
        with self._book.call():
            known = await self._answered(call)
            if known is not None:
                return cast(Resource, known)
            try:
                with self._book.transaction(awaited=True) as tx:
                    resource = decide(tx)
                    if trial:
                        raise _OnlyTried
                    if call.request_id:
                        tx.remember(self._record(call, resource.uid))
            except _OnlyTried:
                return resource
            await tx.durable()
            return resource

    def _record(self, call: Call, uid: str) -> RequestRecord:
        return RequestRecord(
            tenant=call.tenant,
            method=call.method,
            request_id=call.request_id,
            digest=call.digest,
            uid=uid,
            time=self._clock.now(),
        )

    async def _answered(self, call: Call) -> Workspace | Ensemble | None:
        """What an earlier call with this id made or changed, as it is now; None for a new id."""
        key = (call.tenant, call.method, call.request_id)
        record = self._book.requests.get(key) if call.request_id else None
        if record is None:
            return None
        await self._book.settled()  # an answer must not promise what is not durable yet
        resource = self._book.workspaces.get(record.uid) or self._book.ensembles.get(record.uid)
        if resource is None:
            return None
        if record.digest != call.digest:
            raise BrokerError(
                Reason.REQUEST_ID_REUSED,
                f'request_id "{call.request_id}" was used for another {call.method} '
                f"(it made or changed {resource.name}); use a new id for a new request",
                resource=resource.name,
                metadata={"request_id": call.request_id},
            )
        return resource


def matching(workspace: Workspace, etag: str) -> Workspace:
    """The workspace, if it is still as its caller read it ("": however it is). Raises ETAG_MISMATCH."""
    check_etag(workspace.name, etag, workspace.etag)
    return workspace


def check_etag(name: str, etag: str, now: str) -> None:
    """Raises ETAG_MISMATCH where a caller read another etag than a resource has now."""
    if etag and etag != now:
        raise BrokerError(
            Reason.ETAG_MISMATCH,
            f"{name} has changed since you read it (etag {etag}, now {now}); read it again",
            resource=name,
            metadata={"etag": now},
        )
