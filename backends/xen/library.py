"""libvirt-python itself: what there is of it once a process, and a connection opened, watched and closed.

Responsible for everything that touches the library's process-wide state: the event loop's thread, the error handler,
the close and life-cycle callbacks. Invariant: nothing here runs in the broker's event loop; callbacks are plain
functions that the caller makes safe. It knows no hosts and no deadlines.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final, cast

import libvirt
from lxml import etree
from msgspec import Struct

Connection = Any
"""A `libvirt.virConnect`; the library has no types."""

LibvirtError: Final[type[Exception]] = libvirt.libvirtError

KEEPALIVE_INTERVAL: Final = 5
KEEPALIVE_COUNT: Final = 3

_prepared = threading.Lock()
_threads: list[threading.Thread] = []


class Facts(Struct, frozen=True, kw_only=True):
    """What a host is: read once a connection."""

    driver: str  # "xen", "test", "qemu", else libvirt's word in lower case
    version: str = ""  # the hypervisor's, "4.17.0"
    library: str = ""  # libvirtd's
    hostname: str = ""
    uuid: str = ""  # the machine's, where the driver knows it
    arch: str = ""
    keepalive: bool = False
    accelerated: bool = False  # qemu with KVM


class Failure(Struct, frozen=True, kw_only=True):
    """A libvirtError without what it holds on to: an exception's frames would keep a dead connection open."""

    code: int
    domain: int
    message: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an error says."""
        raised = cast(Any, error)
        return cls(
            code=raised.get_error_code() or 0,
            domain=raised.get_error_domain() or 0,
            message=raised.get_error_message() or str(error),
        )


def prepare() -> None:
    """Starts the thread of libvirt's event loop, once a process and before its first connection; keepalive, close
    callbacks and events need it."""
    with _prepared:
        if _threads:
            return
        libvirt.registerErrorHandler(lambda context, error: None, None)  # it would print every error
        libvirt.virEventRegisterDefaultImpl()
        thread = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
        _threads.append(thread)
        thread.start()


def _run_events() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def connect(uri: str, closed: Callable[[str], None], noticed: Callable[[], None]) -> tuple[Connection, Facts]:
    """Opens a connection and asks it who it is; `closed` and `noticed` (a domain changed) are called from another
    thread. Blocks for ever on a frozen host. Raises libvirtError."""
    prepare()
    connection = libvirt.open(uri)
    try:
        keepalive = _optional(lambda: connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)) is not None
        facts = _facts(connection, keepalive=keepalive)
        connection.getInfo()  # the first call that goes to the hypervisor
        _optional(
            lambda: connection.registerCloseCallback(lambda _, reason, __: closed(_REASONS.get(reason, "")), None)
        )
        _optional(
            lambda: connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda *_: noticed(), None
            )
        )
    except BaseException:
        disconnect(connection)
        raise
    return connection, facts


def disconnect(connection: Connection) -> None:
    """Closes a connection, dead or alive; may block where the host is frozen."""
    for callback in list(getattr(connection, "domainEventCallbackID", {})):
        _optional(lambda callback=callback: connection.domainEventDeregisterAny(callback))  # type: ignore[misc]
    _optional(connection.unregisterCloseCallback)
    _optional(connection.close)


def alive(connection: Connection) -> bool:
    """Whether the connection still stands, as far as this end knows; asks nobody."""
    try:
        return bool(connection.isAlive() == 1)
    except libvirt.libvirtError:
        return False


_REASONS: Final = {0: "an error", 1: "the host closed it", 2: "keepalive got no answer", 3: "this end closed it"}


def _optional(call: Callable[[], Any]) -> Any:
    """The answer, None where the driver has no such thing or the connection is dead."""
    try:
        return call()
    except libvirt.libvirtError:
        return None


def _facts(connection: Connection, *, keepalive: bool) -> Facts:
    capabilities = etree.fromstring(connection.getCapabilities().encode())
    return Facts(
        driver=connection.getType().lower(),
        version=_dotted(connection.getVersion()),
        library=_dotted(connection.getLibVersion()),
        hostname=connection.getHostname(),
        uuid=capabilities.findtext("host/uuid", ""),
        arch=connection.getInfo()[0] or capabilities.findtext("host/cpu/arch", ""),
        keepalive=keepalive,
        accelerated="kvm" in {each.get("type") for each in capabilities.findall("guest/arch/domain")},
    )


def _dotted(number: int) -> str:
    """4017000 as "4.17.0"."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
