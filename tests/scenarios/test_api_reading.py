"""Reading and changing records: pages, filters, watches, waits, masks, the end of a lease, and use."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from broker.api import services
from broker.core.clock import ManualClock
from tests.support.api import (
    EVERY_STATE,
    at,
    checked,
    created,
    ended,
    footprint,
    hosts,
    lasting,
    listed,
    outcome_of,
    pool,
    refused,
    site,
    state_of,
    tenant,
    updated,
)
from tests.support.broker import TENANT, Running, running, small

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ONE_HOST = site(pool("lab", hosts=1, memory=4096))


def name_of(workspace_id: str, of: str = TENANT) -> str:
    return f"{of}/workspaces/{workspace_id}"


async def page(broker: Running, **fields: Any) -> api.ListWorkspacesResponse:
    request = api.ListWorkspacesRequest(parent=fields.pop("parent", TENANT), **fields)
    return await broker.workspaces.ListWorkspaces(request)  # type: ignore[no-any-return]


def watched(broker: Running, after: int, **fields: Any) -> Any:
    request = api.WatchWorkspacesRequest(parent=fields.pop("parent", TENANT), after_revision=after, **fields)
    return broker.workspaces.WatchWorkspaces(request)


async def waited(broker: Running, name: str, *states: str, **timeout: float) -> api.WaitWorkspaceResponse:
    request = api.WaitWorkspaceRequest(
        name=name,
        states=[f"STATE_{state}" for state in states],
        timeout=lasting(**timeout) if timeout else None,
    )
    return await broker.workspaces.WaitWorkspace(request, timeout=20)  # type: ignore[no-any-return]


# Pages and filters


async def test_pages_show_each_workspace_once_in_the_order_of_names(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        ids = [f"ws-{number}" for number in (5, 1, 3, 0, 4, 2, 6)]
        for each in ids:
            await broker.create(workspace_id=each, memory=64)
        seen: list[str] = []
        token, sizes = "", [3, 2, 1, 3]
        for size in sizes:
            answer = await page(broker, page_size=size, page_token=token)
            seen += [each.name for each in answer.workspaces]
            token = answer.next_page_token
        assert seen == [name_of(each) for each in sorted(ids)]
        assert token == ""
        whole = await page(broker, page_size=7)
        assert len(whole.workspaces) == 7
        assert whole.next_page_token == ""


async def test_a_page_goes_on_though_its_last_workspace_is_gone_or_others_came(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        for each in "bdf":
            await broker.create(workspace_id=each, memory=64)
        first = await page(broker, page_size=2)
        await ended(broker, name_of("d"))
        for each in "ae":
            await broker.create(workspace_id=each, memory=64)
        rest = await page(broker, page_size=9, page_token=first.next_page_token)
        assert [each.name for each in rest.workspaces] == [name_of("e"), name_of("f")]


async def test_a_token_is_bound_to_its_list_and_cannot_be_changed(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        for each in "abc":
            await broker.create(workspace_id=each, memory=64, labels={"k": "v"})
        token = (await page(broker, page_size=1)).next_page_token
        other = "A" if token[-1] != "A" else "B"
        for fields in (
            {"parent": "tenants/other"},
            {"label_selector": {"k": "v"}},
            {"states": ["STATE_RUNNING"]},
            {"pool": "lab"},
            {"uids": ["x"]},
        ):
            refusal = await refused(page(broker, page_token=token, **fields))
            assert refusal.violations == {"page_token": "BAD_CHARACTERS"}
        for bad in (token[:-4] + other + token[-3:], token[1:], token + "AAAA", "ä", "."):
            assert (await refused(page(broker, page_token=bad))).violations == {"page_token": "BAD_CHARACTERS"}
        hosts_list = pool_api.ListHostsRequest(parent="pools/lab", page_token=token)
        assert (await refused(broker.pools.ListHosts(hosts_list))).violations == {"page_token": "BAD_CHARACTERS"}
        assert len((await page(broker, page_token=token)).workspaces) == 2


async def test_a_page_ends_before_it_is_too_large_to_arrive(tmp_path: Path) -> None:
    spec = 'parameters = [{ key = "sim:words", kind = "STRING_LIST", description = "for tests" }]'
    async with running(tmp_path, site(pool("lab", spec))) as broker:
        words = pb.ParameterValue(string_list=pb.StringList(values=["x" * 4096] * 64))  # 256 KiB
        for number in range(14):
            wish = small(memory=64)
            wish.parameters["sim:words"].CopyFrom(words)
            await created(broker, wish, workspace_id=f"ws-{number:02}")
        sizes: list[int] = []
        seen: list[str] = []
        token = ""
        while not sizes or token:
            answer = await page(broker, page_token=token)
            sizes.append(answer.ByteSize())
            seen += [each.name for each in answer.workspaces]
            token = answer.next_page_token
        assert len(sizes) == 2
        assert max(sizes) < 4 * 1024 * 1024  # what a client takes unless told otherwise
        assert seen == [name_of(f"ws-{number:02}") for number in range(14)]


async def test_filters(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab"), pool("attic"))) as broker:
        a = await created(broker, small(pool="lab", labels={"tier": "web", "env": "dev"}), workspace_id="a")
        b = await created(broker, small(pool="attic", labels={"tier": "web"}), workspace_id="b")
        c = await created(broker, small(pool="lab"), workspace_id="c")
        d = await created(broker, small(pool="lab"), workspace_id="d", parent="tenants/other")
        for each in (a, b, c, d):
            await broker.until(each.name, "RUNNING")
        await broker.verb("Stop", b.name)
        await broker.until(b.name, "STOPPED")
        await ended(broker, c.name)

        async def found(**fields: Any) -> str:
            return "".join(each.name[-1] for each in (await page(broker, **fields)).workspaces)

        assert await found() == "ab"  # all but the final ones
        assert await found(states=EVERY_STATE) == "abc"
        assert await found(states=["STATE_STOPPED", "STATE_TERMINATED"]) == "bc"
        assert await found(parent="tenants/-") == "abd"
        assert await found(parent="tenants/other") == "d"
        assert await found(parent="tenants/nobody") == ""
        assert await found(pool="lab") == "a"
        assert await found(pool="attic", parent="tenants/-") == "b"
        assert await found(label_selector={"tier": "web"}) == "ab"
        assert await found(label_selector={"tier": "web", "env": "dev"}) == "a"
        assert await found(label_selector={"tier": ""}) == ""
        assert await found(uids=[b.uid, d.uid, "none"]) == "b"
        assert await found(uids=[c.uid]) == ""
        assert await found(uids=[c.uid], states=EVERY_STATE) == "c"
        assert await found(parent="tenants/-", page_size=1) == "a"


# Watches


async def test_a_list_and_a_watch_from_its_revision_miss_nothing(tmp_path: Path) -> None:
    """While workspaces come, change and go, the list and the changes after it make the very state there is."""
    async with running(tmp_path) as broker:

        async def busy() -> None:
            for number in range(30):
                name = (await broker.create(workspace_id=f"ws-{number:02}", memory=64)).name
                await updated(broker, pb.Workspace(name=name, display_name="seen"), "display_name")
                if number % 3 == 0:
                    await broker.verb("Terminate", name)

        work = asyncio.create_task(busy())
        await broker.eventually(lambda: listed(broker), lambda found: len(found) > 5)
        answer = await page(broker, states=EVERY_STATE)
        known = {each.name: each for each in answer.workspaces}
        watch = watched(broker, answer.revision)
        await work
        last = await broker.eventually(
            lambda: listed(broker),
            lambda found: all(not state_of(each).endswith("ING") or state_of(each) == "RUNNING" for each in found),
        )
        newest = max(each.revision for each in last)
        revision = answer.revision
        while revision < newest:
            change = await watch.read()
            assert change.revision > revision, "each revision once, in order"
            revision = change.revision
            known[change.workspace.name] = change.workspace
        watch.cancel()
        assert {name: (each.etag, each.state, each.display_name) for name, each in known.items()} == {
            each.name: (each.etag, each.state, each.display_name) for each in last
        }


async def test_a_watch_from_the_start_shows_what_is_there_then_what_changes(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        for each in "ab":
            await broker.until((await broker.create(workspace_id=each)).name, "RUNNING")
        watch = watched(broker, 0)
        first = [await watch.read() for _ in range(2)]
        assert [each.workspace.name for each in first] == [name_of("a"), name_of("b")]
        assert [state_of(each.workspace) for each in first] == ["RUNNING", "RUNNING"]
        assert [each.previous_state for each in first] == [0, 0]
        await broker.verb("Pause", name_of("a"))
        states: list[tuple[str, str]] = []
        while not states or states[-1][1] != "PAUSED":
            change = await watch.read()
            previous = pb.Workspace.State.Name(change.previous_state).removeprefix("STATE_")
            states.append((previous, state_of(change.workspace)))
            assert change.HasField("time")
        watch.cancel()
        assert states[0] == ("RUNNING", "PAUSING")
        assert states[-1] == ("PAUSING", "PAUSED")


async def test_a_watch_is_resumed_where_it_broke(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        watch = watched(broker, 0)
        await broker.until((await broker.create(workspace_id="a")).name, "RUNNING")
        revision = (await watch.read()).revision
        watch.cancel()
        expected = [each async for each in _all_after(broker, revision)]
        again = [each async for each in _all_after(broker, revision)]
        assert expected == again
        assert expected
        assert expected[0].revision > revision


async def _all_after(broker: Running, revision: int) -> Any:
    newest = (await broker.get(name_of("a"))).revision
    watch = watched(broker, revision)
    while revision < newest:
        change = await watch.read()
        revision = change.revision
        yield change
    watch.cancel()


async def test_a_quiet_watch_is_told_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of changes that are others', so that it can be resumed from there."""
    monkeypatch.setattr(services, "BOOKMARK_EVERY", 0.05)
    async with running(tmp_path) as broker:
        watch = watched(broker, 0)
        other = await created(broker, small(), parent="tenants/other")
        newest = (await broker.until(other.name, "RUNNING")).revision
        bookmark = await watch.read()
        while bookmark.revision < newest:
            assert not bookmark.HasField("workspace")
            bookmark = await watch.read()
        assert not bookmark.HasField("workspace")
        assert bookmark.HasField("time")
        watch.cancel()
        resumed = watched(broker, bookmark.revision)
        mine = await broker.create(workspace_id="mine")
        seen = await resumed.read()
        while not seen.HasField("workspace"):
            seen = await resumed.read()
        assert seen.workspace.name == mine.name
        resumed.cancel()


async def test_a_watch_shows_only_what_it_selects(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        web = watched(broker, 0, label_selector={"tier": "web"})
        everyone = watched(broker, 0, parent="tenants/-", label_selector={"tier": "web"})
        await broker.create(workspace_id="db", labels={"tier": "db"})
        await created(broker, small(labels={"tier": "web"}), workspace_id="theirs", parent="tenants/other")
        await broker.create(workspace_id="web", labels={"tier": "web"})
        assert (await web.read()).workspace.name == name_of("web")
        names = []
        while name_of("web") not in names:
            names.append((await everyone.read()).workspace.name)
        assert set(names) == {name_of("web"), name_of("theirs", "tenants/other")}
        web.cancel()
        everyone.cancel()


async def test_a_watcher_that_does_not_read_is_closed_and_the_broker_serves_on(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        events: Any = broker.broker.events
        events._watcher_limit = 20
        watch = watched(broker, 0)
        labels = {f"k{number}": "v" * 256 for number in range(64)}
        name = (await broker.create(workspace_id="ws", labels=labels)).name
        await watch.read()
        for number in range(400):
            await updated(broker, pb.Workspace(name=name, display_name=str(number)), "display_name")
        subscriptions = list(events._subscriptions)
        assert all(len(each._queue) <= 25 for each in subscriptions)

        async def read_on() -> None:
            while True:
                await watch.read()

        refusal = await refused(read_on())
        assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "REVISION_COMPACTED")
        answer = await page(broker)
        assert answer.workspaces[0].display_name == "399"
        again = watched(broker, answer.revision)
        await updated(broker, pb.Workspace(name=name, display_name="last"), "display_name")
        assert (await again.read()).workspace.display_name == "last"
        again.cancel()


async def test_watchers_that_go_leave_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        await broker.create()
        watches = [watched(broker, 0) for _ in range(20)]
        for each in watches:
            await each.read()
        assert broker.broker.events.watchers == 20
        for each in watches:
            each.cancel()
        await broker.eventually(lambda: broker.broker.events.watchers, lambda count: count == 0)


# Waits


async def test_a_wait_ends_when_the_state_is_reached(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", 'delays = { deploy = "100ms" }'))) as broker:
        name = (await broker.create()).name
        answer = await waited(broker, name, "RUNNING", "STOPPED")
        assert (answer.reached, state_of(answer.workspace)) == (True, "RUNNING")
        assert (await waited(broker, name, "RUNNING", seconds=0)).reached  # it is there already


async def test_a_wait_for_nothing_in_particular_ends_when_it_moves_no_more(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", 'delays = { deploy = "100ms", suspend = "100ms" }'))) as broker:
        name = (await broker.create()).name
        assert state_of((await waited(broker, name)).workspace) == "RUNNING"
        await broker.verb("Suspend", name)
        answer = await waited(broker, name)
        assert (answer.reached, state_of(answer.workspace)) == (True, "SUSPENDED")
        await broker.verb("Terminate", name)
        answer = await waited(broker, name)
        assert (answer.reached, state_of(answer.workspace)) == (True, "TERMINATED")


async def test_a_wait_that_times_out_says_where_it_stands(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.until((await broker.create()).name, "RUNNING")).name
        for timeout in ({"seconds": 0}, {"milliseconds": 50}):
            answer = await waited(broker, name, "STOPPED", **timeout)
            assert (answer.reached, state_of(answer.workspace)) == (False, "RUNNING")
        request = api.WaitWorkspaceRequest(name=name, states=["STATE_STOPPED"], timeout=Duration(seconds=3600))
        answer = await broker.workspaces.WaitWorkspace(request, timeout=0.4)  # cut to the call's deadline
        assert not answer.reached


async def test_a_wait_ends_when_the_state_cannot_be_reached_any_more(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.until((await broker.create()).name, "RUNNING")).name
        waiting = asyncio.create_task(waited(broker, name, "STOPPED"))
        await broker.verb("Terminate", name)
        answer = await waiting
        assert (answer.reached, state_of(answer.workspace)) == (False, "TERMINATED")
        assert broker.broker.workspaces._waiting == {}


# Updates


async def test_each_path_that_may_be_named_changes_that_and_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", 'max_duration = "none"'))) as broker:
        wish = small(display_name="old", labels={"a": "1"})
        wish.terms.duration.CopyFrom(lasting(hours=1))
        name = (await created(broker, wish)).name
        await broker.until(name, "RUNNING")
        asked = pb.Workspace(name=name, display_name="new", labels={"b": "2"}, pool="other")
        asked.terms.duration.CopyFrom(lasting(hours=2))
        asked.terms.end_action = pb.LeaseTerms.END_ACTION_SUSPEND

        def parts(ws: pb.Workspace) -> dict[str, object]:
            return {
                "display_name": ws.display_name,
                "labels": dict(ws.labels),
                "terms.duration": ws.terms.duration.seconds,
                "terms.end_action": ws.terms.end_action,
                "length": (ws.end_time.ToDatetime() - ws.planned_start_time.ToDatetime()).total_seconds(),
            }

        expected = parts(await broker.get(name))
        for path, value in (
            ("display_name", "new"),
            ("labels", {"b": "2"}),
            ("terms.duration", 7200),
            ("terms.end_action", pb.LeaseTerms.END_ACTION_SUSPEND),
        ):
            expected[path] = value
            if path == "terms.duration":
                expected["length"] = 7200.0
            assert parts(await updated(broker, asked, path)) == expected
        asked = pb.Workspace(name=name)
        asked.terms.open_ended = True
        changed = await updated(broker, asked, "terms.open_ended")
        assert changed.terms.open_ended
        assert not changed.HasField("end_time")
        assert not changed.terms.HasField("duration")
        cleared = await updated(broker, pb.Workspace(name=name), "display_name", "labels")
        assert (cleared.display_name, dict(cleared.labels)) == ("", {})


async def test_each_path_that_may_not_be_named_is_named(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.until((await broker.create()).name, "RUNNING")).name
        before = await broker.get(name)
        paths = [
            field.name
            for field in pb.Workspace.DESCRIPTOR.fields
            if field.name not in ("display_name", "labels", "terms")
        ]
        paths += ["terms.start_time", "terms.queue_until", "terms.preemptible", "terms.priority", "terms.deadline"]
        paths += ["node_sets.count", "labels.a", "*", "", "x" * 10_000]
        refusal = await refused(updated(broker, pb.Workspace(name=name), "display_name", *paths))
        expected = {f"update_mask.paths[{index}]": "UNKNOWN_VALUE" for index in range(1, len(paths) + 1)}
        assert refusal.violations.items() <= expected.items()
        assert len(refusal.violations) > 20  # the rest is counted where it does not fit
        for path in ("state", "node_sets", "terms.start_time", "*"):
            one = await refused(updated(broker, pb.Workspace(name=name), path))
            assert one.violations == {"update_mask.paths[0]": "UNKNOWN_VALUE"}
        assert await broker.get(name) == before


async def test_bad_values_of_an_update_are_named_at_once_and_values_outside_the_mask_are_not(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.create()).name
        asked = pb.Workspace(name=name, display_name="x" * 1000, labels={"": "a"})
        asked.terms.duration.CopyFrom(Duration(seconds=-1))
        asked.terms.end_action = 99  # type: ignore[assignment]
        refusal = await refused(updated(broker, asked, "display_name", "labels", "terms.duration", "terms.end_action"))
        assert refusal.violations == {
            "workspace.display_name": "TOO_LONG",
            'workspace.labels[""]': "REQUIRED",
            "workspace.terms.duration": "OUT_OF_RANGE",
            "workspace.terms.end_action": "UNKNOWN_VALUE",
        }
        asked.labels.clear()
        asked.labels["a"] = "b"
        assert dict((await updated(broker, asked, "labels")).labels) == {"a": "b"}


async def test_an_update_only_validated_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.until((await broker.create()).name, "RUNNING")).name
        before = await footprint(broker)
        asked = pb.Workspace(name=name, display_name="x")
        answer = await updated(broker, asked, "display_name", validate_only=True, request_id="once")
        assert answer.display_name == "x"
        assert await footprint(broker) == before
        assert (await broker.get(name)).display_name == ""


async def test_a_final_workspace_is_not_updated(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.create()).name
        await ended(broker, name)
        assert (await refused(updated(broker, pb.Workspace(name=name), "labels"))).reason == "STATE_FORBIDS"


async def lease(
    broker: Running, workspace_id: str, hours: float, *, after: float = 0, memory: int = 4096
) -> pb.Workspace:
    """A lease of some hours that begins after some hours."""
    wish = small(memory=memory)
    wish.terms.duration.CopyFrom(lasting(hours=hours))
    if after:
        wish.terms.start_time.CopyFrom(at(START + timedelta(hours=after)))
    return await created(broker, wish, workspace_id=workspace_id)


def asked_end(name: str, *, open_ended: bool = False, **length: float) -> pb.Workspace:
    asked = pb.Workspace(name=name)
    if length:
        asked.terms.duration.CopyFrom(lasting(**length))
    asked.terms.open_ended = open_ended
    return asked


def length_of(workspace: pb.Workspace) -> timedelta:
    return workspace.end_time.ToDatetime() - workspace.planned_start_time.ToDatetime()


async def test_a_lease_is_extended_as_far_as_nothing_is_promised_to_others(tmp_path: Path) -> None:
    async with running(tmp_path, ONE_HOST, clock=ManualClock(START)) as broker:
        first = await lease(broker, "first", 1)
        promised = await lease(broker, "promised", 1, after=3)
        assert state_of(promised) == "RESERVED"
        await broker.until(first.name, "RUNNING")
        gap = START + timedelta(hours=3) - first.planned_start_time.ToDatetime(UTC)
        before = await footprint(broker)
        for longer in (
            updated(broker, asked_end(first.name, hours=3, minutes=30), "terms.duration"),
            updated(broker, asked_end(first.name, seconds=gap.total_seconds() + 1), "terms.duration"),
        ):
            refusal = await refused(longer)
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "NO_CAPACITY")
        assert await footprint(broker) == before
        exact = await updated(broker, asked_end(first.name, seconds=gap.total_seconds()), "terms.duration")
        assert exact.end_time.ToDatetime(UTC) == START + timedelta(hours=3)  # what ends as another begins is no clash
        slot = next(each for each in (await hosts(broker))["lab-host-1"].slots if each.workspace == first.name)
        assert slot.end_time == exact.end_time
        await ended(broker, promised.name)
        await updated(broker, asked_end(first.name, hours=9), "terms.duration")
        await broker.until(first.name, "EXPIRED", step=1800)
        assert broker.broker.clock.now() >= START + timedelta(hours=9)


async def test_a_lease_made_shorter_gives_its_room_to_others_and_ends_then(tmp_path: Path) -> None:
    async with running(tmp_path, ONE_HOST, clock=ManualClock(START)) as broker:
        first = await lease(broker, "first", 4)
        await broker.until(first.name, "RUNNING")
        assert (await refused(lease(broker, "second", 1, after=2))).reason == "NO_CAPACITY"
        shorter = await updated(broker, asked_end(first.name, hours=2 - 0.001), "terms.duration")
        assert length_of(shorter) == timedelta(hours=2 - 0.001)
        await lease(broker, "second", 1, after=2)
        await broker.until(first.name, "EXPIRED", step=600)
        assert broker.broker.clock.now() < START + timedelta(hours=2, minutes=11)
        await broker.until(name_of("second"), "RUNNING", step=60)


async def test_a_lease_is_not_made_to_end_in_the_past(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, ONE_HOST, clock=clock) as broker:
        first = await lease(broker, "first", 4)
        await broker.until(first.name, "RUNNING")
        await clock.advance(3600)
        refusal = await refused(updated(broker, asked_end(first.name, minutes=30), "terms.duration"))
        assert refusal.violations == {"workspace.terms.duration": "IN_THE_PAST"}
        assert clock.now().isoformat() in refusal.message  # the broker's time
        assert length_of(await broker.get(first.name)) == timedelta(hours=4)


async def test_a_longest_lease_is_the_longest_of_an_update_too(tmp_path: Path) -> None:
    settings = 'max_duration = "10h"\ndefault_duration = "2h"'
    limits = '[tenants.default]\nmax_duration = "5h"\n[tenants.other]'
    async with running(tmp_path, site(pool("lab", settings), rest=limits)) as broker:
        mine = await broker.create()
        assert length_of(mine) == timedelta(hours=2)
        theirs = (await created(broker, small(), parent="tenants/other")).name
        for name, hours in ((mine.name, 6), (theirs, 11)):
            refusal = await refused(updated(broker, asked_end(name, hours=hours), "terms.duration"))
            assert refusal.violations == {"workspace.terms.duration": "OUT_OF_RANGE"}
            open_end = await refused(updated(broker, asked_end(name, open_ended=True), "terms.open_ended"))
            assert set(open_end.violations.values()) == {"OUT_OF_RANGE"}
            assert length_of(await updated(broker, asked_end(name, hours=hours - 1), "terms.duration")) == timedelta(
                hours=hours - 1
            )
        # Unset is the pool's default again.
        assert length_of(await updated(broker, asked_end(mine.name), "terms.duration")) == timedelta(hours=2)
        wish = small()
        wish.terms.duration.CopyFrom(lasting(hours=6))
        assert (await refused(created(broker, wish))).violations == {"workspace.terms.duration": "OUT_OF_RANGE"}
        wish.terms.duration.CopyFrom(lasting(hours=11))
        refusal = await refused(created(broker, wish, parent="tenants/other"))
        assert refusal.reason == "NEVER_FITS"


async def test_an_end_is_taken_away_only_where_nobody_is_promised_the_room(tmp_path: Path) -> None:
    configuration = site(pool("lab", 'max_duration = "none"', hosts=1, memory=4096))
    async with running(tmp_path, configuration, clock=ManualClock(START)) as broker:
        first = await lease(broker, "first", 1)
        await broker.until(first.name, "RUNNING")
        promised = await lease(broker, "promised", 1, after=100)
        asked = asked_end(first.name, open_ended=True)
        assert (await refused(updated(broker, asked, "terms.open_ended"))).reason == "NO_CAPACITY"
        await ended(broker, promised.name)
        assert not (await updated(broker, asked, "terms.open_ended")).HasField("end_time")
        assert (await refused(lease(broker, "later", 1, after=100))).reason == "NO_CAPACITY"


async def test_open_ended_outside_the_mask_is_not_looked_at(tmp_path: Path) -> None:
    """A client reads an open-ended workspace, sets a duration and names that alone."""
    async with running(tmp_path, site(pool("lab", 'max_duration = "none"'))) as broker:
        wish = small()
        wish.terms.open_ended = True
        workspace = await created(broker, wish)
        workspace.terms.duration.CopyFrom(lasting(hours=3))
        changed = await updated(broker, pb.Workspace(name=workspace.name, terms=workspace.terms), "terms.duration")
        assert length_of(changed) == timedelta(hours=3)
        assert not changed.terms.open_ended
        # Not to be open-ended is what it is already.
        assert length_of(await updated(broker, asked_end(workspace.name), "terms.open_ended")) == timedelta(hours=3)


# What is told, and what is not


async def test_user_data_is_in_no_answer(tmp_path: Path) -> None:
    secret = b"s3cr3t-of-the-user"
    async with running(tmp_path) as broker:
        watch = watched(broker, 0)
        wish = small(user_data=secret, ssh_public_keys=["ssh-ed25519 AAAA me"])
        answers: list[Any] = [
            await checked(broker, wish, include_hosts=True, include_offers=True),
            await created(broker, wish, validate_only=True),
            await created(broker, wish, workspace_id="ws"),
        ]
        await broker.until(name_of("ws"), "RUNNING")
        answers += [
            await broker.get(name_of("ws")),
            await page(broker),
            await watch.read(),
            await waited(broker, name_of("ws"), "RUNNING"),
            await updated(broker, pb.Workspace(name=name_of("ws"), display_name="x"), "display_name"),
            await broker.verb("Stop", name_of("ws")),
            *(await hosts(broker)).values(),
        ]
        watch.cancel()
        for answer in answers:
            assert secret not in answer.SerializeToString()
        assert answers[2].node_sets[0].ssh_public_keys == ["ssh-ed25519 AAAA me"]
        refusal = await refused(broker.create(user_data=secret, memory=-1))
        assert secret.decode() not in str(refusal)


async def test_an_answer_can_be_sent_again_as_a_request(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        first = await broker.create(display_name="web", labels={"a": "b"}, count=2)
        await broker.until(first.name, "RUNNING")
        again = await created(broker, await broker.get(first.name))
        assert again.node_sets == first.node_sets
        assert again.name != first.name
        assert (again.display_name, dict(again.labels)) == ("web", {"a": "b"})


async def test_use_adds_up_and_goes_back_to_nothing(tmp_path: Path) -> None:
    rest = "[tenants.default]\ndisplay_name = 'Us'\n[tenants.default.limits]\nnodes = 50\n[tenants.other]"
    async with running(tmp_path, site(pool("lab", "memory_overhead = 100"), pool("attic"), rest=rest)) as broker:
        a = (await broker.create(pool="lab", count=2, disk=500)).name
        b = (await broker.create(pool="attic")).name
        await created(broker, small(), parent="tenants/other")
        for each in (a, b):
            await broker.until(each, "RUNNING")
        used = await tenant(broker)
        assert (used.display_name, dict(used.limits.amounts)) == ("Us", {"nodes": 50})
        assert dict(used.used.amounts) == {"workspaces": 2, "nodes": 3, "cpu": 3000, "memory": 3272, "disk": 1000}
        assert {name: dict(amounts.amounts) for name, amounts in used.pool_used.items()} == {
            "lab": {"nodes": 2, "cpu": 2000, "memory": 2248, "disk": 1000},
            "attic": {"nodes": 1, "cpu": 1000, "memory": 1024},
        }
        await broker.verb("Suspend", a, release_capacity=True)
        await broker.until(a, "SUSPENDED")
        released = await tenant(broker)
        assert dict(released.used.amounts) == {"workspaces": 2, "nodes": 3, "cpu": 1000, "memory": 1024, "disk": 1000}
        await ended(broker, a, b)
        assert dict((await tenant(broker)).used.amounts) == {}
        assert outcome_of(await checked(broker, small(count=4))) == "FITS"
