"""Every bound on what a request may hold: one table, in code here and in docs/limits.md (compared by a test).

A bound is a number and the words that explain it, side by side, so that neither can be changed alone.
It does not say what a bound is for in one field: that is validate.py and calls.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import timedelta

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds; a site does not change them, a test may."""

    node_sets: int = field(default=32, metadata={"says": "node sets of a workspace"})
    nodes: int = field(default=1_000, metadata={"says": "nodes of a workspace, over all its node sets"})
    user_data: int = field(default=256 * KIB, metadata={"says": "bytes of user data of a node set"})
    ssh_public_keys: int = field(default=32, metadata={"says": "SSH public keys of a node set"})
    ssh_public_key: int = field(default=8 * KIB, metadata={"says": "characters of one SSH public key"})
    amounts: int = field(default=32, metadata={"says": "resources a node set asks for"})
    amount: int = field(default=2**53, metadata={"says": "of one resource, in its own unit"})
    disks: int = field(default=16, metadata={"says": "extra disks of a node"})
    nics: int = field(default=16, metadata={"says": "network interfaces of a node"})
    addresses: int = field(default=16, metadata={"says": "addresses of one interface"})
    selector_keys: int = field(default=32, metadata={"says": "host attributes a node set selects by"})
    selector_values: int = field(default=64, metadata={"says": "values wanted of one host attribute"})
    labels: int = field(default=64, metadata={"says": "labels of a workspace, and pairs of a label selector"})
    label_key: int = field(default=63, metadata={"says": "characters of a label's key"})
    label_value: int = field(default=256, metadata={"says": "characters of a label's value"})
    parameters: int = field(default=64, metadata={"says": "scheduler parameters of a workspace"})
    parameter_text: int = field(default=4 * KIB, metadata={"says": "characters of one text in a parameter's value"})
    parameter_list: int = field(default=64, metadata={"says": "texts in a parameter's value"})
    name: int = field(
        default=128,
        metadata={"says": "characters of a name a backend or a site gives (image, network, instance type)"},
    )
    display_name: int = field(default=256, metadata={"says": "characters of a display name"})
    device: int = field(default=64, metadata={"says": "characters of a device's or an interface's name"})
    request_id: int = field(default=64, metadata={"says": "characters of a request id or an etag, all printable ASCII"})
    if_pool_generations: int = field(default=1_000, metadata={"says": "pools whose generation a request insists on"})
    uids: int = field(default=1_000, metadata={"says": "uids a list is restricted to"})
    page_size: int = field(default=1_000, metadata={"says": "resources of a page; 0 means 100"})
    page_token: int = field(default=2 * KIB, metadata={"says": "characters of a page token"})
    horizon: timedelta = field(
        default=timedelta(days=36_525),
        metadata={"says": "length of a lease, and distance of any instant from now"},
    )
    ensemble: timedelta = field(
        default=timedelta(days=7),
        metadata={"says": "from its creation until an open ensemble expires; 1 h unless it says so"},
    )
    past: timedelta = field(
        default=timedelta(seconds=60),
        metadata={"says": "by which a start may lie in the past and still mean now: clocks differ"},
    )

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Name, bound and meaning of each, in order."""
        for each in fields(self):
            value = getattr(self, each.name)
            yield each.name, _worded(value), each.metadata["says"]


def _worded(value: int | timedelta) -> str:
    if isinstance(value, timedelta):
        return f"{value.days:,} days" if value.days else f"{value.seconds} s"
    if value == 2**53:
        return "2^53"
    return f"{value:,}"


LIMITS = Limits()
DEFAULT_PAGE_SIZE = 100
