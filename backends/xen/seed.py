"""The NoCloud seed of a guest: a small ISO image named "cidata" with who it is, its keys, addresses and user data.

Responsible for what cloud-init reads at the first boot (its NoCloud data source): `meta-data`, `user-data` and
`network-config`. Invariants: the same node gives the same bytes, today and tomorrow, here and in another time zone;
user data reaches the guest byte for byte; no value can break out of its place in the YAML. Keys travel in
`meta-data`, which cloud-init adds to whatever the user data says, so that user data need not be taken apart. It
knows no volumes: `storage` writes the bytes to one.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

from msgspec import Struct

try:
    import pycdlib
    from pycdlib import dates, headervd
    from pycdlib import pycdlib as mastering
except ImportError:  # the extra "xen" is not installed: `build` says so
    pycdlib = None  # type: ignore[assignment]

from backends.base import BackendRejected

LABEL: Final = "cidata"
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9@._+/=-]*(?: [A-Za-z0-9@._+/=-]+)*")
_NO_TEXT: Final = re.compile(r"(?i)true|false|yes|no|on|off|null|y|n")
_MADE_AT: Final = 946_684_800.0  # every date in the image: 2000-01-01, so that nothing depends on the day
_ONE_AT_A_TIME: Final = threading.Lock()


class SeedNic(Struct, frozen=True, kw_only=True):
    """An interface as the guest is to set it up: `addresses` with their prefix lengths; none at all: ask DHCP."""

    mac: str
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()


class Seed(Struct, frozen=True, kw_only=True):
    """What a guest is told. A new `instance_id` makes cloud-init set up everything afresh."""

    instance_id: str
    host_name: str
    nics: tuple[SeedNic, ...] = ()
    ssh_public_keys: tuple[str, ...] = ()
    user_data: bytes = b""


def build(seed: Seed) -> bytes:
    """The ISO image of a seed. Raises BackendRejected where the library that makes it is missing."""
    if pycdlib is None:
        raise BackendRejected("cloud-init seeds need pycdlib: pip install 'workspace-broker[xen]'")
    files = {
        "meta-data": meta_data(seed).encode(),
        "network-config": network_config(seed).encode(),
        "user-data": seed.user_data or user_data(seed).encode(),
    }
    out = io.BytesIO()
    with _fixed_dates():
        iso = pycdlib.PyCdlib()
        iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
        for number, (name, data) in enumerate(files.items()):
            # The names that count are the long ones; the short one only has to be there.
            iso.add_fp(
                io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100444
            )
        iso.write_fp(out)
        iso.close()
    return out.getvalue()


def meta_data(seed: Seed) -> str:
    """Who the guest is, and the keys that may log in."""
    lines = [f"instance-id: {_scalar(seed.instance_id)}", f"local-hostname: {_scalar(seed.host_name)}"]
    if seed.ssh_public_keys:
        lines += ["public-keys:", *(f"  - {_scalar(key)}" for key in seed.ssh_public_keys)]
    return "\n".join(lines) + "\n"


def user_data(seed: Seed) -> str:
    """The user data of a guest whose owner gave none: the keys once more, for guests that read nothing else."""
    lines = ["#cloud-config"]
    if seed.ssh_public_keys:
        lines += ["ssh_authorized_keys:", *(f"  - {_scalar(key)}" for key in seed.ssh_public_keys)]
    return "\n".join(lines) + "\n"


def network_config(seed: Seed) -> str:
    """The interfaces, in version 2 of cloud-init's network configuration; each is found by its MAC."""
    if not seed.nics:
        return "version: 2\nethernets: {}\n"
    lines = ["version: 2", "ethernets:"]
    for number, nic in enumerate(seed.nics):
        lines += [f"  eth{number}:", f"    match: {{macaddress: {json.dumps(nic.mac.lower())}}}"]
        if nic.addresses:
            lines.append(f"    addresses: [{', '.join(_address(each) for each in nic.addresses)}]")
        else:
            lines.append("    dhcp4: true")
        if nic.gateways:
            lines.append("    routes:")
            for gateway in nic.gateways:
                everywhere = '"::/0"' if ":" in gateway else "0.0.0.0/0"
                lines.append(f"      - {{to: {everywhere}, via: {_address(gateway)}}}")
        if nic.nameservers:
            lines.append(f"    nameservers: {{addresses: [{', '.join(_address(each) for each in nic.nameservers)}]}}")
    return "\n".join(lines) + "\n"


def _scalar(text: str) -> str:
    """Text as a YAML scalar: plain where nothing in it means anything to YAML, else quoted and escaped."""
    if _PLAIN.fullmatch(text) and not _NO_TEXT.fullmatch(text):
        return text
    return re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", json.dumps(text, ensure_ascii=False))


def _address(text: str) -> str:
    """An address in a flow list: IPv4 plain, IPv6 quoted, as a colon means something there."""
    return text if re.fullmatch(r"[\d.]+(?:/\d+)?", text) else json.dumps(text)


@contextmanager
def _fixed_dates() -> Iterator[None]:
    """Stops the clock that the library stamps its records with; it offers no other way to set all of them."""
    clock: Any = SimpleNamespace(**{**vars(time), "time": lambda: _MADE_AT, "localtime": time.gmtime})
    users: tuple[Any, ...] = (dates, headervd, mastering)
    with _ONE_AT_A_TIME:
        for module in users:
            module.time = clock
        try:
            yield
        finally:
            for module in users:
                module.time = time
