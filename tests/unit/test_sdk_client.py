"""The SDK against a real gRPC server: request ids, retries, errors, waits and watches across outages."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import islice

import grpc
import pytest
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import Workspace

from clients import errors
from clients.sdk import AsyncClient, BrokerError, Client, Outcome, host_name, pool_name, workspace_name
from clients.transport import is_loopback, proxy_for
from tests.support.fake_broker import FakeBroker, refusal, workspace

NAME = "tenants/default/workspaces/web"
DOWN = refusal(grpc.StatusCode.UNAVAILABLE, "", "gone")


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


@pytest.fixture
def client(broker: FakeBroker) -> Iterator[Client]:
    with Client(broker.address) as connected:
        yield connected


def event(revision: int, name: str = "web", state: int = Workspace.STATE_RUNNING) -> api.WatchWorkspacesResponse:
    shown = workspace(name, state, revision=revision)
    return api.WatchWorkspacesResponse(revision=revision, workspace=shown)


def test_every_mutation_gets_a_request_id_and_keeps_its_own(broker: FakeBroker, client: Client) -> None:
    broker.put(workspace())
    wish = api.CreateWorkspaceRequest(parent="tenants/default")
    client.create(wish)
    client.create(wish)
    client.act("stop", NAME, force=True)
    client.act("stop", NAME, request_id="mine")
    client.update(Workspace(name=NAME), ["labels"])
    client.save_node(NAME, 0, "golden")
    creates, stops = broker.asked("CreateWorkspace"), broker.asked("StopWorkspace")
    assert len({request.request_id for request in creates} - {""}) == 2
    assert not wish.request_id
    assert stops[0].force
    assert len(stops[0].target.request_id) == 32
    assert stops[1].target.request_id == "mine"
    assert broker.asked("UpdateWorkspace")[0].request_id
    assert broker.asked("SaveNode")[0].target.request_id


def test_unavailable_is_retried_with_the_same_request_id(broker: FakeBroker, client: Client) -> None:
    broker.failures["CreateWorkspace"].extend([DOWN, DOWN])
    client.create(api.CreateWorkspaceRequest(parent="tenants/default"))
    sent = broker.asked("CreateWorkspace")
    assert len(sent) == 3
    assert len({request.request_id for request in sent}) == 1


def test_other_codes_are_not_retried(broker: FakeBroker, client: Client) -> None:
    broker.failures["GetWorkspace"].append(refusal(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"))
    with pytest.raises(errors.Conflict):
        client.workspace(NAME)
    assert len(broker.asked("GetWorkspace")) == 1


def test_service_config_names_every_service() -> None:
    config = json.loads(resources.files("clients").joinpath("service_config.json").read_text())
    (method,) = config["methodConfig"]
    assert {name["service"].rpartition(".")[2] for name in method["name"]} == {
        "WorkspaceService",
        "PoolService",
        "TenantService",
    }
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert method["retryPolicy"]["maxAttempts"] == 4


def test_an_error_carries_the_id_to_repeat_with(broker: FakeBroker, client: Client) -> None:
    broker.failures["CreateWorkspace"].append(refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT"))
    with pytest.raises(errors.Unavailable) as caught:
        client.create(api.CreateWorkspaceRequest(parent="tenants/default"))
    assert caught.value.request_id == broker.asked("CreateWorkspace")[0].request_id


def test_pages_are_read_to_the_end(broker: FakeBroker, client: Client) -> None:
    broker.put(*(workspace(f"w-{n}") for n in range(5)))
    broker.page = 2
    assert [found.name[-3:] for found in client.workspaces("tenants/default")] == [f"w-{n}" for n in range(5)]
    assert len(broker.asked("ListWorkspaces")) == 3


async def test_async_calls_are_the_same(broker: FakeBroker) -> None:
    broker.put(workspace())
    async with AsyncClient(broker.address) as client:
        request = api.StopWorkspaceRequest(target=api.Target(name=NAME))
        answer = await client.call(request)
        assert answer.workspace.state == Workspace.STATE_STOPPING
        assert broker.asked("StopWorkspace")[0].target.request_id
        with pytest.raises(errors.NotFound) as caught:
            await client.call(api.GetWorkspaceRequest(name="tenants/default/workspaces/none"))
        assert caught.value.reason == "NOT_FOUND"


def test_wait_polls_on_until_the_state_is_reached(broker: FakeBroker, client: Client) -> None:
    states = [Workspace.STATE_PENDING, Workspace.STATE_STARTING, Workspace.STATE_RUNNING]
    broker.script.extend(workspace(state=state) for state in states)
    seen: list[int] = []
    result = client.wait(
        NAME, [Workspace.STATE_RUNNING], poll=0.01, on_progress=lambda w, _: seen.append(w.state if w else 0)
    )
    assert result.outcome is Outcome.REACHED
    assert seen == states[:2]


def test_wait_ends_elsewhere_when_it_cannot_be_reached(broker: FakeBroker, client: Client) -> None:
    broker.script.append(workspace(state=Workspace.STATE_FAILED))
    assert client.wait(NAME, [Workspace.STATE_RUNNING]).outcome is Outcome.ELSEWHERE


def test_wait_for_a_queued_resume_does_not_take_rest_for_the_end(broker: FakeBroker, client: Client) -> None:
    queued = workspace(state=Workspace.STATE_SUSPENDED, queue_position=2)
    broker.script.extend([queued, queued, workspace()])
    result = client.wait(NAME, [Workspace.STATE_RUNNING], or_settled=True)
    assert result.outcome is Outcome.REACHED
    assert Workspace.STATE_SUSPENDED not in broker.asked("WaitWorkspace")[1].states
    broker.script.append(workspace(state=Workspace.STATE_SUSPENDED))
    assert client.wait(NAME, [Workspace.STATE_RUNNING], or_settled=True).outcome is Outcome.ELSEWHERE


def test_wait_times_out_with_what_it_saw(broker: FakeBroker, client: Client) -> None:
    broker.script.append(workspace(state=Workspace.STATE_STARTING))
    result = client.wait(NAME, [Workspace.STATE_RUNNING], timeout=0)
    assert (result.outcome, result.workspace.state) == (Outcome.TIMED_OUT, Workspace.STATE_STARTING)


def test_wait_outlives_a_restart(broker: FakeBroker, client: Client) -> None:
    broker.script.extend([workspace(state=Workspace.STATE_STARTING), workspace()])

    def restart(seen: Workspace | None, error: BrokerError | None) -> None:
        if error is None:
            broker.stop()
        else:
            assert seen is not None
            broker.start()

    assert client.wait(NAME, [Workspace.STATE_RUNNING], poll=0.01, on_progress=restart).outcome is Outcome.REACHED


def test_wait_for_a_broker_that_never_answered_fails_at_once(broker: FakeBroker) -> None:
    broker.stop()
    with Client(broker.address) as client, pytest.raises(errors.TransportError) as caught:
        client.wait(NAME)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    broker.start()


def test_watch_resumes_by_revision_after_a_disconnect(broker: FakeBroker, client: Client) -> None:
    bookmark = api.WatchWorkspacesResponse(revision=6)
    broker.events = [event(5), bookmark, event(7), event(8)]
    broker.cuts.append((2, DOWN))
    changes = client.watch("tenants/default")
    assert [change.revision for change in islice(changes, 3)] == [5, 7, 8]
    assert [request.after_revision for request in broker.asked("WatchWorkspaces")] == [0, 6]


def test_watch_resumes_after_a_restart(broker: FakeBroker, client: Client) -> None:
    broker.events = [event(5)]
    changes = client.watch("tenants/default")
    assert next(changes).revision == 5
    broker.stop()
    broker.events.append(event(6))
    broker.start()
    assert next(changes).revision == 6


def test_watch_lists_after_compaction_and_goes_on(broker: FakeBroker, client: Client) -> None:
    broker.events = [event(5), event(30)]
    broker.cuts.append((1, refusal(grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")))
    broker.put(
        workspace("old", revision=3),
        workspace("gone", Workspace.STATE_TERMINATED, revision=20),
        workspace("new", revision=10),
    )
    broker.revision = 20
    seen = [(c.workspace.name.rpartition("/")[2], c.revision) for c in islice(client.watch("tenants/default"), 4)]
    assert seen == [("web", 5), ("new", 10), ("gone", 20), ("web", 30)]
    assert [request.after_revision for request in broker.asked("WatchWorkspaces")] == [0, 20]


def test_watch_tells_refusals(broker: FakeBroker, client: Client) -> None:
    broker.failures["WatchWorkspaces"].append(refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"))
    with pytest.raises(errors.NotFound):
        next(client.watch("tenants/none"))


def test_closing_ends_what_another_thread_waits_for(broker: FakeBroker) -> None:
    broker.put(workspace(state=Workspace.STATE_STARTING))
    waits: list[Callable[[Client], object]] = [
        lambda client: client.wait(NAME, [Workspace.STATE_RUNNING]),
        lambda client: next(client.watch("tenants/default")),
    ]
    for wait in waits:
        with Client(broker.address) as client:
            broker.on_call = lambda method, client=client: threading.Thread(target=client.close).start()  # type: ignore[misc]
            with pytest.raises(errors.TransportError) as caught:
                wait(client)
            assert caught.value.code is grpc.StatusCode.CANCELLED
            with pytest.raises(errors.TransportError):
                client.workspace(NAME)


def test_wait_does_not_poll_faster_than_it_may(broker: FakeBroker, client: Client) -> None:
    broker.script.extend([workspace(state=Workspace.STATE_STARTING), workspace()])
    begun = time.monotonic()
    assert client.wait(NAME, [Workspace.STATE_RUNNING]).outcome is Outcome.REACHED
    assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize(
    ("server", "loopback"),
    [
        ("127.0.0.1:7443", True),
        ("localhost:7443", True),
        ("[::1]:7443", True),
        ("::1", True),
        ("dns:///127.8.9.1:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("unix:/run/broker", True),
        ("localhost.example.com:7443", False),
        ("10.0.0.1:7443", False),
        ("[2001:db8::1]:7443", False),
    ],
)
def test_what_is_loopback(server: str, loopback: bool) -> None:
    assert is_loopback(server) is loopback


def test_the_proxy_is_the_one_grpc_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://u:p@proxy:3128")
    monkeypatch.setenv("no_proxy", "example.com, 10.0.0.1")
    assert proxy_for("broker:7443") == "http_proxy=http://proxy:3128"
    assert proxy_for("a.example.com:7443") == proxy_for("10.0.0.1:1") == proxy_for("localhost:1") == ""
    monkeypatch.setenv("grpc_proxy", "http://other:1")
    assert proxy_for("broker:7443") == "grpc_proxy=http://other:1"


def test_names() -> None:
    assert workspace_name("web", "physics") == "tenants/physics/workspaces/web"
    assert workspace_name("tenants/a/workspaces/b", "c") == "tenants/a/workspaces/b"
    assert pool_name("lab") == pool_name("pools/lab") == "pools/lab"
    assert host_name("lab/node 1/x") == "pools/lab/hosts/node%201%2Fx"
    assert host_name("pools/lab/hosts/node%201") == "pools/lab/hosts/node%201"
    with pytest.raises(ValueError, match="POOL/HOST"):
        host_name("lab")
