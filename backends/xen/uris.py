"""Connection URIs: which are good, what a host is called by default, and whether two are the same host.

Responsible for refusing, with a reason, a URI that does not parse, whose driver or transport is not supported, that
would ask somebody for a password, or that would carry commands in the clear over a network. It opens nothing.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import SplitResult, parse_qs, urlsplit

from msgspec import Struct
from msgspec.structs import replace

DRIVERS: Final = ("xen", "qemu", "test")
TRANSPORTS: Final = ("unix", "ssh", "libssh", "libssh2", "tls", "tcp")
_SSH: Final = frozenset({"ssh", "libssh", "libssh2"})
_PATHS: Final = {"xen": ("/system", "/", ""), "qemu": ("/system", "/session")}
_EXAMPLE: Final = 'such as "xen+ssh://root@host.example.org/system"'


class Uri(Struct, frozen=True, kw_only=True):
    """A good URI, and what is known from it without connecting."""

    text: str  # as it is opened
    driver: str
    transport: str
    hostname: str = ""  # empty: this machine
    port: int = 0
    path: str = ""
    socket: str = ""

    @property
    def place(self) -> tuple[str, str, int, str]:
        """The same for two URIs that lead to the same daemon the same way."""
        path = "/system" if self.driver == "xen" else self.path
        return self.driver, self.hostname.lower(), self.port, self.socket or path

    @property
    def session(self) -> bool:
        """Whether it is a user's own daemon, which may not do all that the system's may."""
        return self.path == "/session"

    @property
    def default_name(self) -> str:
        """What the host is called where the settings do not say."""
        if self.driver == "test":
            return PurePosixPath(self.path).stem
        name = (self.hostname or "localhost").replace(":", "-").strip("-")
        return f"{name}-{self.port}" if self.port else name


def parse(text: str) -> Uri:
    """Reads a URI. Raises ValueError saying what is wrong with it."""
    try:
        parts = urlsplit(text)
        port = parts.port or 0
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ValueError(f'"{text}" is no URI: {error}; one is wanted {_EXAMPLE}') from None
    driver, _, transport = parts.scheme.partition("+")
    if not parts.scheme or not text.startswith(f"{parts.scheme}://") or parts.fragment:
        raise ValueError(f'"{text}" is no URI of a host; one is wanted {_EXAMPLE}')
    if driver not in DRIVERS:
        raise ValueError(f'"{driver}" is no driver that is supported; there are: {", ".join(DRIVERS)}')
    hostname = parts.hostname or ""
    if not transport:
        transport = "tls" if hostname else "unix"  # as libvirt does
    if transport not in TRANSPORTS:
        raise ValueError(f'"{transport}" is no transport that is supported; there are: {", ".join(TRANSPORTS)}')
    _check_place(parts, driver, transport, hostname)
    _check_password(parts, query, transport)
    uri = Uri(
        text=text,
        driver=driver,
        transport=transport,
        hostname=hostname,
        port=port,
        path=parts.path,
        socket=query.get("socket", [""])[-1],
    )
    if transport == "ssh" and "no_tty" not in query:
        # Without it ssh would ask whoever started the broker for a password.
        joint = "&" if parts.query else "?"
        return replace(uri, text=f"{text}{joint}no_tty=1")
    return uri


def _check_place(parts: SplitResult, driver: str, transport: str, hostname: str) -> None:
    if driver == "test":
        if hostname or "+" in parts.scheme or parts.path == "/":
            raise ValueError('the test driver is in this process: "test:///default" or "test:///FILE"')
    elif parts.path not in _PATHS[driver]:
        raise ValueError(f'its path is "{parts.path}"; for {driver} there is: {" or ".join(_PATHS[driver][:2])}')
    if transport == "unix":
        if hostname:
            raise ValueError("a unix socket is on this machine: leave out the host, or use ssh or tls")
    elif not hostname:
        raise ValueError(f"{transport} needs a host")
    if transport == "tcp" and not _loopback(hostname):
        raise ValueError(
            f"tcp is neither encrypted nor authenticated and {hostname} is not this machine: use ssh or tls"
        )


def _check_password(parts: SplitResult, query: dict[str, list[str]], transport: str) -> None:
    if parts.password is not None:
        raise ValueError("it holds a password, and libvirt takes none there: use a key or a certificate")
    if transport in _SSH:
        if any(value not in ("1",) for value in query.get("no_tty", [])):
            raise ValueError("without no_tty=1 ssh would ask for a password, and there is nobody to answer")
        methods = ",".join(query.get("sshauth", [])).split(",")
        if asking := {"password", "keyboard-interactive"}.intersection(methods):
            raise ValueError(f"sshauth={sorted(asking)[0]} would ask for a password, and there is nobody to answer")


def _loopback(hostname: str) -> bool:
    if hostname in ("localhost", "localhost.localdomain"):
        return True
    try:
        return ip_address(hostname).is_loopback
    except ValueError:
        return False
