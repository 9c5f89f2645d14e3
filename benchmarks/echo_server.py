"""The ceiling: a bare grpc.aio server that parses a CreateWorkspace request and returns the same types."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as services


class Echo(services.WorkspaceServiceServicer):
    """Answers with what it was sent."""

    async def CreateWorkspace(self, request: api.CreateWorkspaceRequest, context: Any) -> api.CreateWorkspaceResponse:
        return api.CreateWorkspaceResponse(workspace=request.workspace)


async def serve() -> None:
    """Serves on a free port, which it prints."""
    server = grpc.aio.server()
    services.add_WorkspaceServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"serving on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())
    else:
        uvloop.run(serve())
