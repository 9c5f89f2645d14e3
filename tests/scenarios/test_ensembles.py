"""Several workspaces placed together, all or none.

Cases: sealed across two pools; what waits for its seal holds nothing and is in no queue; a refused seal leaves the
ensemble open and everything as it was, and is repeated once there is room; an order that works is found, and a
placement that no order finds; never-fitting ones, one by itself and all together; adding to what is sealed, cancelled,
full, unknown or another tenant's; cancelling; expiry and when a record is forgotten; a broker that is killed between
adding and sealing; request ids; etags; limits of the tenant; a member that is terminated, or changed, before the seal;
reservations among the members, and one whose start has passed; leases that give way; requests that are only tried.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from broker.core.clock import ManualClock
from broker.ensembles import MOST_MEMBERS
from clients.sdk import Client
from tests.support.api import Refusal, created, footprint, held, pool, refused, site, state_of, tenant, updated
from tests.support.broker import TENANT, Running, running, small
from tests.support.process import broker_process

PAIR = f"{TENANT}/ensembles/pair"
START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
TWO_POOLS = site(pool("one", hosts=2, cpu=4000, memory=4096), pool("two", hosts=1, cpu=4000, memory=4096))


def whole(of: str = "one", count: int = 1, *, memory: int = 4096, ensemble: str = PAIR, **more: Any) -> pb.Workspace:
    """A wish for whole hosts, placed with an ensemble."""
    return small(count=count, memory=memory, pool=of, ensemble=ensemble, **more)


def at(instant: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


async def opened(broker: Running, **fields: Any) -> pb.Ensemble:
    """CreateEnsemble, of "pair" unless told otherwise."""
    fields = {"parent": TENANT, "ensemble_id": "pair", **fields}
    return (await broker.workspaces.CreateEnsemble(api.CreateEnsembleRequest(**fields))).ensemble  # type: ignore[no-any-return]


async def got(broker: Running, name: str = PAIR) -> pb.Ensemble:
    """GetEnsemble."""
    return (await broker.workspaces.GetEnsemble(api.GetEnsembleRequest(name=name))).ensemble  # type: ignore[no-any-return]


async def sealed(broker: Running, name: str = PAIR, **fields: Any) -> api.SealEnsembleResponse:
    """SealEnsemble."""
    return await broker.workspaces.SealEnsemble(api.SealEnsembleRequest(name=name, **fields))  # type: ignore[no-any-return]


async def cancelled(broker: Running, name: str = PAIR, **fields: Any) -> pb.Ensemble:
    """CancelEnsemble."""
    return (await broker.workspaces.CancelEnsemble(api.CancelEnsembleRequest(name=name, **fields))).ensemble  # type: ignore[no-any-return]


async def added(broker: Running, *members: pb.Workspace) -> list[pb.Workspace]:
    """Workspaces added one after another, named a, b, c, ..."""
    return [await created(broker, member, workspace_id=name) for name, member in zip("abcdefgh", members, strict=False)]


def word(ensemble: pb.Ensemble) -> str:
    """An ensemble's state."""
    return pb.Ensemble.State.Name(ensemble.state).removeprefix("STATE_")


def short(names: Sequence[str]) -> list[str]:
    return [name.rpartition("/")[2] for name in names]


@asynccontextmanager
async def with_pair(folder: Path, *members: pb.Workspace, configuration: str = TWO_POOLS) -> AsyncIterator[Running]:
    """A broker with an open ensemble of these members."""
    async with running(folder, configuration) as broker:
        await opened(broker)
        await added(broker, *members)
        yield broker


# Sealed


async def test_workspaces_in_two_pools_begin_together(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        pair = await opened(broker)
        assert (pair.name, word(pair), list(pair.workspaces)) == (PAIR, "OPEN", [])
        assert pair.expire_time.ToDatetime() - pair.create_time.ToDatetime() == HOUR
        before = await held(broker, "one"), await held(broker, "two")
        head, workers = await added(broker, whole("two"), whole("one", 2))
        for member in (head, workers):
            assert (state_of(member), len(member.nodes), member.ensemble) == ("PENDING", 0, PAIR)
            assert (member.state_message, member.queue_position) == ("waits for ensemble pair to be sealed", 0)
            assert not member.HasField("end_time")
        assert (await held(broker, "one"), await held(broker, "two")) == before
        assert list((await got(broker)).workspaces) == [head.name, workers.name]

        answer = await sealed(broker)
        assert (word(answer.ensemble), list(answer.ensemble.workspaces)) == ("SEALED", [head.name, workers.name])
        assert [each.name for each in answer.workspaces] == [head.name, workers.name]
        head = await broker.until(head.name, "RUNNING")
        workers = await broker.until(workers.name, "RUNNING")
        assert {node.pool for node in head.nodes} == {"two"}
        assert len({node.host for node in workers.nodes}) == 2
        assert (head.ensemble, head.state_message) == (PAIR, "")  # it says where it came from
        assert word(await got(broker)) == "SEALED"


async def test_what_waits_for_its_seal_is_not_begun_whatever_room_there_is(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one")) as broker:
        for _ in range(3):
            await broker.broker.engine.refresh("one")
        other = await created(broker, small(memory=4096, pool="one", terms=pb.LeaseTerms(duration=Duration(seconds=1))))
        await broker.until(other.name, "EXPIRED")  # room comes free, which wakes those who wait for it
        waiting = await broker.get(f"{TENANT}/workspaces/a")
        assert (state_of(waiting), len(waiting.nodes)) == ("PENDING", 0)
        assert word(await got(broker)) == "OPEN"


async def test_an_order_in_which_all_fit_is_found(tmp_path: Path) -> None:
    """As they were added the small ones would lie on both hosts, and leave no whole one."""
    spread = whole("one", 2, memory=1024)
    spread.node_sets[0].placement = pb.NodeSet.PLACEMENT_SPREAD
    async with with_pair(tmp_path, spread, whole("one")) as broker:
        answer = await sealed(broker)
        assert [len(each.nodes) for each in answer.workspaces] == [2, 1]
        assert len({node.host for each in answer.workspaces for node in each.nodes}) == 2


UNEVEN = site(
    pool("one", hosts=1, cpu=8000, memory=10240, more="\n[[pools.one.hosts]]\ncount = 1\ncpu = 8000\nmemory = 6144")
)


async def test_a_placement_that_no_order_finds_is_found(tmp_path: Path) -> None:
    """Each would rather spread over both hosts; only both nodes of each on one host leave room for the other."""
    members = []
    for memory in (5120, 3072):
        member = whole("one", 2, memory=memory)
        member.node_sets[0].placement = pb.NodeSet.PLACEMENT_SPREAD
        members.append(member)
    async with with_pair(tmp_path, *members, configuration=UNEVEN) as broker:
        for each in (await sealed(broker)).workspaces:
            assert len({node.host for node in each.nodes}) == 1
            await broker.until(each.name, "RUNNING")


async def test_equal_workspaces_share_what_is_found_for_all_of_them(tmp_path: Path) -> None:
    """Six of one size and two of another, in an order that wastes room, are dealt out to whom they belong."""
    sizes = (2048, 2048, 2048, 4096, 1024, 1024, 1024, 1024)
    configuration = site(pool("one", hosts=4, cpu=8000, memory=4096))
    async with with_pair(
        tmp_path, *(whole("one", memory=memory) for memory in sizes), configuration=configuration
    ) as broker:
        answer = await sealed(broker)
        assert [each.node_sets[0].amounts.amounts["memory"] for each in answer.workspaces] == list(sizes)
        for each in answer.workspaces:
            await broker.until(each.name, "RUNNING")


async def test_reservations_are_held_and_the_others_start(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, TWO_POOLS, clock=clock) as broker:
        await opened(broker)
        later = pb.LeaseTerms(start_time=at(START + HOUR), duration=Duration(seconds=600))
        now = pb.LeaseTerms(duration=Duration(seconds=3600))
        await added(broker, whole("one", 2, terms=later), whole("one", 2, terms=now), whole("two", terms=later))
        answer = await sealed(broker)
        assert [state_of(each) for each in answer.workspaces] == ["RESERVED", "STARTING", "RESERVED"]
        assert answer.workspaces[0].planned_start_time == at(START + HOUR)
        await broker.until(f"{TENANT}/workspaces/c", "RUNNING", step=60.0)
        assert clock.now() >= START + HOUR


async def test_preemptible_leases_give_way_for_all_of_it_or_not_at_all(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        cheap = await created(broker, small(memory=4096, pool="two", terms=pb.LeaseTerms(preemptible=True)))
        firm = await created(broker, small(memory=4096, count=2, pool="one"))
        for each in (cheap, firm):
            await broker.until(each.name, "RUNNING")
        await opened(broker)
        await added(broker, whole("two"), whole("one"))
        assert (await refused(sealed(broker))).metadata["workspace"] == f"{TENANT}/workspaces/b"
        assert not (await broker.get(cheap.name)).notices
        assert state_of(await broker.get(cheap.name)) == "RUNNING"
        await broker.verb("Terminate", firm.name)
        await broker.until(firm.name, "TERMINATED")
        for each in (await sealed(broker)).workspaces:
            await broker.until(each.name, "RUNNING")
        assert (await broker.get(cheap.name)).nodes[0].capacity_released


async def test_sealing_twice_answers_it_as_it_is(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one"), whole("two")) as broker:
        first = await sealed(broker)
        for each in first.workspaces:
            await broker.until(each.name, "RUNNING")
        again = await sealed(broker)
        assert again.ensemble == first.ensemble
        assert [(each.uid, state_of(each)) for each in again.workspaces] == [
            (each.uid, "RUNNING") for each in first.workspaces
        ]


# Refused


async def test_a_refused_seal_leaves_everything_as_it_was_and_is_repeated_with_room(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        other = await created(
            broker, small(memory=4096, pool="two", terms=pb.LeaseTerms(duration=Duration(seconds=3600)))
        )
        await broker.until(other.name, "RUNNING")
        await opened(broker)
        await added(broker, whole("one", 2), whole("two"))
        before = await footprint(broker, "one"), await footprint(broker, "two"), await got(broker)
        refusal = await refused(sealed(broker, request_id="once"))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "NO_CAPACITY")
        assert refusal.metadata["workspace"] == f"{TENANT}/workspaces/b"
        assert "workspace b: there is no room for it" in refusal.message
        assert {verdict.resource_name.split("/")[1] for verdict in refusal.verdicts} == {"two"}
        assert (await footprint(broker, "one"), await footprint(broker, "two"), await got(broker)) == before
        assert word(before[2]) == "OPEN"

        await broker.verb("Terminate", other.name)
        await broker.until(other.name, "TERMINATED")
        answer = await sealed(broker, request_id="once")  # a refusal leaves no trace of its id
        assert word(answer.ensemble) == "SEALED"
        for each in answer.workspaces:
            await broker.until(each.name, "RUNNING")


async def test_a_refusal_of_all_together_says_when_they_would_fit(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        lease = pb.LeaseTerms(duration=Duration(seconds=3600))
        other = await created(broker, small(memory=4096, pool="one", terms=lease))
        await opened(broker)
        await added(broker, whole("one", terms=lease), whole("one", terms=lease))
        refusal = await refused(sealed(broker))
        assert refusal.reason == "NO_CAPACITY"
        assert "workspace b: there is no room for it together with the others of the ensemble now" in refusal.message
        assert refusal.metadata["earliest_start_time"] == other.end_time.ToDatetime(tzinfo=UTC).isoformat()
        assert refusal.details["RetryInfo"].retry_delay.seconds > 3500


async def test_one_that_never_fits_is_refused_at_once(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one")) as broker:
        before = await footprint(broker, "one"), await got(broker)
        refusal = await refused(created(broker, whole("one", memory=8192)))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NEVER_FITS")
        assert (await footprint(broker, "one"), await got(broker)) == before


async def test_workspaces_that_never_fit_together_are_told_so(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one"), whole("one"), whole("one")) as broker:
        refusal = await refused(sealed(broker))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NEVER_FITS")
        assert refusal.metadata["workspace"] == f"{TENANT}/workspaces/c"
        assert word(await got(broker)) == "OPEN"


async def test_an_empty_one_is_not_sealed(tmp_path: Path) -> None:
    async with with_pair(tmp_path) as broker:
        refusal = await refused(sealed(broker))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "STATE_FORBIDS")
        assert "has no workspaces" in refusal.message
        assert word(await got(broker)) == "OPEN"


async def test_a_member_whose_start_has_passed_keeps_the_seal_back(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, TWO_POOLS, clock=clock) as broker:
        await opened(broker)
        terms = pb.LeaseTerms(start_time=at(START + HOUR / 6), duration=Duration(seconds=600))
        await added(broker, whole("one", terms=terms), whole("two"))
        await clock.advance(1200)
        refusal = await refused(sealed(broker))
        assert (refusal.reason, refusal.metadata["workspace"]) == ("STATE_FORBIDS", f"{TENANT}/workspaces/a")
        await broker.verb("Terminate", f"{TENANT}/workspaces/a")
        assert short((await sealed(broker)).ensemble.workspaces) == ["b"]


async def test_a_lease_that_is_too_long_for_the_tenant_is_refused_when_it_is_added(tmp_path: Path) -> None:
    limits = '[tenants.default]\nmax_duration = "1h"\n'
    endless = site(pool("one", 'max_duration = "none"', cpu=4000, memory=4096), rest=limits)
    async with with_pair(tmp_path, configuration=endless) as broker:
        for terms in (pb.LeaseTerms(duration=Duration(seconds=3601)), pb.LeaseTerms(open_ended=True)):
            refusal = await refused(created(broker, whole("one", terms=terms)))
            assert refusal.violations == {"workspace.terms.duration": "OUT_OF_RANGE"}
        await created(broker, whole("one", terms=pb.LeaseTerms(duration=Duration(seconds=3600))))


async def test_limits_of_the_tenant_hold_when_adding_and_at_the_seal(tmp_path: Path) -> None:
    limits = "[tenants.default]\nlimits = { workspaces = 3, memory = 6000 }\n"
    async with with_pair(tmp_path, whole("one"), whole("two"), configuration=TWO_POOLS + limits) as broker:
        assert (await tenant(broker)).used.amounts["workspaces"] == 2
        assert (await tenant(broker)).used.amounts["memory"] == 0
        before = await footprint(broker, "one"), await footprint(broker, "two")
        refusal = await refused(sealed(broker))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        assert refusal.metadata["workspace"] == f"{TENANT}/workspaces/b"
        (violation,) = refusal.details["QuotaFailure"].violations
        assert (violation.quota_metric, violation.quota_value) == ("memory", 6000)
        assert (await footprint(broker, "one"), await footprint(broker, "two")) == before
        await created(broker, whole("two", memory=1024))
        assert (await refused(created(broker, whole("two", memory=1024)))).reason == "QUOTA_EXCEEDED"
        await broker.verb("Terminate", f"{TENANT}/workspaces/b")
        assert word((await sealed(broker)).ensemble) == "SEALED"
        assert (await tenant(broker)).used.amounts["memory"] == 4096 + 1024


# Adding


async def test_only_an_open_ensemble_takes_workspaces(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one")) as broker:
        await sealed(broker)
        refusal = await refused(created(broker, whole("one")))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "STATE_FORBIDS")
        assert (refusal.metadata["state"], "SEALED" in refusal.message) == ("SEALED", True)
        assert refusal.details["PreconditionFailure"].violations[0].subject == PAIR
        await opened(broker, ensemble_id="other")
        other = f"{TENANT}/ensembles/other"
        await cancelled(broker, other)
        refusal = await refused(created(broker, whole("one", ensemble=other)))
        assert refusal.metadata["state"] == "CANCELLED"
        assert short((await got(broker)).workspaces) == ["a"]


@pytest.mark.parametrize(
    ("ensemble", "reason"),
    [
        (f"{TENANT}/ensembles/none", "UNKNOWN_ENSEMBLE"),
        ("tenants/other/ensembles/pair", "CONFLICT"),
        (f"{TENANT}/workspaces/pair", "BAD_CHARACTERS"),
        ("pair", "BAD_CHARACTERS"),
    ],
)
async def test_an_ensemble_is_one_of_the_tenants_own(tmp_path: Path, ensemble: str, reason: str) -> None:
    async with with_pair(tmp_path) as broker:
        refusal = await refused(created(broker, whole("one", ensemble=ensemble)))
        assert refusal.violations == {"workspace.ensemble": reason}


async def test_what_does_not_go_with_an_ensemble(tmp_path: Path) -> None:
    async with with_pair(tmp_path) as broker:
        waits = pb.LeaseTerms(queue_until=at(datetime.now(UTC) + HOUR))
        refusal = await refused(created(broker, whole("one", terms=waits), if_pool_generations={"one": 1}))
        assert refusal.violations == {"workspace.ensemble": "CONFLICT", "if_pool_generations": "CONFLICT"}


async def test_an_ensemble_has_so_many_workspaces_at_most(tmp_path: Path) -> None:
    async with with_pair(tmp_path) as broker:
        for _ in range(MOST_MEMBERS):
            await created(broker, whole("one", memory=64, cpu=100))
        refusal = await refused(created(broker, whole("one", memory=64, cpu=100)))
        assert refusal.violations == {"workspace.ensemble": "OUT_OF_RANGE"}
        assert len((await sealed(broker)).workspaces) == MOST_MEMBERS


async def test_bad_fields_of_an_ensemble_are_all_named(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        now = datetime.now(UTC)
        for expire_time, reason in ((now - HOUR, "IN_THE_PAST"), (now + 200 * HOUR, "OUT_OF_RANGE")):
            refusal = await refused(
                opened(
                    broker,
                    parent="tenants/No",
                    ensemble_id="-",
                    ensemble=pb.Ensemble(expire_time=at(expire_time)),
                    request_id="é",
                )
            )
            assert refusal.violations == {
                "parent": "BAD_CHARACTERS",
                "ensemble_id": "BAD_CHARACTERS",
                "ensemble.expire_time": reason,
                "request_id": "BAD_CHARACTERS",
            }
        for call in (got(broker, "pair"), sealed(broker, "pair"), cancelled(broker, "pair")):
            assert (await refused(call)).violations == {"name": "BAD_CHARACTERS"}
        for call in (got(broker), sealed(broker), cancelled(broker)):
            refusal = await refused(call)
            assert (refusal.reason, refusal.details["ResourceInfo"].resource_type) == ("NOT_FOUND", "Ensemble")


async def test_the_broker_picks_an_id_and_a_name_is_taken_once(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        picked = await opened(broker, ensemble_id="")
        assert picked.name.startswith(f"{TENANT}/ensembles/ens-")
        await opened(broker)
        refusal = await refused(opened(broker))
        assert (refusal.code, refusal.reason) == ("ALREADY_EXISTS", "NAME_TAKEN")


# Before the seal


async def test_a_terminated_workspace_leaves_the_ensemble(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one", 2), whole("one", 2), whole("two")) as broker:
        first = await got(broker)
        ended = await broker.verb("Terminate", f"{TENANT}/workspaces/a")
        assert state_of(ended) == "TERMINATED"
        left = await got(broker)
        assert short(left.workspaces) == ["b", "c"]
        assert left.etag != first.etag
        answer = await sealed(broker)
        assert short(answer.ensemble.workspaces) == ["b", "c"]
        assert [state_of(each) for each in answer.workspaces] == ["STARTING", "STARTING"]


async def test_a_workspace_is_sealed_as_it_was_changed(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one"), whole("two")) as broker:
        name = f"{TENANT}/workspaces/a"
        wish = pb.Workspace(name=name, terms=pb.LeaseTerms(duration=Duration(seconds=7200)), labels={"a": "b"})
        changed = await updated(broker, wish, "terms.duration", "labels")
        assert (state_of(changed), changed.HasField("end_time")) == ("PENDING", False)
        waits = pb.Workspace(name=name, terms=pb.LeaseTerms(queue_until=at(datetime.now(UTC) + HOUR)))
        refusal = await refused(updated(broker, waits, "terms.queue_until"))
        assert refusal.violations == {"workspace.terms.queue_until": "CONFLICT"}
        found = (await sealed(broker)).workspaces[0]
        assert found.end_time.seconds - found.planned_start_time.seconds == 7200
        assert dict(found.labels) == {"a": "b"}


async def test_a_seal_insists_on_what_its_caller_read(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one")) as broker:
        read = await got(broker)
        await created(broker, whole("two"), workspace_id="b")
        for call in (sealed(broker, etag=read.etag), cancelled(broker, etag=read.etag)):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == ("ABORTED", "ETAG_MISMATCH")
        read = await got(broker)
        await updated(broker, pb.Workspace(name=f"{TENANT}/workspaces/b", display_name="B"), "display_name")
        assert (await refused(sealed(broker, etag=read.etag))).reason == "ETAG_MISMATCH"
        assert word((await sealed(broker, etag=(await got(broker)).etag)).ensemble) == "SEALED"


async def test_what_is_only_tried_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        tried = await opened(broker, validate_only=True)
        assert word(tried) == "OPEN"
        assert (await refused(got(broker))).reason == "NOT_FOUND"
        await opened(broker)
        tried_member = await created(broker, whole("one"), validate_only=True)
        assert (state_of(tried_member), tried_member.ensemble) == ("PENDING", PAIR)
        assert not (await got(broker)).workspaces
        await added(broker, whole("one"), whole("two"))
        before = await footprint(broker, "one"), await footprint(broker, "two"), await got(broker)
        answer = await sealed(broker, validate_only=True)
        assert (word(answer.ensemble), [state_of(each) for each in answer.workspaces]) == ("SEALED", ["STARTING"] * 2)
        assert (await footprint(broker, "one"), await footprint(broker, "two"), await got(broker)) == before
        await created(broker, whole("one", 2), workspace_id="c")
        assert (await refused(sealed(broker, validate_only=True))).reason == "NEVER_FITS"


# Cancelled


async def test_cancelling_ends_what_waits(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one"), whole("two"), whole("one")) as broker:
        await broker.verb("Terminate", f"{TENANT}/workspaces/c")
        ended = await cancelled(broker)
        assert (word(ended), ended.cause, short(ended.workspaces)) == (
            "CANCELLED",
            pb.Workspace.CAUSE_REQUESTED,
            ["a", "b"],
        )
        for name in ended.workspaces:
            workspace = await broker.get(name)
            assert (state_of(workspace), workspace.cause) == ("TERMINATED", pb.Workspace.CAUSE_REQUESTED)
        assert (await tenant(broker)).used.amounts["workspaces"] == 0
        assert await cancelled(broker) == ended
        refusal = await refused(sealed(broker))
        assert (refusal.reason, refusal.metadata["state"]) == ("STATE_FORBIDS", "CANCELLED")


async def test_a_sealed_one_is_not_cancelled(tmp_path: Path) -> None:
    async with with_pair(tmp_path, whole("one")) as broker:
        answer = await sealed(broker)
        refusal = await refused(cancelled(broker))
        assert (refusal.reason, refusal.metadata["state"]) == ("STATE_FORBIDS", "SEALED")
        await broker.until(answer.workspaces[0].name, "RUNNING")


# In time


async def test_an_ensemble_that_is_not_sealed_in_time_is_cancelled(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, TWO_POOLS, clock=clock) as broker:
        await opened(broker)
        await opened(broker, ensemble_id="late", ensemble=pb.Ensemble(expire_time=at(START + 168 * HOUR)))
        await added(broker, whole("one"), whole("one", ensemble=f"{TENANT}/ensembles/late"))
        await clock.advance(3599)
        assert word(await got(broker)) == "OPEN"
        await clock.advance(1)
        ended = await got(broker)
        assert (word(ended), ended.cause) == ("CANCELLED", pb.Workspace.CAUSE_LEASE)
        (name,) = ended.workspaces
        workspace = await broker.get(name)
        assert (state_of(workspace), workspace.cause) == ("TERMINATED", pb.Workspace.CAUSE_LEASE)
        assert word(await got(broker, f"{TENANT}/ensembles/late")) == "OPEN"


async def test_a_record_stays_as_long_as_its_workspaces_do(tmp_path: Path) -> None:
    clock = ManualClock(START)
    configuration = site(pool("one", hosts=2), server='keep_records = "1d"')
    async with running(tmp_path, configuration, clock=clock) as broker:
        for name in ("kept", "gone"):
            await opened(broker, ensemble_id=name, request_id=name)
        lasting = pb.LeaseTerms(duration=Duration(seconds=2 * 86_400))
        member = await created(broker, whole("one", ensemble=f"{TENANT}/ensembles/kept", terms=lasting))
        await sealed(broker, f"{TENANT}/ensembles/kept")
        await cancelled(broker, f"{TENANT}/ensembles/gone")
        for _ in range(25):
            await clock.advance(3600)
        assert (await refused(got(broker, f"{TENANT}/ensembles/gone"))).reason == "NOT_FOUND"
        await opened(broker, ensemble_id="gone", request_id="gone")  # neither name nor id is known any more
        assert word(await got(broker, f"{TENANT}/ensembles/kept")) == "SEALED"
        for _ in range(50):
            await clock.advance(3600)
        assert (await refused(broker.workspaces.GetWorkspace(api.GetWorkspaceRequest(name=member.name)))).reason == (
            "NOT_FOUND"
        )
        assert (await refused(got(broker, f"{TENANT}/ensembles/kept"))).reason == "NOT_FOUND"


async def test_what_expired_while_the_broker_was_away_is_cancelled_when_it_is_back(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS, clock=ManualClock(START)) as broker:
        await opened(broker)
        await added(broker, whole("one"))
    async with running(tmp_path, TWO_POOLS, clock=ManualClock(START + 2 * HOUR)) as broker:
        ended = await broker.eventually(lambda: got(broker), lambda ensemble: word(ensemble) == "CANCELLED")
        assert ended.cause == pb.Workspace.CAUSE_LEASE


def test_a_broker_killed_between_adding_and_sealing_has_it_all(tmp_path: Path) -> None:
    """What was answered is there after SIGKILL, and the seal goes on from it."""
    with broker_process(tmp_path, TWO_POOLS) as process, Client(process.address) as client:
        client.create_ensemble(TENANT, "pair", request_id="open")
        names = [
            client.create(api.CreateWorkspaceRequest(parent=TENANT, workspace_id=name, workspace=whole(of))).name
            for name, of in (("a", "one"), ("b", "two"))
        ]
        before = client.ensemble(PAIR)
        process.kill()
    with broker_process(tmp_path, TWO_POOLS) as process, Client(process.address) as client:
        assert client.ensemble(PAIR) == before
        assert client.create_ensemble(TENANT, "pair", request_id="open") == before
        answer = client.seal_ensemble(PAIR, request_id="seal", etag=before.etag)
        assert list(answer.ensemble.workspaces) == names
        process.kill()
    with broker_process(tmp_path, TWO_POOLS) as process, Client(process.address) as client:
        assert client.seal_ensemble(PAIR, request_id="seal", etag=before.etag).ensemble == answer.ensemble
        for name in names:
            assert client.wait(name, [pb.Workspace.STATE_RUNNING], timeout=20).workspace.name == name


# Request ids


async def test_the_same_request_id_is_the_same_call(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_POOLS) as broker:
        first = await opened(broker, ensemble_id="", request_id="1")
        assert await opened(broker, ensemble_id="", request_id="1") == first
        refusals: list[Refusal] = [await refused(opened(broker, ensemble_id="other", request_id="1"))]
        member = whole("one", ensemble=first.name)
        made = await created(broker, member, request_id="1")
        assert (await created(broker, member, request_id="1")).uid == made.uid
        assert short((await got(broker, first.name)).workspaces) == short([made.name])
        answer = await sealed(broker, first.name, request_id="1")
        await broker.until(made.name, "RUNNING")
        again = await sealed(broker, first.name, request_id="1")
        assert (again.ensemble, again.workspaces[0].state) == (answer.ensemble, pb.Workspace.STATE_RUNNING)
        refusals.append(await refused(sealed(broker, first.name, request_id="1", etag="r1")))
        other = await opened(broker, request_id="2")
        ended = await cancelled(broker, other.name, request_id="2")
        assert await cancelled(broker, other.name, request_id="2") == ended
        refusals.append(await refused(cancelled(broker, first.name, request_id="2")))
        assert {(each.code, each.reason) for each in refusals} == {("ALREADY_EXISTS", "REQUEST_ID_REUSED")}
