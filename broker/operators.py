"""The use cases of operators, and what everyone may read of pools: hosts, images, networks, strays, use.

Cordons and drains are the broker's own wishes, kept in the book beside what a backend says. Free capacity and sums are
worked out for a view and kept nowhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from backends.base import Action, Capability, ObservedHost
from broker.book import Book
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Reason, not_found
from broker.core.lifecycle import AS_STATE, Seen
from broker.core.model import Cause, Node, State, ValueKind, Workspace
from broker.core.placement import Plan, plan
from broker.core.slots import POOL_ROW, Slot
from broker.core.views import (
    HostCondition,
    HostView,
    ImageView,
    NetworkView,
    ParameterView,
    PoolView,
    SlotView,
    StrayView,
    TenantView,
)
from broker.engine.engine import Engine
from broker.engine.tasks import begin
from broker.placing import hosts_of, nodes_again, rest_of_lease, snapshots_for_their_own
from broker.pools import Pool, cordon_key, draining_key
from broker.tenants import Tenants


class Operators:
    """Everything about pools that is not one tenant's business."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        engine: Engine,
        clock: Clock,
        tenants: Tenants,
        instance_types: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._engine = engine
        self._clock = clock
        self._tenants = tenants
        self._instance_types = instance_types

    # Pools

    def pool(self, name: str) -> PoolView:
        """One pool. Raises NOT_FOUND."""
        pool = self._pool(name)
        now = self._clock.now()
        total: defaultdict[str, int] = defaultdict(int)
        allocated: defaultdict[str, int] = defaultdict(int)
        reserved: defaultdict[str, int] = defaultdict(int)
        for host in pool.hosts.values():
            _add(total, pool.promised(host))
        _add(total, pool.pool_amounts()[0])
        for slot in pool.slots.all():
            _add(allocated if slot.start <= now else reserved, slot.amounts)
        return PoolView(
            name=name,
            backend=pool.settings.backend,
            reachable=pool.reachable.is_set(),
            capabilities=sorted(capability.value for capability in pool.backend.capabilities),
            parameters=[
                ParameterView(
                    key=spec.key, kind=ValueKind(spec.kind.value), description=spec.description, required=spec.required
                )
                for spec in pool.parameter_specs
            ],
            instance_types=self._instance_types,
            total=total,
            allocated=allocated,
            reserved=reserved,
            generation=pool.generation,
            refresh_time=pool.refresh_time,
            last_error=pool.last_error,
            draining=pool.draining,
            default_duration=pool.settings.default_duration,
            max_duration=pool.settings.max_duration,
        )

    def pool_names(self) -> list[str]:
        """Every pool, by name."""
        return sorted(self._pools)

    def _pool(self, name: str) -> Pool:
        pool = self._pools.get(name)
        if pool is None:
            raise not_found("pool", f"pools/{name}")
        return pool

    async def set_draining(self, name: str, draining: bool) -> PoolView:
        """Closes a pool to new workspaces, or opens it again."""
        self._pool(name)
        with self._book.call(), self._book.transaction(awaited=True) as tx:
            tx.set(draining_key(name), "1" if draining else None)
        await tx.durable()
        self._moved_on(name)
        return self.pool(name)

    async def refresh(self, name: str) -> tuple[PoolView, int, int]:
        """Looks at a pool's backend now: the pool, how many nodes changed, how many strays there are."""
        pool = self._pool(name)
        changed = await self._engine.refresh(name)
        return self.pool(name), changed, len(pool.strays)

    def _moved_on(self, name: str) -> None:
        """What a pool admits has changed: who judged an older generation judges again, and who waits is looked at."""
        self._book.generations[name] += 1
        self._engine.room_changed()

    # Hosts

    def hosts(self, name: str) -> tuple[list[HostView], int]:
        """A pool's hosts by name, and the generation they were looked at."""
        pool = self._pool(name)
        held: defaultdict[str, list[Slot]] = defaultdict(list)
        for slot in pool.slots.all():
            held[slot.host].append(slot)
        views = [self._host(pool, host, held[host.name]) for host in pool.hosts.values()]
        return sorted(views, key=lambda view: view.name), pool.generation

    def host(self, name: str, host_name: str) -> HostView:
        """One host. Raises NOT_FOUND."""
        pool = self._pool(name)
        host = pool.hosts.get(host_name)
        if host is None:
            raise not_found("host", f"pools/{name}/hosts/{host_name}")
        return self._host(pool, host, pool.slots.slots(host_name))

    def _host(self, pool: Pool, host: ObservedHost, slots: Iterable[Slot]) -> HostView:
        now = self._clock.now()
        total, foreign = pool.promised(host), pool.foreign(host)
        free = dict(total)
        shown = sorted(slots, key=lambda slot: (slot.start, slot.key))
        for amounts in (foreign, *(slot.amounts for slot in shown if slot.start <= now)):
            for resource, amount in amounts.items():
                free[resource] = free.get(resource, 0) - amount
        return HostView(
            pool=pool.name,
            name=host.name,
            state=HostCondition(host.state.value),
            total=total,
            free={resource: max(0, amount) for resource, amount in free.items()},
            foreign=foreign,
            slots=[
                SlotView(
                    workspace=self._name_of(slot.key[0]),
                    node_index=slot.key[1],
                    amounts=slot.amounts,
                    start_time=self._begin(slot),
                    end_time=slot.end,
                )
                for slot in shown
            ],
            attributes=host.attributes,
            cordoned=pool.cordoned(host.name),
        )

    def _begin(self, slot: Slot) -> datetime:
        """When what holds a slot began, or will."""
        workspace = self._book.workspaces.get(slot.key[0])
        return workspace.prepare_time or workspace.create_time if workspace is not None else slot.start

    def _name_of(self, uid: str) -> str:
        workspace = self._book.workspaces.get(uid)
        return workspace.name if workspace is not None else ""

    async def set_cordoned(self, name: str, host_name: str, cordoned: bool) -> HostView:
        """Closes a host to new nodes, or opens it again."""
        self.host(name, host_name)
        with self._book.call(), self._book.transaction(awaited=True) as tx:
            tx.set(cordon_key(name, host_name), "1" if cordoned else None)
        await tx.durable()
        self._moved_on(name)
        return self.host(name, host_name)

    async def drain(self, name: str, host_name: str, *, suspend_rest: bool) -> tuple[HostView, list[str]]:
        """Cordons a host and moves its nodes away, live where possible; names the workspaces that stay.

        A node that cannot move is suspended and releases its capacity with `suspend_rest`, else it stays.
        """
        await self.set_cordoned(name, host_name, True)
        pool = self._pool(name)
        if not pool.reachable.is_set():
            raise BrokerError(
                Reason.BACKEND_UNREACHABLE,
                f"the backend of pool {name} does not answer; the host is cordoned, drain it again later",
                resource=f"pools/{name}",
                retry_after=pool.settings.breaker.probe_interval,
            )
        staying = []
        with self._book.call():
            for workspace, node in list(self._nodes_on(name, host_name)):
                if not await self._move_away(pool, workspace.uid, node.index, suspend_rest):
                    staying.append(workspace.name)
        return self.host(name, host_name), sorted(set(staying))

    def _nodes_on(self, pool: str, host: str) -> Iterator[tuple[Workspace, Node]]:
        for workspace in self._book.in_pool(pool):
            for node in workspace.nodes:
                if node.pool == pool and node.host == host and not node.state.final:
                    yield workspace, node

    async def _move_away(self, pool: Pool, uid: str, index: int, suspend: bool) -> bool:
        """Sends one node elsewhere; False where it stays."""
        workspace = self._book.workspaces[uid]
        node = workspace.nodes[index]
        if any(each.state.moving for each in workspace.nodes) or (uid, index) in self._book.tasks:
            return False
        now = self._clock.now()
        can = pool.backend.capabilities
        moves = Action.LIVE_MIGRATE if Capability.LIVE_MIGRATE in can else Action.MIGRATE
        if node.state is State.RUNNING and (Capability.LIVE_MIGRATE in can or Capability.MIGRATE in can):
            request = nodes_again(workspace, [node], still_held=True, exclude=(node.host,))
            answer = plan(request, snapshots_for_their_own([pool], now), rest_of_lease(workspace, now), judged=False)
            if isinstance(answer, Plan):
                with self._book.transaction(awaited=True) as tx:
                    begin(
                        tx,
                        self._pools,
                        workspace,
                        {index: moves},
                        now,
                        cause=Cause.OPERATOR,
                        hosts=hosts_of(answer, [node]),
                    )
                await tx.durable()
                return True
        if node.released:
            return True
        releasing = {
            State.RUNNING: Action.SUSPEND_RELEASE,
            State.SUSPENDED: Action.RELEASE_SUSPENDED,
            State.STOPPED: Action.RELEASE_STOPPED,
        }.get(node.state)
        if not suspend or releasing is None or Capability.RELEASE not in can:
            return False
        with self._book.transaction(awaited=True) as tx:
            begin(tx, self._pools, workspace, {index: releasing}, now, cause=Cause.OPERATOR)
        await tx.durable()
        return True

    # What a pool has

    def images(self, name: str) -> list[ImageView]:
        """The images a backend lists; none where it takes any name."""
        inventory = self._pool(name).inventory
        images = inventory.images if inventory is not None else None
        return [
            ImageView(
                name=image.name,
                display_name=image.display_name,
                ready=image.ready,
                size_mib=image.size_mib,
                attributes=image.attributes,
            )
            for image in sorted(images or (), key=lambda image: image.name)
        ]

    def networks(self, name: str) -> list[NetworkView]:
        """The networks a backend lists; none where it takes any name."""
        pool = self._pool(name)
        inventory = pool.inventory
        held: defaultdict[str, int] = defaultdict(int)
        now = self._clock.now()
        for slot in pool.slots.slots(POOL_ROW):
            if slot.start <= now:
                _add(held, slot.amounts)
        views = []
        for network in inventory.networks or () if inventory is not None else ():
            total = network.total_addresses or 0
            taken = network.foreign_addresses + held[f"address:{network.name}"]
            views.append(
                NetworkView(
                    name=network.name,
                    display_name=network.display_name,
                    total_addresses=total,
                    free_addresses=max(0, total - taken),
                )
            )
        return sorted(views, key=lambda view: view.name)

    def strays(self, name: str) -> list[StrayView]:
        """VMs that bear this broker's tag and belong to no live node."""
        pool = self._pool(name)
        views = []
        for backend_id, (observed, found) in sorted(pool.strays.items()):
            owner = self._book.workspaces.get(observed.identity.workspace_uid)
            views.append(
                StrayView(
                    pool=name,
                    backend_id=backend_id,
                    reason="its workspace has ended"
                    if owner is not None
                    else "this broker has no workspace of its uid",
                    found_time=found,
                    host=observed.host,
                    workspace=owner.name if owner is not None else "",
                    workspace_uid=observed.identity.workspace_uid,
                    node_index=observed.identity.node_index,
                    amounts=observed.amounts,
                    seen=AS_STATE.get(Seen(observed.observation.value)),
                )
            )
        return views

    # Tenants

    def tenant(self, name: str) -> TenantView:
        """A tenant with its limits and use. Raises NOT_FOUND where tenants are configured and it is not one."""
        settings = self._tenants.settings(name)
        used: dict[str, int] = {}
        pool_used: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (tenant, pool, resource), amount in self._book.used.items():
            if tenant == name and amount:
                (pool_used[pool] if pool else used)[resource] = amount
        return TenantView(
            name=name,
            display_name=settings.display_name,
            limits=settings.limits,
            pool_limits=settings.pool_limits,
            used=used,
            pool_used=pool_used,
            allowed_pools=settings.allowed_pools,
            max_duration=settings.max_duration,
        )


def _add(sums: defaultdict[str, int], amounts: Mapping[str, int]) -> None:
    for resource, amount in amounts.items():
        sums[resource] += amount
