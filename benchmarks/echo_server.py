"""The ceiling: a bare grpc.aio server that parses each request and answers with what a broker was seen to answer.

    python -m benchmarks.echo_server RECORDED

RECORDED is a JSON file of serialised answers in hexadecimal, lists by method. They are parsed once and serialised anew
for each call: the same types and sizes as the broker's, and nothing between request and answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as services

M = TypeVar("M", bound=Message)


class Echo(services.WorkspaceServiceServicer):
    """Answers every request alike."""

    def __init__(self, recorded: Mapping[str, Sequence[str]]) -> None:
        def messages(method: str, answer: type[M]) -> list[M]:
            return [answer.FromString(bytes.fromhex(line)) for line in recorded.get(method, ())] or [answer()]

        self._created = messages("CreateWorkspace", api.CreateWorkspaceResponse)[0]
        self._found = messages("GetWorkspace", api.GetWorkspaceResponse)[0]
        self._listed = messages("ListWorkspaces", api.ListWorkspacesResponse)[0]
        self._changes = messages("WatchWorkspaces", api.WatchWorkspacesResponse)

    async def CreateWorkspace(self, request: api.CreateWorkspaceRequest, context: Any) -> api.CreateWorkspaceResponse:
        return self._created

    async def GetWorkspace(self, request: api.GetWorkspaceRequest, context: Any) -> api.GetWorkspaceResponse:
        return self._found

    async def ListWorkspaces(self, request: api.ListWorkspacesRequest, context: Any) -> api.ListWorkspacesResponse:
        return self._listed

    async def WatchWorkspaces(
        self, request: api.WatchWorkspacesRequest, context: Any
    ) -> AsyncIterator[api.WatchWorkspacesResponse]:
        for change in self._changes:
            yield change


async def serve(recorded: Mapping[str, Sequence[str]]) -> None:
    """Serves on a free port, which it prints."""
    server = grpc.aio.server()
    services.add_WorkspaceServiceServicer_to_server(Echo(recorded), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"serving on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    serving = serve(json.loads(Path(sys.argv[1]).read_text()))
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)
