"""The two ways a call is turned down.

Responsible for the codes. Invariant: a `Refusal` becomes an array of five, a `Fault` an XML-RPC fault;
nothing else a caller does may come out of a handler. Knows nothing about when.
"""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """The daemon understood and says no. The dispatcher puts the method's name before the message."""

    AUTHENTICATION: ClassVar[int] = 0x100
    AUTHORIZATION: ClassVar[int] = 0x200
    NO_EXISTS: ClassVar[int] = 0x400
    ACTION: ClassVar[int] = 0x800
    API: ClassVar[int] = 0x1000
    INTERNAL: ClassVar[int] = 0x2000
    ALLOCATE: ClassVar[int] = 0x4000

    def __init__(self, code: int, message: str, object_id: int = -1) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.object_id = object_id


class Fault(Exception):
    """The XML-RPC layer could not make a call of it."""

    INTERNAL: ClassVar[int] = -500
    TYPE: ClassVar[int] = -501
    PARSE: ClassVar[int] = -503
    NO_SUCH_METHOD: ClassVar[int] = -506

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
