"""A client process: so many creates in flight for so many seconds; prints what it measured as JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
import uuid
from typing import Any

import grpc.aio
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as services


async def load(address: str, in_flight: int, seconds: float) -> dict[str, Any]:
    """Keeps `in_flight` calls going; latencies in seconds."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = services.WorkspaceServiceStub(channel)
        wanted = pb.Workspace(
            labels={"bench": "1"},
            node_sets=[pb.NodeSet(count=1, amounts=pb.Quantities(amounts={"cpu": 100, "memory": 64}))],
        )

        async def caller(until: float, noted: bool) -> None:
            while time.perf_counter() < until:
                request = api.CreateWorkspaceRequest(
                    parent="tenants/default", workspace=wanted, request_id=uuid.uuid4().hex
                )
                began = time.perf_counter()
                await stub.CreateWorkspace(request)
                if noted:
                    latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(caller(time.perf_counter() + 0.3, False) for _ in range(in_flight)))
        used = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        await asyncio.gather(*(caller(began + seconds, True) for _ in range(in_flight)))
        took = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return {"calls": len(latencies), "seconds": took, "cpu": cpu, "latencies": latencies}


if __name__ == "__main__":
    address, in_flight, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    try:
        import uvloop
    except ImportError:
        measured = asyncio.run(load(address, in_flight, seconds))
    else:
        measured = uvloop.run(load(address, in_flight, seconds))
    json.dump(measured, sys.stdout)
