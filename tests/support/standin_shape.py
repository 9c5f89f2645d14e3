"""Whether two answers have the same shape, and the same meaning where it can be told.

Responsible for the comparison. Invariant: what `differences` leaves unmentioned is equal: HTTP status,
kind of answer, types, codes, ids, the elements of each object in their order with the type of each leaf,
the state of VMs and hosts, capacities in use, the sequence of HISTORY, and the text of a refusal where
nothing was translated. Times and random figures are not compared.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.support.standin_translation import Translation

_INTEGER = re.compile(r"-?\d+")
_NUMBER = re.compile(r"-?\d+\.\d+")
_KINDS = {
    "VM": "vm",
    "HOST": "host",
    "IMAGE": "image",
    "VNET": "network",
    "CLUSTER": "cluster",
    "DATASTORE": "datastore",
    "USER": "user",
    "GROUP": "group",
    "VMTEMPLATE": "template",
}
# Figures that follow the capacities configured and asked for.
_SCALED = {
    "HOST": tuple(
        f"HOST_SHARE/{name}" for name in ("MEM_USAGE", "CPU_USAGE", "TOTAL_MEM", "TOTAL_CPU", "MAX_MEM", "MAX_CPU")
    ),
    "VM": ("TEMPLATE/CPU", "TEMPLATE/MEMORY"),
    "USER": tuple(
        f"VM_QUOTA/VM/{name}{used}"
        for name in ("CPU", "MEMORY", "RUNNING_CPU", "RUNNING_MEMORY")
        for used in ("", "_USED")
    ),
}
_EQUAL = {
    "HOST": ("STATE", "HOST_SHARE/RUNNING_VMS"),
    "VM": ("STATE", "LCM_STATE", "RESCHED", "TEMPLATE/VCPU"),
    "IMAGE": ("STATE", "RUNNING_VMS", "TYPE", "PERSISTENT"),
    "VNET": ("STATE", "USED_LEASES"),
    "DATASTORE": ("TYPE",),
    "USER": ("VM_QUOTA/VM/VMS", "VM_QUOTA/VM/VMS_USED", "VM_QUOTA/VM/RUNNING_VMS_USED"),
}
_REFERENCES = {
    "HOST": {"CLUSTER_ID": "cluster", "VMS/ID": "vm"},
    "VM": {"UID": "user", "HISTORY_RECORDS/HISTORY/HID": "host", "HISTORY_RECORDS/HISTORY/CID": "cluster"},
    "IMAGE": {"VMS/ID": "vm", "DATASTORE_ID": "datastore"},
    "VNET": {"CLUSTERS/ID": "cluster"},
    "CLUSTER": {"HOSTS/ID": "host", "DATASTORES/ID": "datastore", "VNETS/ID": "network"},
    "DATASTORE": {"CLUSTERS/ID": "cluster", "IMAGES/ID": "image"},
}
_NAMED = {"HOST", "VM", "IMAGE", "VNET", "VMTEMPLATE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response body taken apart: the tags of its values, and what they hold."""

    kind: str
    tags: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        return self.values[0] if self.kind == "fault" else self.values[2] if self.kind == "false" else ""


def parse_answer(body: bytes) -> Answer:
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return Answer(kind="not-xmlrpc")
    fault = root.find("fault/value/struct")
    if fault is not None:
        return Answer(kind="fault", values=(fault.findtext("member/value/i4") or "",))
    value = root.find("params/param/value")
    if value is None or len(value) == 0:
        return Answer(kind="not-xmlrpc")
    data = value.find("array/data")
    entries = [] if data is None else [entry[0] for entry in data]
    if len(entries) in (3, 5) and entries[0].tag == "boolean":
        return Answer(
            kind="true" if entries[0].text == "1" else "false",
            tags=tuple(entry.tag for entry in entries),
            values=tuple(entry.text or "" for entry in entries),
        )
    return Answer(kind="other", tags=tuple(sorted({element.tag for element in value.iter()})))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a row is compared: `states` leaves out those of a moment between two; `id_kind` is whose id comes back."""

    states: bool = False
    id_kind: str = ""


STRICT = Comparison()


def differences(recorded: Answer, ours: Answer, translation: Translation, how: Comparison = STRICT) -> list[str]:
    """How our answer differs from the recorded one as translated; empty if it has the same shape."""
    if recorded.kind != ours.kind:
        return [f"kind {recorded.kind} became {ours.kind}: {ours.values[:3]}"]
    if recorded.tags != ours.tags:
        return [f"types {recorded.tags} became {ours.tags}"]
    if recorded.code != ours.code:
        return [f"code {recorded.code} became {ours.code}: {ours.values[1:2]}"]
    if recorded.kind == "false" and translation.changes_nothing and _said(recorded) != _said(ours):
        return [f"message {_said(recorded)!r} became {_said(ours)!r}"]
    if recorded.kind == "true" and recorded.tags[1] == "i4" and how.id_kind:
        wanted = str(translation.id(how.id_kind, int(recorded.values[1])))
        return [] if wanted == ours.values[1] else [f"id {wanted} became {ours.values[1]}"]
    if recorded.kind == "true" and recorded.values[1].startswith("<"):
        return list(_document(recorded.values[1], ours.values[1], translation, how))
    return []


def _said(answer: Answer) -> str:
    """A refusal's text; the place of a syntax error in it is often garbage."""
    return answer.values[1].partition(" at line ")[0]


def _document(recorded: str, ours: str, translation: Translation, how: Comparison) -> Iterator[str]:
    want, have = _objects(ElementTree.fromstring(recorded)), _objects(ElementTree.fromstring(ours))
    wanted = [(tag, _shifted(tag, number, translation)) for tag, number in want]
    if wanted != list(have):
        yield f"objects {wanted[:12]} became {list(have)[:12]}"
        return
    for (tag, number), (original, mine) in zip(wanted, zip(want.values(), have.values(), strict=True), strict=True):
        for difference in _object(tag, original, mine, translation, how):
            yield f"{tag} {number}: {difference}"


def _shifted(tag: str, number: str, translation: Translation) -> str:
    kind = _KINDS.get(tag)
    return str(translation.id(kind, int(number))) if kind and number.isdigit() else number


def _objects(root: ElementTree.Element) -> dict[tuple[str, str], ElementTree.Element]:
    """The members of a pool by tag and id, or the one object there is."""
    members = list(root) if root.tag.endswith("_POOL") or root.tag == "MONITORING_DATA" else [root]
    found: dict[tuple[str, str], ElementTree.Element] = {}
    for index, member in enumerate(members):
        number = (member.findtext("ID") if member.tag in _KINDS else None) or f"#{index}"
        found[member.tag, number] = member
    return found


def _leaf_kind(text: str | None) -> str:
    if not text:
        return "empty"
    return "integer" if _INTEGER.fullmatch(text) else "number" if _NUMBER.fullmatch(text) else "text"


def _paths(element: ElementTree.Element, path: str = "") -> Iterator[tuple[str, str]]:
    for child in element:
        here = f"{path}/{child.tag}"
        if len(child):
            yield here, "element"
            yield from _paths(child, here)
        else:
            yield here, _leaf_kind(child.text)


def _object(
    tag: str,
    recorded: ElementTree.Element,
    ours: ElementTree.Element,
    translation: Translation,
    how: Comparison,
) -> Iterator[str]:
    want, have = set(_paths(recorded)), set(_paths(ours))
    for path, kind in sorted(want - have):
        yield f"lacks {path} ({kind})"
    for path, kind in sorted(have - want):
        yield f"has {path} ({kind})"
    if want == have and [one.tag for one in recorded.iter()] != [one.tag for one in ours.iter()]:
        yield "its elements come in another order or number"
    yield from _compare(tag, _EQUAL, recorded, ours, how)
    for path in _SCALED.get(tag, ()):
        wanted, mine = recorded.findtext(path), ours.findtext(path)
        if _NUMBER.fullmatch(wanted or "") or _INTEGER.fullmatch(wanted or ""):
            scaled = wanted if wanted in ("-1", "-2") else translation.amount(wanted or "")
            # A reserve in percent is rounded once, before scaling or after.
            if mine is None or abs(float(scaled or 0) - float(mine)) > translation.factor - 1:
                yield f"{path} {wanted} became {mine}"
    for path, kind in _REFERENCES.get(tag, {}).items():
        references = [translation.id(kind, int(one.text or "-1")) for one in recorded.iterfind(path)]
        if references != [int(one.text or "-1") for one in ours.iterfind(path)]:
            yield f"{path} {references} became {[one.text for one in ours.iterfind(path)]}"
    if tag == "VM" and not how.states:
        actions = [one.text for one in recorded.iterfind("HISTORY_RECORDS/HISTORY/ACTION")]
        mine_actions = [one.text for one in ours.iterfind("HISTORY_RECORDS/HISTORY/ACTION")]
        if actions != mine_actions:
            yield f"history {actions} became {mine_actions}"
    if tag in _NAMED and translation.name(recorded.findtext("NAME") or "") != ours.findtext("NAME"):
        yield f"NAME {recorded.findtext('NAME')} became {ours.findtext('NAME')}"


def _compare(
    tag: str,
    fields: Mapping[str, tuple[str, ...]],
    recorded: ElementTree.Element,
    ours: ElementTree.Element,
    how: Comparison,
) -> Iterator[str]:
    for path in fields.get(tag, ()):
        if how.states and path in ("STATE", "LCM_STATE"):
            continue
        if recorded.findtext(path) != ours.findtext(path):
            yield f"{path} {recorded.findtext(path)} became {ours.findtext(path)}"
