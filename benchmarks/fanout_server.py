"""The ceiling of a fan-out: a bare grpc.aio server that hands prebuilt messages to all who watch.

    python -m benchmarks.fanout_server CHANGE ANSWER FIRST COUNT

CHANGE and ANSWER are a serialised WatchWorkspacesResponse and UpdateWorkspaceResponse in hexadecimal, as a broker sent
them. They are built COUNT times, with revisions from FIRST on, before anything is served: an UpdateWorkspace does
nothing but take the next one, and a watcher is sent bytes. Each watcher begins with the latest change.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks.load_client import SERVICE


class Fanout(grpc.GenericRpcHandler):
    """Takes any request, and answers in turn from what was built."""

    def __init__(self, changes: Sequence[bytes], answers: Sequence[bytes]) -> None:
        self._changes = changes
        self._answers = answers
        self._published = 1
        self._news = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        match handler_call_details.method.removeprefix(SERVICE):
            case "UpdateWorkspace":
                return grpc.unary_unary_rpc_method_handler(self._update)
            case "WatchWorkspaces":
                return grpc.unary_stream_rpc_method_handler(self._watch)
        return None

    async def _update(self, request: bytes, context: Any) -> bytes:
        answer = self._answers[self._published]
        self._published += 1
        self._news.set()
        self._news = asyncio.Event()
        return answer

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        place = self._published - 1
        while True:
            while place < self._published:
                yield self._changes[place]
                place += 1
            await self._news.wait()


def numbered(change: bytes, answer: bytes, first: int, count: int) -> tuple[list[bytes], list[bytes]]:
    """So many of both messages, with revisions in order."""
    told, answered = api.WatchWorkspacesResponse.FromString(change), api.UpdateWorkspaceResponse.FromString(answer)
    changes, answers = [], []
    for revision in range(first, first + count):
        told.revision = told.workspace.revision = answered.workspace.revision = revision
        changes.append(told.SerializeToString())
        answers.append(answered.SerializeToString())
    return changes, answers


async def serve(changes: Sequence[bytes], answers: Sequence[bytes]) -> None:
    """Serves on a free port, which it prints."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Fanout(changes, answers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"serving on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    change, answer, first, count = sys.argv[1:]
    serving = serve(*numbered(bytes.fromhex(change), bytes.fromhex(answer), int(first), int(count)))
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)
