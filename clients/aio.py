"""The API under asyncio: any call with a request id, a deadline, retries and typed errors; nothing more."""

from __future__ import annotations

from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import Message

from clients.errors import from_rpc_error
from clients.transport import CALL_SECONDS, DEFAULT_SERVER, channel_options, methods, with_request_id


class AsyncClient:
    """The API under asyncio; make it inside the running loop."""

    def __init__(self, server: str = DEFAULT_SERVER, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = channel_options(server)
        self.channel = (
            grpc.aio.secure_channel(server, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(server, options=options)
        )
        self._rpcs = methods(self.channel)

    async def call(self, request: Message, *, timeout: float = CALL_SECONDS) -> Any:
        """Sends a request (not a watch) and returns its response message; raises a BrokerError."""
        sent, request_id = with_request_id(request)
        try:
            return await self._rpcs[request.DESCRIPTOR.full_name](sent, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, request_id=request_id) from error

    async def close(self) -> None:
        """Closes the connection."""
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
