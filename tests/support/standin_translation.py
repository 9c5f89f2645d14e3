"""The same story with other ids, names and capacities.

Responsible for turning recorded arguments into those of a front-end that differs from the recorded one.
Invariant: ids that name nothing (999, 99999, -1) and those every front-end has stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_FIRST_OWN = {"cluster": 100, "datastore": 100, "group": 100, "user": 2}
_NOTHING = {"vm": {-1, 99999}}

# What the integers of a call name, by position after the session; "" is no id.
_INTEGERS: Mapping[str, tuple[str, ...]] = {
    "one.vm.deploy": ("vm", "host", "", "datastore"),
    "one.vm.migrate": ("vm", "host", "", "", "datastore", ""),
    "one.vm.action": ("", "vm"),
    "one.vm.chown": ("vm", "user", "group"),
    "one.vmpool.info": ("user-filter",),
    "one.vmpool.infoextended": ("user-filter",),
    "one.host.allocate": ("", "", "", "cluster"),
    "one.cluster.addhost": ("cluster", "host"),
    "one.cluster.adddatastore": ("cluster", "datastore"),
    "one.datastore.allocate": ("", "cluster"),
    "one.image.allocate": ("", "datastore"),
    "one.vn.allocate": ("", "cluster"),
    "one.user.allocate": ("", "", "", "groups"),
    "one.user.chgrp": ("user", "group"),
    "one.template.instantiate": ("template",),
}
_KIND_OF_PREFIX = {"vn": "network"}
# Where the texts of a call are names or templates.
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "one.vm.allocate": ("template",),
    "one.vm.resize": ("", "template"),
    "one.vm.attach": ("", "template"),
    "one.vm.attachnic": ("", "template"),
    "one.vm.rename": ("", "name"),
    "one.host.allocate": ("name",),
    "one.host.rename": ("", "name"),
    "one.host.update": ("", "template"),
    "one.cluster.allocate": ("name",),
    "one.datastore.allocate": ("template",),
    "one.image.allocate": ("template",),
    "one.vn.allocate": ("template",),
    "one.template.allocate": ("template",),
    "one.template.instantiate": ("", "name", "", "template"),
    "one.user.quota": ("", "template"),
    "one.group.quota": ("", "template"),
}
_AMOUNT = re.compile(
    r'(?<![A-Z_])((?:RUNNING_)?(?:CPU|MEMORY)|RESERVED_CPU|RESERVED_MEM)(="?|>)(-?\d+(?:\.\d+)?)(?=["\n<\]]|$)'
)
_NAMED = re.compile(r'(^|\n|<)(NAME="|NAME><!\[CDATA\[)([^"\]]+)')
_MENTIONED = re.compile(r'((?<=\[)|(?<=,))(IMAGE|NETWORK)="([^"]+)"')
_BY_ID = re.compile(r'(IMAGE|NETWORK)_ID="(\d+)"')
_WANTED_HOST = re.compile(r'(NAME=\\")([^"\\]+)')


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Translation:
    """`shift` is added to the ids of a kind, `prefix` put before names, `factor` scales capacities.

    Two are the same only if they are one object, so that what was replayed with one can be kept.
    """

    shift: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""
    factor: int = 1

    @property
    def changes_nothing(self) -> bool:
        return not self.shift and not self.prefix and self.factor == 1

    def id(self, kind: str, number: int) -> int:
        if number in _NOTHING.get(kind, {-1, 999, 99999}) or number < _FIRST_OWN.get(kind, 0):
            return number
        return number + self.shift.get(kind, 0)

    def name(self, name: str) -> str:
        default = re.fullmatch(r"one-(\d+)", name)
        if default:
            return f"one-{self.id('vm', int(default[1]))}"
        return self.prefix + name if name else name

    def amount(self, text: str) -> str:
        number = float(text) * self.factor
        return str(int(number)) if number == int(number) else str(number)

    def text(self, text: str) -> str:
        """A template: names, ids and amounts."""

        def scaled(found: re.Match[str]) -> str:
            quota_default = found[3] in ("-1", "-2")
            return found[1] + found[2] + (found[3] if quota_default else self.amount(found[3]))

        text = _AMOUNT.sub(scaled, text)
        text = _NAMED.sub(lambda found: found[1] + found[2] + self.name(found[3]), text)
        text = _MENTIONED.sub(
            lambda found: f'{found[2]}="{found[3] if found[3] == "YES" else self.name(found[3])}"', text
        )
        text = _WANTED_HOST.sub(lambda found: found[1] + self.name(found[2]), text)

        def shifted(found: re.Match[str]) -> str:
            return f'{found[1]}_ID="{self.id(found[1].lower(), int(found[2]))}"'

        return _BY_ID.sub(shifted, text)

    def params(self, method: str, params: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a call, the session among them."""
        kind = method.split(".")[1] if method.count(".") == 2 else ""
        kind = _KIND_OF_PREFIX.get(kind, kind)
        integers = _INTEGERS.get(method, (kind,))
        texts = _TEXTS.get(method, ())
        translated = list(params)
        for index, value in enumerate(params[1:]):
            role = integers[index] if index < len(integers) else ""
            text_role = texts[index] if index < len(texts) else ""
            if type(value) is int and role:
                translated[index + 1] = self._integer(role, value)
            elif isinstance(value, list) and role == "groups":
                translated[index + 1] = [self.id("group", number) for number in value]
            elif isinstance(value, str) and text_role == "name":
                translated[index + 1] = self.name(value)
            elif isinstance(value, str) and text_role == "template":
                translated[index + 1] = self.text(value)
            elif method == "one.acl.addrule" and index == 0:
                group = int(value, 16) & 0xFFFFFFFF
                translated[1] = f"{int(value, 16) - group + self.id('group', group):x}"
            elif method == "one.vmpool.infoset" and isinstance(value, str):
                translated[index + 1] = ",".join(str(self.id("vm", int(number))) for number in value.split(","))
        if method.startswith("one.vmpool.info") and len(params) > 3 and min(params[2:4]) >= 0:
            translated[2:4] = [self.id("vm", number) for number in params[2:4]]  # a range, not a page
        return tuple(translated)

    def _integer(self, role: str, value: int) -> int:
        return self.id("user" if role == "user-filter" else role, value)
