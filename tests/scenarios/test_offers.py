"""What is offered instead of a wish that does not fit: each offer is accepted as it is.

Cases: the pool named is full and another is not; the lease could begin later; fewer nodes fit now; several of these,
the nearest to the wish first; none where it fits, where none is asked for, where nothing would help, and where the
tenant's limits forbid what would; what a wish says besides stays as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from tests.support.broker import TENANT, Running, running, small

TWO_POOLS = """
[server]
listen = "127.0.0.1:0"
[pools.one]
backend = "simulator"
[[pools.one.hosts]]
count = 2
cpu = 4000
memory = 4096
[pools.two]
backend = "simulator"
[[pools.two.hosts]]
count = 1
cpu = 4000
memory = 4096
"""
HOUR = Duration(seconds=3600)


def wish(count: int = 1, *, pool: str = "one", memory: int = 4096, **more: Any) -> pb.Workspace:
    """Whole hosts for an hour."""
    wanted = small(count=count, memory=memory, **more)
    wanted.pool = pool
    wanted.terms.duration.CopyFrom(HOUR)
    return wanted


async def checked(broker: Running, wanted: pb.Workspace, *, tenant: str = TENANT, offers: bool = True) -> Any:
    """CheckPlacement."""
    return await broker.workspaces.CheckPlacement(
        api.CheckPlacementRequest(parent=tenant, workspace=wanted, include_offers=offers)
    )


async def test_a_full_pool_brings_offers_of_another_pool_a_later_start_and_fewer_nodes(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        first = await broker.create(workspace=wish())
        answer = await checked(broker, wish(2))
        assert answer.outcome == pb.PlacementVerdict.OUTCOME_NOT_NOW
        later, fewer = answer.offers
        assert list(later.changed.paths) == ["terms.start_time"]
        assert later.start_time == first.end_time
        assert later.workspace.terms.start_time == first.end_time
        assert list(fewer.changed.paths) == ["node_sets"]
        assert fewer.workspace.node_sets[0].count == 1
        assert "1 of 2 nodes" in fewer.message
        await broker.create(workspace=wish())
        elsewhere, later = (await checked(broker, wish())).offers
        assert list(elsewhere.changed.paths) == ["pool"]
        assert elsewhere.workspace.pool == "two"
        assert list(later.changed.paths) == ["terms.start_time"]


async def test_every_offer_is_accepted_as_it_is(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        await broker.create(workspace=wish())
        wanted = wish(2, display_name="mine", labels={"a": "b"}, user_data=b"#!/bin/sh")
        offers = (await checked(broker, wanted)).offers
        assert len(offers) == 2
        for offer in offers:
            assert (offer.workspace.display_name, dict(offer.workspace.labels)) == ("mine", {"a": "b"})
            assert offer.workspace.node_sets[0].user_data == b"#!/bin/sh"
            made = await broker.create(workspace=offer.workspace)
            assert made.planned_start_time.seconds >= offer.start_time.seconds
            await broker.verb("Terminate", made.name)
            await broker.until(made.name, "TERMINATED")


async def test_nothing_is_offered_where_it_fits_or_is_not_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        assert not (await checked(broker, wish(2))).offers
        await broker.create(workspace=wish(2))
        assert not (await checked(broker, wish(), offers=False)).offers


async def test_what_never_fits_may_be_offered_smaller_or_elsewhere_but_not_later(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        answer = await checked(broker, wish(3))
        assert answer.outcome == pb.PlacementVerdict.OUTCOME_NEVER
        (fewer,) = answer.offers
        assert fewer.workspace.node_sets[0].count == 2
        assert not (await checked(broker, wish(memory=8192))).offers


async def test_what_the_tenants_limits_forbid_is_not_offered(tmp_path: Path) -> None:
    limits = '[tenants.small]\nallowed_pools = ["one"]\nlimits = { nodes = 3 }\n[tenants.default]\n'
    async with running(tmp_path, TWO_POOLS + limits) as broker:
        await broker.create(workspace=wish(2))
        offers = (await checked(broker, wish(), tenant="tenants/small")).offers
        assert [list(offer.changed.paths) for offer in offers] == [["terms.start_time"]]
        assert [offer.workspace.pool for offer in offers] == ["one"]
