"""The template language: `A="b"` and `A=[B="c"]` text or XML in, sorted CDATA XML out.

Responsible for reading and writing attributes. Invariant: names are upper case, a value is a text or a
flat vector of texts, and equal names keep the order they came in. Knows nothing about what an attribute
means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final
from xml.sax.saxutils import escape

from lxml import etree

Vector = dict[str, str]
Value = str | Vector

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_BLANK: Final = re.compile(r"(?:\s|#[^\n]*(?:\n|\Z))*")
_SPACE: Final = re.compile(r"[ \t]*")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_LINE: Final = re.compile(r"[^\n]*")
_ITEM: Final = re.compile(r"[^,\]\n]*")
_DIGITS_MAX: Final = 18
_ESCAPED: Final = re.compile(r'\\(["\\])')
# An internal entity is the client's own business, an external one is never fetched.
_PARSER: Final = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)


class TemplateError(ValueError):
    """The text is no template; the message is the daemon's."""


def whole(text: str) -> int | None:
    """A whole number not below zero; None for anything else, and for what no field could hold."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None


def cdata(text: str) -> str:
    return "<![CDATA[" + text.replace("]]>", "]]]]><![CDATA[>") + "]]>"


def plain(text: str) -> str:
    return escape(text)


class Template:
    """Attributes by name, in the order given within one name."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, list[Value]] | None = None) -> None:
        self._values: dict[str, list[Value]] = {name: list(entry) for name, entry in (values or {}).items()}

    def copy(self) -> Template:
        return Template(
            {
                name: [dict(value) if isinstance(value, dict) else value for value in entry]
                for name, entry in self._values.items()
            }
        )

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        for name, entry in self._values.items():
            for value in entry:
                yield name, value

    def names(self) -> list[str]:
        return list(self._values)

    def get(self, name: str, default: str = "") -> str:
        for value in self._values.get(name, ()):
            if isinstance(value, str):
                return value
        return default

    def vectors(self, name: str) -> list[Vector]:
        return [value for value in self._values.get(name, ()) if isinstance(value, dict)]

    def vector(self, name: str) -> Vector | None:
        found = self.vectors(name)
        return found[0] if found else None

    def add(self, name: str, value: Value) -> None:
        self._values.setdefault(name, []).append(value)

    def set(self, name: str, value: Value) -> None:
        self._values[name] = [value]

    def set_all(self, name: str, values: list[Value]) -> None:
        if values:
            self._values[name] = values
        else:
            self._values.pop(name, None)

    def pop(self, name: str) -> list[Value]:
        return self._values.pop(name, [])

    def take(self, names: frozenset[str]) -> Template:
        """The attributes with these names, taken out of this template."""
        return Template({name: self._values.pop(name) for name in list(self._values) if name in names})

    def merge(self, other: Template) -> None:
        """Append as the daemon does: an attribute of the other replaces all of its name here."""
        for name, entry in other._values.items():
            self._values[name] = list(entry)

    def inner_xml(self) -> str:
        """The elements sorted by name, leaves as CDATA."""
        parts: list[str] = []
        for name in sorted(self._values):
            for value in self._values[name]:
                parts.append(f"<{name}>{_vector_xml(value) if isinstance(value, dict) else cdata(value)}</{name}>")
        return "".join(parts)


def _vector_xml(vector: Vector) -> str:
    return "".join(f"<{name}>{cdata(vector[name])}</{name}>" for name in sorted(vector))


def parse_template(text: str) -> Template:
    """A template from text or XML, whichever it is."""
    stripped = text.lstrip()
    return _parse_xml(stripped) if stripped.startswith("<") else _parse_text(text)


def _parse_xml(text: str) -> Template:
    try:
        root = etree.fromstring(text.encode(), _PARSER)
    except etree.XMLSyntaxError as error:
        raise TemplateError("Parse error: XML Template malformed.") from error
    template = Template()
    for child in root.iterchildren("*"):
        inner = list(child.iterchildren("*"))
        if inner:
            template.add(_xml_name(child), {_xml_name(item): item.text or "" for item in inner})
        else:
            template.add(_xml_name(child), child.text or "")
    return template


def _xml_name(element: etree._Element) -> str:
    name = etree.QName(element).localname
    if not _NAME.fullmatch(name):
        raise TemplateError("Parse error: XML Template malformed.")
    return name.upper()


def _parse_text(text: str) -> Template:
    template = Template()
    at = _skip(_BLANK, text, 0)
    while at < len(text):
        name, at = _name(text, at)
        if text.startswith("[", at):
            vector, at = _vector(text, at + 1)
            template.add(name, vector)
        else:
            value, at = _scalar(text, at, _LINE)
            template.add(name, value)
        at = _skip(_BLANK, text, at)
    return template


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _name(text: str, at: int) -> tuple[str, int]:
    found = _NAME.match(text, at)
    if found is None:
        raise _syntax_error(text, at, "unexpected character, expecting VARIABLE")
    after = _skip(_SPACE, text, found.end())
    if not text.startswith("=", after):
        raise _syntax_error(text, after, "unexpected VARIABLE, expecting EQUAL or EQUAL_EMPTY")
    return found.group().upper(), _skip(_SPACE, text, after + 1)


def _scalar(text: str, at: int, bare: re.Pattern[str]) -> tuple[str, int]:
    quoted = _QUOTED.match(text, at)
    if quoted:
        return _ESCAPED.sub(r"\1", quoted.group(1)), quoted.end()
    # A quote that is never closed is no quote: the line is taken as it stands, as the daemon does.
    found = bare.match(text, at)
    assert found is not None
    return found.group().strip(), found.end()


def _vector(text: str, at: int) -> tuple[Vector, int]:
    vector: Vector = {}
    at = _skip(_BLANK, text, at)
    while not text.startswith("]", at):
        name, at = _name(text, at)
        vector[name], at = _scalar(text, at, _ITEM)
        at = _skip(_BLANK, text, at)
        if text.startswith(",", at):
            at = _skip(_BLANK, text, at + 1)
        elif not text.startswith("]", at):
            raise _syntax_error(text, at, "unexpected $end, expecting COMMA or CBRACKET")
    return vector, at + 1


def _syntax_error(text: str, at: int, what: str) -> TemplateError:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1)
    return TemplateError(f"Parse error: syntax error, {what} at line {line}, columns {column}:{column + 1}")
