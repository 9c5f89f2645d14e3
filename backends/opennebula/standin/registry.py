"""The table of methods: names, arguments, handlers.

Responsible for what a method takes and for checking it. Invariant: superfluous arguments are ignored, a
missing or mistyped one is a fault, and only the trailing ones have defaults. Runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from backends.opennebula.standin.envelope import Value
from backends.opennebula.standin.errors import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """An answer that is ready only after the call's latency; what was checked may have changed by then."""

    apply: Callable[[], Value]


Reply = Value | Deferred
H = TypeVar("H", bound=Callable[..., Reply])


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    kind: type
    required: bool
    default: Value = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    name: str
    parameters: tuple[Parameter, ...]
    handler: Callable[..., Reply]

    def arguments(self, given: Sequence[Value]) -> list[Value]:
        """The arguments after the session, checked and completed."""
        values: list[Value] = []
        for index, parameter in enumerate(self.parameters):
            if index < len(given):
                # Exact types: an <i8> is no integer and a boolean no number.
                if type(given[index]) is not parameter.kind:
                    name = {int: "integer", bool: "boolean", str: "string", list: "array"}[parameter.kind]
                    raise Fault(Fault.TYPE, f"Parameter that is supposed to be {name} is not")
                values.append(given[index])
            elif parameter.required:
                raise Fault(Fault.TYPE, "Not enough parameters")
            else:
                values.append(parameter.default)
        return values

    def signature(self) -> list[str]:
        names = {int: "int", bool: "boolean", str: "string", list: "array"}
        return ["array", "string", *(names[parameter.kind] for parameter in self.parameters)]


METHODS: Final[dict[str, Method]] = {}


def method(name: str, *required: type, optional: Sequence[Any] = ()) -> Callable[[H], H]:
    """Put a handler into the table; `optional` holds the defaults of the trailing arguments."""

    def register(handler: H) -> H:
        parameters = [Parameter(kind=kind, required=True) for kind in required]
        parameters += [Parameter(kind=type(value), required=False, default=value) for value in optional]
        METHODS[name] = Method(name=name, parameters=tuple(parameters), handler=handler)
        return handler

    return register
