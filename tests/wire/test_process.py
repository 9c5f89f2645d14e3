"""`workspace-brokerd` as a process: how it starts, what it refuses to start with, and how it stops."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as rpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as workspaces_grpc

from tests.support.process import PROGRAM, BrokerProcess, broker_process, run, until

TENANT = "tenants/default"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def configuration(deploy: str = "0s", server: str = "", pool: str = "") -> str:
    """One pool of one host, whose VMs take so long to start."""
    return f"""
[server]
listen = "127.0.0.1:0"
{server}
[pools.lab]
backend = "simulator"
delays = {{ deploy = "{deploy}" }}
{pool}
[[pools.lab.hosts]]
cpu = 8000
memory = 16384
[instance_types.small]
cpu = 1000
memory = 1024
"""


class Caller:
    """A blocking client."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.workspaces: Any = workspaces_grpc.WorkspaceServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def create(self, workspace_id: str) -> pb.Workspace:
        nodes = [pb.NodeSet(count=1, instance_type="small")]
        request = api.CreateWorkspaceRequest(
            parent=TENANT, workspace_id=workspace_id, workspace=pb.Workspace(node_sets=nodes)
        )
        made: pb.Workspace = self.workspaces.CreateWorkspace(request, timeout=20).workspace
        return made

    def wait(self, workspace: pb.Workspace, timeout: float = 60) -> Any:
        """A call under way, for a state that may never come."""
        request = api.WaitWorkspaceRequest(name=workspace.name, states=[pb.Workspace.STATE_RUNNING])
        return self.workspaces.WaitWorkspace.future(request, timeout=timeout)

    def status(self, service: str) -> Any:
        return self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status


@pytest.fixture
def callers() -> Iterator[Any]:
    """Makes clients of processes, and closes their channels."""
    channels: list[grpc.Channel] = []

    def caller(process: BrokerProcess) -> Caller:
        channels.append(grpc.insecure_channel(process.address, options=[("grpc.use_local_subchannel_pool", 1)]))
        return Caller(channels[-1])

    yield caller
    for channel in channels:
        channel.close()


def reason(error: grpc.RpcError) -> str:
    """The reason a refusal of the broker carries."""
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    info = rpc.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


# Starting


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_serves_and_ends_well_when_told_to(tmp_path: Path, number: signal.Signals) -> None:
    with broker_process(tmp_path, configuration()) as process:
        assert process.output() == f"serving on 127.0.0.1:{process.port}\n"
        process.signal(number)
        assert process.wait_end() == 0
        assert "stopped" in process.errors()


def test_version(tmp_path: Path) -> None:
    done = run([PROGRAM, "--version"], tmp_path)
    assert (done.returncode, done.stdout) == (0, f"workspace-brokerd {version('workspace-broker')}\n")


def test_check_reads_the_configuration_and_touches_nothing(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(configuration())
    done = run([PROGRAM, "--config", file, "--check"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file} is valid: 1 pools\n"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("flags", [[], ["--check"]])
def test_every_bad_key_is_named_at_once(tmp_path: Path, flags: list[str]) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(
        """
[server]
listen = "0.0.0.0:7443"
drain_timeout = "soon"
colour = "red"
[pools.lab]
backend = "simulator"
max_in_flight = 0
delays = { deplay = "1s" }
[[pools.lab.hosts]]
cpu = -1
[pools.Other]
backend = "simulatr"
[instance_types.none]
"""
    )
    done = run([PROGRAM, "--config", file, *flags], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    named = [line.strip().partition(": ")[0] for line in done.stderr.splitlines()[1:]]
    assert sorted(named) == sorted(
        [
            "server.listen",
            "server.drain_timeout",
            "server.colour",
            "pools.lab.max_in_flight",
            "pools.lab.delays.deplay",
            "pools.lab.hosts[0].cpu",
            "pools.lab.hosts[0].memory",
            "pools.Other",
            "pools.Other.backend",
            "instance_types.none",
        ]
    )
    assert list(tmp_path.iterdir()) == [file]


def test_without_a_configuration_it_says_so(tmp_path: Path) -> None:
    done = run([PROGRAM, "--config", tmp_path / "none.toml"], tmp_path)
    assert done.returncode == 2
    assert "none.toml" in done.stderr
    assert "No such file" in done.stderr


def test_a_second_broker_on_the_same_state_is_refused(tmp_path: Path) -> None:
    with broker_process(tmp_path, configuration()) as first:
        done = run([PROGRAM, "--config", first.file], tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        last = done.stderr.splitlines()[-1]
        assert last.startswith("workspace-brokerd: ")
        assert f"{tmp_path / 'broker.db'} is in use by another broker (process {first.pid})" in last
        assert "Traceback" not in done.stderr


def test_a_killed_broker_leaves_its_state_free(tmp_path: Path, callers: Any) -> None:
    with broker_process(tmp_path, configuration()) as first:
        uid = callers(first).create("kept").uid
        first.kill()
    with broker_process(tmp_path, configuration()) as second:
        name = f"{TENANT}/workspaces/kept"
        assert callers(second).workspaces.GetWorkspace(api.GetWorkspaceRequest(name=name)).workspace.uid == uid


def test_a_port_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "broker.toml"
        file.write_text(configuration().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        done = run([PROGRAM, "--config", file], tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("workspace-brokerd: ")
    assert str(port) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_state_file_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "broker.db").write_bytes(b"this is not a database\n" * 100)
    file = tmp_path / "broker.toml"
    file.write_text(configuration())
    done = run([PROGRAM, "--config", file], tmp_path)
    assert done.returncode == 1
    assert str(tmp_path / "broker.db") in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# Health


def test_health_of_services_and_pools(tmp_path: Path, callers: Any) -> None:
    silent = """
breaker = { failures = 1, probe_interval = "100ms" }
refresh_interval = "100ms"
[[pools.lab.faults]]
kind = "transient"
step = "inventory"
"""
    with broker_process(tmp_path, configuration(pool=silent)) as process:
        caller = callers(process)
        for service in ("", *(f"workspacebroker.v1.{name}Service" for name in ("Workspace", "Pool", "Tenant"))):
            until(lambda service=service: caller.status(service) == SERVING, f"{service} serving")  # type: ignore[misc]
        until(lambda: caller.status("pool:lab") == NOT_SERVING, "pool:lab not serving")
        with pytest.raises(grpc.RpcError) as refused:
            caller.status("pool:none")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_of_a_pool_that_comes_back_can_be_watched(tmp_path: Path, callers: Any) -> None:
    silent_at_first = """
breaker = { failures = 1, probe_interval = "300ms" }
refresh_interval = "300ms"
[[pools.lab.faults]]
kind = "transient"
step = "inventory"
count = 6
"""
    with broker_process(tmp_path, configuration(pool=silent_at_first)) as process:
        caller = callers(process)
        watch = caller.health.Watch(health_pb2.HealthCheckRequest(service="pool:lab"), timeout=30)
        seen = []
        for answer in watch:
            seen.append(answer.status)
            if answer.status == SERVING:
                break
        watch.cancel()
        assert seen[-2:] == [NOT_SERVING, SERVING]


# Stopping


def test_a_call_under_way_may_finish_and_new_ones_are_refused(tmp_path: Path, callers: Any) -> None:
    with broker_process(tmp_path, configuration(deploy="1500ms")) as process:
        caller = callers(process)
        waiting = caller.wait(caller.create("slow"))
        watched = caller.health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watched).status == SERVING
        process.signal()
        assert next(watched).status == NOT_SERVING
        watched.cancel()
        until(lambda: "stopping" in process.errors(), "the end in the log")
        for late in (caller, callers(process)):
            with pytest.raises(grpc.RpcError) as refused:
                late.create("late")
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert process.process.poll() is None
        assert waiting.result().reached
        assert process.wait_end() == 0


def test_a_wait_that_would_outlast_the_drain_is_told_so(tmp_path: Path, callers: Any) -> None:
    with broker_process(tmp_path, configuration(deploy="1h", server='drain_timeout = "1s"')) as process:
        caller = callers(process)
        waiting = caller.wait(caller.create("slow"))
        until(lambda: caller.status("") == SERVING, "an answer")  # so that the wait has arrived
        process.signal()
        assert process.wait_end() == 0
        error = waiting.exception()
        assert isinstance(error, grpc.RpcError)
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        assert reason(error) == "SHUTTING_DOWN"


def test_a_watch_is_told_and_does_not_hold_up_the_end(tmp_path: Path, callers: Any) -> None:
    with broker_process(tmp_path, configuration(server='drain_timeout = "60s"')) as process:
        caller = callers(process)
        watch = caller.workspaces.WatchWorkspaces(api.WatchWorkspacesRequest(parent="tenants/-"))
        changes = iter(watch)
        caller.create("seen")
        assert next(changes).workspace.name == f"{TENANT}/workspaces/seen"
        process.signal()
        with pytest.raises(grpc.RpcError) as closed:
            list(changes)
        assert closed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert reason(closed.value) == "SHUTTING_DOWN"
        assert process.wait_end(timeout=10) == 0


def test_what_was_under_way_goes_on_after_a_restart(tmp_path: Path, callers: Any) -> None:
    kept = configuration(deploy="2s", server='drain_timeout = "0s"', pool='state_file = "world"')
    with broker_process(tmp_path, kept) as process:
        made = callers(process).create("slow")
        assert made.state == pb.Workspace.STATE_STARTING
    with broker_process(tmp_path, kept) as process:
        answer = callers(process).wait(made, timeout=20).result()
        assert answer.workspace.uid == made.uid
        assert answer.reached, answer.workspace
