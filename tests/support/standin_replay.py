"""Replaying a recorded daemon against a fresh stand-in, call by call.

Responsible for the bytes of each request and for waiting until the recorded state is reached. Invariant:
the calls go out in recorded order, one at a time. What differs is only noted.
"""

from __future__ import annotations

import re
import xmlrpc.client
from collections.abc import Mapping
from functools import cache

from backends.opennebula.standin import Standin
from tests.support.standin_corpus import Row, daemon_rows
from tests.support.standin_scenes import STEPS, UNSETTLED, Scene, config
from tests.support.standin_shape import Comparison, differences, parse_answer
from tests.support.standin_translation import Translation
from tests.support.standin_wire import RawReply, exchange

AS_RECORDED = Translation()
OTHERWISE = Translation(
    shift={
        "vm": 40,
        "host": 7,
        "image": 3,
        "network": 5,
        "template": 2,
        "cluster": 11,
        "datastore": 6,
        "user": 9,
        "group": 4,
    },
    prefix="r-",
    factor=3,
)

_HEADERS: Mapping[str, tuple[str, ...]] = {
    "content_type_plain": ("Content-Type: text/plain",),
    "content_type_json": ("Content-Type: application/json",),
    "content_type_charset": ("Content-Type: text/xml; charset=iso-8859-1",),
    "content_type_application_xml": ("Content-Type: application/xml",),
    "http10_keepalive": ("Connection: keep-alive",),
    "connection_close": ("Connection: close",),
    "expect_100": ("Expect: 100-continue",),
    "accept_gzip": ("Accept-Encoding: gzip",),
    "basic_auth_header": ("Authorization: Basic dXNlcjpwYXNz",),
}
# Their point is how a number is written, which a translation would lose.
_UNTRANSLATED = (b"<i8>", b"<nil", b">99999999999<")
_BEFORE = re.compile(r"vm \d+ before: (\d+)/(\d+)")
# Whose id a call that makes or changes something answers with.
_OWN_NUMBERS = frozenset({"one.vm.snapshotcreate", "one.vm.disksnapshotcreate", "one.vm.schedadd", "one.acl.addrule"})


def request_bytes(row: Row, translation: Translation) -> bytes:
    """The whole HTTP request of a row."""
    body = row.request
    params = row.params
    if (
        not translation.changes_nothing
        and row.method is not None
        and params is not None
        and not any(mark in body for mark in _UNTRANSLATED)
    ):
        body = xmlrpc.client.dumps(translation.params(row.method, params), row.method).encode()
    headers = [row.request_line, "Host: one", *_HEADERS.get(row.case, ())]
    if row.case != "no_content_length" and row.request_line.startswith(("POST", "PUT")):
        headers.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*headers, "", "")).encode() + body


def _comparison(row: Row) -> Comparison:
    kind = ""
    if row.method is not None and row.method.count(".") == 2 and row.method not in _OWN_NUMBERS:
        kind = {"vn": "network"}.get(row.method.split(".")[1], row.method.split(".")[1])
        if row.method == "one.template.instantiate":
            kind = "vm"
    return Comparison(states=row.n in UNSETTLED, id_kind=kind)


def _against(row: Row, reply: RawReply, translation: Translation) -> list[str]:
    if row.status != reply.status:
        return [f"HTTP status {row.status} became {reply.status}"]
    return differences(parse_answer(row.response), parse_answer(reply.body), translation, _comparison(row))


def _is_within(wanted: tuple[str, ...], trail: list[str]) -> bool:
    places = iter(trail)
    return all(place in places for place in wanted)


@cache
def replay(first: int, last: int, translation: Translation) -> Mapping[int, tuple[str, ...]]:
    """What differs, by row; a row that matches has nothing."""
    found: dict[int, tuple[str, ...]] = {}
    with Standin(config(first, translation)) as one:
        scene = Scene(one=one, translation=translation)
        for row in daemon_rows(first, last):
            scene.settle()
            for step in STEPS.get(row.n, ()):
                step(scene)
            scene.settle()
            found[row.n] = tuple(_one_row(scene, row))
    return found


def _one_row(scene: Scene, row: Row) -> list[str]:
    one, translation = scene.one, scene.translation
    before = _BEFORE.match(row.state)
    moves = row.transitions or before
    params = row.params
    vm_id = -1
    if moves and params and row.method is not None:
        own = 2 if row.method == "one.vm.action" else 1
        vm_id = translation.id("vm", params[own])
    trail = len(one.vm(vm_id).trail) if moves else 0
    noted: list[str] = []
    if before and (place := one.vm(vm_id).place) != (int(before[1]), int(before[2])):
        noted.append(f"before the call the VM was {before[0]} and is {place.label}")
    reply = exchange(one.endpoint, request_bytes(row, translation))
    noted += _against(row, reply, translation)
    if row.transitions:
        scene.settle()
        places = [f"{place.state:d}/{place.lcm:d}" for place in one.vm(vm_id).trail[trail - 1 :]]
        if not _is_within(row.transitions, places):
            noted.append(f"went {' '.join(row.transitions)}, now {' '.join(places)}")
    return noted
