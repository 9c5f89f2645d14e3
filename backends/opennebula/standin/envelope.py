"""XML-RPC on the wire: calls in, answers and faults out.

Responsible for being as strict as the daemon's library: an `<i8>` is no integer, a boolean no number, a
character outside the Basic Multilingual Plane no text. Invariant: `decode_call` raises nothing but
`Fault`, whatever the bytes. Knows no method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from backends.opennebula.standin.errors import Fault, Refusal


class Long(int):
    """A number sent as `<i8>`."""


Value = bool | int | float | str | None | Sequence["Value"] | Mapping[str, "Value"]

_PREFIX: Final = "Call XML not a proper XML-RPC call.  "
_ASTRAL: Final = re.compile("[\U00010000-\U0010ffff]")
_INT_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    method: str
    params: tuple[Value, ...]


def _not_a_call(text: str) -> Fault:
    return Fault(Fault.PARSE, _PREFIX + text)


def decode_call(body: bytes) -> Call:
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise _not_a_call(f"Call is not valid XML.  {error}") from error
    if root.tag != "methodCall":
        raise _not_a_call(f"XML-RPC call should be a <methodCall> element.  Instead, we have a <{root.tag}> element.")
    name = root.findtext("methodName")
    if name is None:
        raise _not_a_call("No <methodName> in the call.")
    params = root.find("params")
    values = [] if params is None else [_value(_only(param, "value")) for param in params]
    return Call(method=name, params=tuple(values))


def _only(parent: ElementTree.Element, tag: str) -> ElementTree.Element:
    if len(parent) != 1 or parent[0].tag != tag:
        raise _not_a_call(f"<{parent.tag}> element should have exactly one <{tag}>.")
    return parent[0]


def _text(text: str | None) -> str:
    if text and _ASTRAL.search(text):
        raise _not_a_call("UTF-8 string contains a character not in the Basic Multilingual Plane")
    return text or ""


def _value(element: ElementTree.Element) -> Value:
    if len(element) == 0:
        return _text(element.text)
    if len(element) != 1:
        raise _not_a_call("<value> element should have one child.")
    child = element[0]
    try:
        return _typed(child)
    except (ValueError, OverflowError, RecursionError) as error:
        raise _not_a_call(f"<{child.tag}> element does not hold one: {error}") from error


def _typed(child: ElementTree.Element) -> Value:
    text = _text(child.text)
    match child.tag:
        case "int" | "i4":
            number = int(text)
            if not -_INT_MAX - 1 <= number <= _INT_MAX:
                raise _not_a_call(f"<int> value {number} is outside the range allowed by XML-RPC")
            return number
        case "i8" | "ex:i8":
            return Long(text)
        case "boolean":
            if text.strip() not in ("0", "1"):
                raise ValueError(text)
            return text.strip() == "1"
        case "double":
            return float(text)
        case "string" | "base64" | "dateTime.iso8601":
            return text
        case "nil":
            return None
        case "array":
            return [_value(item) for item in _only(child, "data")]
        case "struct":
            return {_text(member.findtext("name")): _value(_member_value(member)) for member in child}
    raise ValueError("unknown type")


def _member_value(member: ElementTree.Element) -> ElementTree.Element:
    found = member.find("value")
    if found is None:
        raise _not_a_call("<member> element has no <value>.")
    return found


def encode_value(value: Value) -> str:
    if isinstance(value, bool):
        return f"<value><boolean>{int(value)}</boolean></value>"
    if isinstance(value, Long):
        return f"<value><i8>{int(value)}</i8></value>"
    if isinstance(value, int):
        return f"<value><i4>{value}</i4></value>"
    if isinstance(value, float):
        return f"<value><double>{value}</double></value>"
    if value is None:
        return "<value><nil/></value>"
    if isinstance(value, str):
        return f"<value><string>{escape(value)}</string></value>"
    if isinstance(value, Mapping):
        members = (
            f"<member><name>{escape(key)}</name>\r\n{encode_value(entry)}</member>\r\n" for key, entry in value.items()
        )
        return "<value><struct>\r\n" + "".join(members) + "</struct></value>"
    return (
        "<value><array><data>\r\n" + "".join(f"{encode_value(item)}\r\n" for item in value) + "</data></array></value>"
    )


def _response(lines: Iterable[str]) -> bytes:
    text = "\r\n".join(('<?xml version="1.0" encoding="UTF-8"?>', "<methodResponse>", *lines, "</methodResponse>", ""))
    return text.encode()


def encode_answer(value: Value) -> bytes:
    return _response(("<params>", f"<param>{encode_value(value)}</param>", "</params>"))


def fault_struct(fault: Fault) -> Mapping[str, Value]:
    return {"faultCode": fault.code, "faultString": fault.message}


def encode_fault(fault: Fault) -> bytes:
    return _response(("<fault>", encode_value(fault_struct(fault)), "</fault>"))


def accepted(value: Value) -> Value:
    return [True, value, 0]


def refused(method: str, refusal: Refusal) -> Value:
    return [False, f"[{method}] {refusal.message}", refusal.code, refusal.object_id, Long(-1)]
