"""The API without a port: the broker's own services behind the generated stubs, every message serialised both ways.

Only HTTP/2 is left out, so a broker on a manual clock and an instant loop can be spoken to as clients do. A refused
call raises `grpc.aio.AioRpcError` with the status the service gave. Deadlines never pass; there is no metadata.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, Never
from unittest.mock import patch

import grpc
import grpc.aio
from grpc.aio import AioRpcError, Metadata

from broker.server import Broker

LONG: Final = 86_400.0  # what a call may take: the loop's own time-outs are of no use where it never waits


class Handlers:
    """Stands where `grpc.aio.server` would: it keeps the handlers of every method."""

    def __init__(self, *_: object, **__: object) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """The same handlers come registered by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Keeps a service's methods under their full paths."""
        self.methods.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def add_insecure_port(self, address: str) -> int:
        """No port."""
        return 1

    async def start(self) -> None:
        """Serves."""

    async def stop(self, grace: float) -> None:
        """Serves no more; no call outlives its caller here."""


class _Context:
    """The part of a servicer's context that the services use."""

    def time_remaining(self) -> float:
        return LONG

    async def abort_with_status(self, status: Any) -> Never:
        raise AioRpcError(status.code, Metadata(), Metadata(*status.trailing_metadata), status.details)


class Channel:
    """Stands where a channel would: the stubs' calls go to the handlers."""

    def __init__(self, handlers: Handlers) -> None:
        self._methods = handlers.methods

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> Any:
        """A call with one answer."""
        handler = self._methods[path]

        async def call(request: Any) -> Any:
            asked = handler.request_deserializer(request_serializer(request))
            return response_deserializer(_wire(handler, await handler.unary_unary(asked, _Context())))

        return call

    def unary_stream(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> Any:
        """A call with many answers."""
        handler = self._methods[path]

        async def call(request: Any) -> AsyncIterator[Any]:
            asked = handler.request_deserializer(request_serializer(request))
            async for answer in handler.unary_stream(asked, _Context()):
                yield response_deserializer(_wire(handler, answer))

        return call


def _wire(handler: Any, answer: Any) -> bytes:
    """An answer's bytes; the services serialise some themselves."""
    return answer if isinstance(answer, bytes) else bytes(handler.response_serializer(answer))


async def serve(broker: Broker) -> Channel:
    """Starts a broker without a port; stop it as ever."""
    made: list[Handlers] = []

    def server(*args: object, **options: object) -> Handlers:
        made.append(Handlers(*args, **options))
        return made[-1]

    with patch.object(grpc.aio, "server", server):
        await broker.start()
    return Channel(made[0])
