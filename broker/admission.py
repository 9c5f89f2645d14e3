"""Letting a workspace in: what was found for it is held, and what begins now is put in motion.

The last step of a create and of an ensemble's seal alike. Where it goes has been decided; here are the checks that
need the place: the work a pool may have before it, and the tenant's limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from backends.base import Action
from broker.book import Book, Transaction
from broker.core.errors import overloaded
from broker.core.model import State, Workspace
from broker.core.placement import Plan
from broker.engine.tasks import begin
from broker.placing import placed
from broker.pools import Pool
from broker.preempting import Preempting
from broker.queue import Asked
from broker.tenants import Tenants


class Admission:
    """To all pools."""

    def __init__(self, book: Book, pools: Mapping[str, Pool], tenants: Tenants, preempting: Preempting) -> None:
        self._book = book
        self._pools = dict(pools)
        self._tenants = tenants
        self._preempting = preempting

    def admit(self, tx: Transaction, record: Workspace, found: Asked, now: datetime) -> Workspace:
        """Gives a workspace that has no place yet the one that was found for it: RESERVED for later, or STARTING.

        Raises OVERLOADED where a pool's work would be longer than its bound; QuotaExceeded and FieldsInvalid where
        the tenant's limits forbid it.
        """
        assert found.plan is not None
        self._check_work(found.plan)
        made = found.made
        admitted = placed(record, found.plan, found.seen, now, reserved=made is not None and bool(made.victims))
        if made is not None:
            admitted = self._preempting.promise(tx, made, admitted, now)
        self._tenants.check(record.tenant, admitted, besides=self._book.workspaces.get(record.uid))
        if admitted.state is State.RESERVED:
            return tx.put(admitted)
        return begin(tx, self._pools, admitted, {node.index: Action.CREATE for node in admitted.nodes}, now)

    def _check_work(self, answer: Plan) -> None:
        for assignment in answer.assignments:
            bound = self._pools[assignment.pool].settings.max_tasks
            if len(self._book.pool_tasks[assignment.pool]) + len(assignment.hosts) > bound:
                raise overloaded(f"nodes of pool {assignment.pool}", bound)
