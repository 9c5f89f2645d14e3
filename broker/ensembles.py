"""The use cases of ensembles: open, add, seal, cancel. Several workspaces are placed together, all or none.

A workspace that is added waits for the seal: it is in no queue and holds nothing but its tenant's quota of workspaces.
The seal finds a place for all of them in one transaction, or leaves everything as it was; from then on each is a
workspace like any other. What time does to ensembles stands in engine/ensembles.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from broker.admission import Admission
from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import (
    BrokerError,
    FieldReason,
    FieldsInvalid,
    FieldViolation,
    QuotaExceeded,
    QuotaViolation,
    Reason,
    not_found,
)
from broker.core.model import Cause, Ensemble, EnsembleState, Workspace
from broker.core.placement import Never, NotNow, PlacementRequest, Plan, plan
from broker.core.requests import EnsembleRequest, EnsembleTarget, WorkspaceRequest
from broker.engine.ensembles import cancel
from broker.ledger import Call, Ledger, check_etag
from broker.placing import placement_request, refused, snapshots, wanted_of, window
from broker.pools import Pool
from broker.queue import Asked, Queue
from broker.references import check_references
from broker.tenants import Tenants
from broker.together import Member, as_one, one_by_one

OPEN_FOR: Final = timedelta(hours=1)
"""How long an ensemble stays open that says nothing of it."""

MOST_OPEN: Final = 1_000
"""Ensembles of a tenant that may be open at once."""

MOST_MEMBERS: Final = 32
"""Workspaces of one ensemble."""

PAST: Final = timedelta(seconds=60)
"""By which a member's start may have passed at the seal and still mean now."""


class Ensembles:
    """Everything a tenant may do with ensembles."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        clock: Clock,
        tenants: Tenants,
        ledger: Ledger,
        queue: Queue,
        admission: Admission,
        *,
        new_uid: Callable[[], str],
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._tenants = tenants
        self._ledger = ledger
        self._queue = queue
        self._admission = admission
        self._new_uid = new_uid

    # Reading

    def get(self, tenant: str, ensemble_id: str) -> Ensemble:
        """An ensemble by name. Raises NOT_FOUND."""
        ensemble = self._book.find_ensemble(tenant, ensemble_id)
        if ensemble is None:
            raise not_found("ensemble", f"tenants/{tenant}/ensembles/{ensemble_id}")
        return ensemble

    def members(self, ensemble: Ensemble) -> list[Workspace]:
        """Its workspaces in the order they were added."""
        return self._book.members(ensemble)

    def etag(self, ensemble: Ensemble) -> str:
        """Changes with every change of it and, while it is open, of a workspace of its."""
        revisions = [ensemble.revision]
        if ensemble.open:
            known = self._book.workspaces
            revisions += [known[uid].revision for uid in ensemble.workspaces if uid in known]
        return f"r{max(revisions)}"

    # Open and cancel

    async def create(self, request: EnsembleRequest) -> Ensemble:
        """Opens an ensemble, and returns it once that is durable."""

        def decide(tx: Transaction) -> Ensemble:
            now = self._clock.now()
            tenant = request.tenant
            self._tenants.settings(tenant)
            uid = self._new_uid()
            ensemble = Ensemble(
                uid=uid,
                tenant=tenant,
                id=request.ensemble_id or f"ens-{uid[:8]}",
                create_time=now,
                expire_time=request.expire_time or now + OPEN_FOR,
            )
            if self._book.find_ensemble(tenant, ensemble.id) is not None:
                raise BrokerError(
                    Reason.NAME_TAKEN,
                    f"{ensemble.name} is there already; choose another name",
                    resource=ensemble.name,
                )
            used = self._book.open_ensembles[tenant]
            if used >= MOST_OPEN:
                subject = f"tenants/{tenant}"
                raise QuotaExceeded(
                    [QuotaViolation(subject=subject, resource="ensembles", limit=MOST_OPEN, used=used, requested=1)]
                )
            return tx.put_ensemble(ensemble)

        call = Call(
            tenant=request.tenant,
            method="CreateEnsemble",
            request_id=request.request_id,
            digest=request.digest,
        )
        return await self._ledger.once(call, decide, trial=request.validate_only)

    async def cancel(self, target: EnsembleTarget) -> Ensemble:
        """Gives up an open ensemble and its workspaces; one that was given up, or expired, stays as it is."""

        def decide(tx: Transaction) -> Ensemble:
            ensemble = self._target(target)
            if ensemble.state is EnsembleState.CANCELLED:
                return ensemble
            if not ensemble.open:
                raise _forbidden(ensemble, "cancel is not possible: it is SEALED; terminate its workspaces instead")
            return cancel(tx, self._book, ensemble, self._clock.now(), Cause.REQUESTED)

        return await self._ledger.once(_call(target, "CancelEnsemble"), decide)

    def _target(self, target: EnsembleTarget) -> Ensemble:
        ensemble = self.get(target.tenant, target.ensemble_id)
        check_etag(ensemble.name, target.etag, self.etag(ensemble))
        return ensemble

    # Add

    def unknown(self, wanted: WorkspaceRequest) -> list[FieldViolation]:
        """A violation where a request names an ensemble that is not there."""
        if wanted.ensemble is None or self._book.find_ensemble(*wanted.ensemble) is not None:
            return []
        tenant, ensemble = wanted.ensemble
        return [
            FieldViolation(
                path=f"{wanted.path}.ensemble",
                reason=FieldReason.UNKNOWN_ENSEMBLE,
                message=f"there is no ensemble tenants/{tenant}/ensembles/{ensemble}",
            )
        ]

    def add(
        self, tx: Transaction, name: tuple[str, str], record: Workspace, asked: PlacementRequest, now: datetime
    ) -> Workspace:
        """Adds a workspace that has no place yet, unless it could never have one. Raises BrokerError."""
        ensemble = self.get(*name)
        if not ensemble.open:
            raise _forbidden(ensemble, f"it is {ensemble.state} and takes no more workspaces; open another ensemble")
        members = self._book.members(ensemble)
        if len(members) >= MOST_MEMBERS:
            message = f"{ensemble.name} has {MOST_MEMBERS} workspaces, as many as one may have"
            path = "workspace.ensemble"
            raise FieldsInvalid([FieldViolation(path=path, reason=FieldReason.OUT_OF_RANGE, message=message)])
        answer = plan(asked, snapshots(self._pools.values(), now), window(wanted_of(record), now), judged=False)
        if isinstance(answer, Never):
            raise refused(answer, now, f"workspace {record.id}")
        self._tenants.check(record.tenant, record)
        if record.terms.open_ended or record.terms.duration is not None:
            self._tenants.check_length(record.tenant, record.terms.duration)
        added = tx.put(replace(record, ensemble=ensemble.id))
        tx.put_ensemble(replace(ensemble, workspaces=(*(member.uid for member in members), added.uid)))
        return added

    # Seal

    async def seal(self, target: EnsembleTarget) -> tuple[Ensemble, list[Workspace]]:
        """Places all workspaces of an ensemble or none, and returns them as they are then; what was refused may be
        sealed again. One that is sealed already stays as it is."""
        tried: list[Workspace] = []

        def decide(tx: Transaction) -> Ensemble:
            ensemble = self._target(target)
            if ensemble.state is EnsembleState.SEALED:
                return ensemble
            if not ensemble.open:
                raise _forbidden(ensemble, "seal is not possible: it is CANCELLED; open another ensemble")
            now = self._clock.now()
            waiting = self._book.members(ensemble)
            if not waiting:
                raise _forbidden(
                    ensemble, "seal is not possible: it has no workspaces; create some with Workspace.ensemble first"
                )
            self._place(tx, [self._member(workspace, now) for workspace in waiting], now)
            uids = tuple(workspace.uid for workspace in waiting)
            tried.extend(self._book.workspaces[uid] for uid in uids)
            return tx.put_ensemble(replace(ensemble, state=EnsembleState.SEALED, workspaces=uids, close_time=now))

        sealed = await self._ledger.once(_call(target, "SealEnsemble"), decide, trial=target.validate_only)
        return sealed, tried if target.validate_only and tried else self._book.members(sealed)

    def _member(self, workspace: Workspace, now: datetime) -> Member:
        """A workspace with what is asked for it now. Raises BrokerError, naming it, where that cannot be any more."""
        wanted = wanted_of(workspace)
        start = workspace.terms.start_time
        try:
            check_references(wanted, self._pools)
            if start is not None and start < now - PAST:
                raise BrokerError(
                    Reason.STATE_FORBIDS,
                    f"it was to start at {start.isoformat()}, and it is {now.isoformat()} here; terminate it, which "
                    "takes it out of the ensemble",
                    resource=workspace.name,
                    metadata={"state": workspace.state.value},
                )
        except BrokerError as error:
            raise _about(workspace, error) from None
        return Member(
            workspace=workspace,
            request=placement_request(wanted, self._tenants.allowed_pools(workspace.tenant)),
            window=window(wanted, now),
        )

    def _place(self, tx: Transaction, members: Sequence[Member], now: datetime) -> None:
        """Gives every member its place. Raises BrokerError as CreateWorkspace would, naming a member."""
        refusals: list[_DoesNotFit] = []

        def attempt(order: Sequence[Member]) -> int | None:
            try:
                with tx.part() as part:
                    for at, member in enumerate(order):
                        self._admit(part, member, self._found(member, at, now), now)
            except _DoesNotFit as refusal:
                refusals.append(refusal)
                return refusal.beside
            return None

        if one_by_one(members, attempt):
            return
        if refusals[-1].beside == 0:
            raise refusals[-1].error
        common = as_one(members, snapshots(self._pools.values(), now))
        if common is None:
            raise refusals[0].error
        found = self._queue.ask(_last_in_line(members), common.request, common.window, now)
        if not isinstance(found.answer, Plan):
            error = refused(found.answer, now, "it together with the others of the ensemble")
            raise _about(refusals[0].workspace, error)
        for member, part in zip(members, common.parted(found.answer), strict=True):
            self._admit(tx, member, Asked(answer=part, seen=found.seen), now)

    def _found(self, member: Member, beside: int, now: datetime) -> Asked:
        """Where a member goes now, beside so many others that have their places. Raises _DoesNotFit."""
        found = self._queue.ask(member.workspace, member.request, member.window, now)
        if found.plan is not None:
            return found
        answer = found.answer
        assert not isinstance(answer, Plan)
        what = "it"
        if beside:
            what += f" beside {beside} other{'s' * (beside != 1)} of the ensemble"
            if isinstance(answer, NotNow):  # when it would fit beside them says nothing of when they all would
                answer = replace(answer, earliest=None)
        raise _DoesNotFit(member.workspace, beside, refused(answer, now, what))

    def _admit(self, tx: Transaction, member: Member, found: Asked, now: datetime) -> None:
        try:
            self._admission.admit(tx, member.workspace, found, now)
        except BrokerError as error:
            raise _about(member.workspace, error) from None


class _DoesNotFit(Exception):
    """Takes an order back in which a workspace found no place beside those before it."""

    def __init__(self, workspace: Workspace, beside: int, error: BrokerError) -> None:
        super().__init__(error.message)
        self.workspace = workspace
        self.beside = beside
        self.error = _about(workspace, error)


def _about(workspace: Workspace, error: BrokerError) -> BrokerError:
    """An error that says which workspace of the ensemble it is about."""
    error.message = f"workspace {workspace.id}: {error.message}"
    error.metadata["workspace"] = workspace.name
    return error


def _last_in_line(members: Sequence[Member]) -> Workspace:
    """The member that has to heed most of those who wait, and for which nobody gives way if any is preemptible."""
    return min((m.workspace for m in members), key=lambda each: (each.terms.priority, not each.terms.preemptible))


def _forbidden(ensemble: Ensemble, message: str) -> BrokerError:
    return BrokerError(
        Reason.STATE_FORBIDS,
        f"{ensemble.name}: {message}",
        resource=ensemble.name,
        metadata={"state": ensemble.state.value},
    )


def _call(target: EnsembleTarget, method: str) -> Call:
    return Call(tenant=target.tenant, method=method, request_id=target.request_id, digest=target.digest)
