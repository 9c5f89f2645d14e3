"""A reservation that makes a preemptible VM give way, on a stand-in OpenNebula and the system's own clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from workspacebroker.v1 import resources_pb2 as pb

from backends.opennebula.standin import HostConfig, ImageConfig, Standin, StandinConfig
from tests.scenarios.test_opennebula import configuration
from tests.support.broker import running

CONFIG = StandinConfig(
    hosts=(HostConfig(name="node-1", cores=4, memory_mb=4096),),
    images=(ImageConfig(name="debian-12"),),
    scheduler=False,
    dwell={
        "PROLOG": 0.2,
        "BOOT": 0.3,
        "SAVE_STOP": 0.5,
        "EPILOG_STOP": 0.5,
        "PROLOG_RESUME": 0.3,
        "BOOT_STOPPED": 0.3,
        "SHUTDOWN": 0.1,
        "EPILOG": 0.1,
    },
)
AHEAD = timedelta(seconds=20)


def lease(seconds: float, **terms: object) -> pb.LeaseTerms:
    wanted = pb.LeaseTerms(**terms)  # type: ignore[arg-type]
    wanted.duration.FromTimedelta(timedelta(seconds=seconds))
    return wanted


async def test_a_reservation_preempts_in_time_and_the_victim_resumes(tmp_path: Path) -> None:
    with Standin(CONFIG) as one:
        settings = 'suspend_lead = "3s"\nstart_lead = "1s"'
        async with running(tmp_path, configuration(one, settings)) as broker:
            victim = await broker.create(
                workspace_id="batch", cpu=4000, memory=2048, terms=lease(3600, preemptible=True)
            )
            victim = await broker.until(victim.name, "RUNNING")
            (vm,) = one.vms()
            start = Timestamp()
            start.FromDatetime(datetime.now(UTC) + AHEAD)
            reserved = await broker.create(workspace_id="demo", cpu=4000, memory=2048, terms=lease(3, start_time=start))
            assert reserved.state == pb.Workspace.STATE_RESERVED
            assert one.place(vm.id) == "RUNNING"  # nothing is touched before its time

            suspended = await broker.until(victim.name, "SUSPENDED", timeout=30)
            assert suspended.cause == pb.Workspace.CAUSE_PREEMPTED
            assert suspended.nodes[0].capacity_released
            assert datetime.now(UTC) < start.ToDatetime(UTC)
            assert one.place(vm.id).startswith("STOPPED")  # ONE's STOPPED frees its host, its SUSPENDED does not

            started = await broker.until(reserved.name, "RUNNING", timeout=30)
            late = started.actual_start_time.ToDatetime(UTC) - start.ToDatetime(UTC)
            assert abs(late) <= timedelta(seconds=1)

            await broker.until(reserved.name, "EXPIRED", timeout=30)
            again = await broker.until(victim.name, "RUNNING", timeout=30)
            assert [each.id for each in one.vms() if each.id == vm.id] == [vm.id]  # the very same VM
            stood_still = again.end_time.ToDatetime(UTC) - victim.end_time.ToDatetime(UTC)
            assert timedelta(seconds=3) < stood_still < timedelta(seconds=15)
            assert again.queue_position == 0
