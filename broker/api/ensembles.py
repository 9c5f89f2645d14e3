"""Ensembles over the API: their four calls, the requests they take, and an ensemble as it is shown.

Nothing is decided here; a request is read with all its bad fields named, as in calls.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Final

from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb

from broker.api import names
from broker.api.digest import request_digest
from broker.api.enums import CAUSES
from broker.api.fields import Problems
from broker.api.serving import Calls, Context, Shown, answered
from broker.api.times import rfc3339, timestamp
from broker.api.wire import embedded, number_of
from broker.core.clock import Clock
from broker.core.errors import FieldReason
from broker.core.model import Ensemble, EnsembleState, Workspace
from broker.core.requests import EnsembleRequest, EnsembleTarget
from broker.ensembles import Ensembles

STATES: Final[Mapping[EnsembleState, pb.Ensemble.State]] = {
    each: getattr(pb.Ensemble, f"STATE_{each}") for each in EnsembleState
}
_SEALED: Final = number_of(calls_pb.SealEnsembleResponse, "workspaces")
_NOBODY: Final = ("", "")

ANSWER_BYTES: Final = 3 * 1024 * 1024
"""An answer to a seal shows workspaces until this is reached; the ensemble names them all."""


def create_request(message: calls_pb.CreateEnsembleRequest, now: datetime) -> EnsembleRequest:
    """CreateEnsemble. What is output only is not looked at."""
    problems = Problems()
    expire_time = None
    if message.ensemble.HasField("expire_time"):
        at = "ensemble.expire_time"
        longest = problems.limits.ensemble
        expire_time = problems.instant(at, message.ensemble.expire_time, now)
        if expire_time is not None and expire_time <= now:
            past = f"{rfc3339(expire_time)} is past; the broker's time is {rfc3339(now)}"
            problems.add(at, FieldReason.IN_THE_PAST, past)
        elif expire_time is not None and expire_time > now + longest:
            problems.add(at, FieldReason.OUT_OF_RANGE, f"is later than {longest.days} days from now, {rfc3339(now)}")
    request = EnsembleRequest(
        tenant=problems.attempt(names.tenant, message.parent, "parent", ""),
        ensemble_id=problems.identifier("ensemble_id", message.ensemble_id),
        expire_time=expire_time,
        request_id=problems.token("request_id", message.request_id),
        digest=request_digest(message),
        validate_only=message.validate_only,
    )
    problems.check()
    return request


def target(message: calls_pb.SealEnsembleRequest | calls_pb.CancelEnsembleRequest) -> EnsembleTarget:
    """SealEnsemble and CancelEnsemble."""
    problems = Problems()
    tenant, ensemble = problems.attempt(names.ensemble, message.name, "name", _NOBODY)
    request = EnsembleTarget(
        tenant=tenant,
        ensemble_id=ensemble,
        request_id=problems.token("request_id", message.request_id),
        etag=problems.token("etag", message.etag),
        digest=request_digest(message),
        validate_only=isinstance(message, calls_pb.SealEnsembleRequest) and message.validate_only,
    )
    problems.check()
    return request


def render(ensemble: Ensemble, members: list[Workspace], etag: str) -> pb.Ensemble:
    """An ensemble with its workspaces' names."""
    return pb.Ensemble(
        name=ensemble.name,
        state=STATES[ensemble.state],
        expire_time=timestamp(ensemble.expire_time),
        workspaces=[member.name for member in members],
        etag=etag,
        create_time=timestamp(ensemble.create_time),
        cause=CAUSES[ensemble.cause],
    )


class EnsembleCalls:
    """The part of the workspaces' service that is about ensembles."""

    _calls: Calls
    _ensembles: Ensembles
    _shown: Shown
    _clock: Clock

    def _shown_ensemble(self, ensemble: Ensemble) -> pb.Ensemble:
        return render(ensemble, self._ensembles.members(ensemble), self._ensembles.etag(ensemble))

    @answered
    async def CreateEnsemble(
        self, request: calls_pb.CreateEnsembleRequest, context: Context
    ) -> calls_pb.CreateEnsembleResponse:
        made = await self._ensembles.create(create_request(request, self._clock.now()))
        return calls_pb.CreateEnsembleResponse(ensemble=self._shown_ensemble(made))

    @partial(answered, at_once=True)
    async def GetEnsemble(self, request: calls_pb.GetEnsembleRequest, context: Context) -> calls_pb.GetEnsembleResponse:
        found = self._ensembles.get(*names.ensemble(request.name))
        return calls_pb.GetEnsembleResponse(ensemble=self._shown_ensemble(found))

    @answered
    async def SealEnsemble(self, request: calls_pb.SealEnsembleRequest, context: Context) -> bytes:
        sealed, workspaces = await self._ensembles.seal(target(request))
        answer = calls_pb.SealEnsembleResponse(ensemble=self._shown_ensemble(sealed))
        parts = [answer.SerializeToString()]
        size = 0
        for workspace in workspaces:
            wire = self._shown.wire(workspace)
            size += len(wire)
            if size > ANSWER_BYTES:
                break
            parts.append(embedded(_SEALED, wire))
        return b"".join(parts)

    @answered
    async def CancelEnsemble(
        self, request: calls_pb.CancelEnsembleRequest, context: Context
    ) -> calls_pb.CancelEnsembleResponse:
        cancelled = await self._ensembles.cancel(target(request))
        return calls_pb.CancelEnsembleResponse(ensemble=self._shown_ensemble(cancelled))
