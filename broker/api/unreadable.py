"""Requests whose bytes are no message: refused like any other bad request.

grpc.aio by itself answers them UNKNOWN and logs a traceback for each, which anyone could fill a disk with.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from broker.api.status import grpc_status
from broker.core.errors import FieldReason, FieldsInvalid, FieldViolation

_UNREADABLE: Final = object()
_VIOLATION: Final = FieldViolation(
    path="", reason=FieldReason.BAD_CHARACTERS, message="the request's bytes are no message of its type"
)


class RefuseUnreadable(grpc.aio.ServerInterceptor):
    """Stands before every method of the server, gRPC's own among them."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, with a reader that cannot fail; made once a method."""
        made = self._handlers.get(handler_call_details.method)
        if made is not None:
            return made
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler  # no such method: not kept, as anybody may ask for any name
        changed: dict[str, Any] = {
            "request_deserializer": _reader(handler.request_deserializer),
            "response_serializer": _writer(handler.response_serializer),
        }
        if handler.unary_unary is not None:
            changed["unary_unary"] = _unary(handler.unary_unary)
        elif handler.unary_stream is not None:
            changed["unary_stream"] = _stream(handler.unary_stream, _readable_one)
        elif handler.stream_stream is not None:
            changed["stream_stream"] = _stream(handler.stream_stream, _readable_all)
        made = handler._replace(**changed)
        self._handlers[handler_call_details.method] = made
        return made


def _reader(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read_or_mark(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _UNREADABLE

    return read_or_mark


def _writer(write: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Answers may come serialised, see wire.py."""
    return lambda answer: answer if isinstance(answer, bytes) else write(answer)


async def _readable_one(request: Any, context: Any) -> Any:
    if request is _UNREADABLE:
        await context.abort_with_status(grpc_status(FieldsInvalid([_VIOLATION])))
    return request


async def _readable_all(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    async def each() -> AsyncIterator[Any]:
        async for request in requests:
            yield await _readable_one(request, context)

    return each()


def _unary(method: Any) -> Any:
    async def call(request: Any, context: Any) -> Any:
        if request is _UNREADABLE:
            await _readable_one(request, context)
        return await method(request, context)

    return call


def _stream(method: Any, readable: Any) -> Any:
    async def call(request: Any, context: Any) -> None:
        answers = method(await readable(request, context), context)
        if inspect.isawaitable(answers):
            await answers
            return
        try:
            async for answer in answers:
                await context.write(answer)
        finally:
            await answers.aclose()

    return call
