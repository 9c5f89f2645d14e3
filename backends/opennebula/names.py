"""Names of images, networks and hosts: what the broker calls a thing, and which thing at the front-end that
is.

Responsible for the operator's own names (the settings `images` and `networks`) and for names that several
things share. Invariant: a name the inventory shows stands for exactly one thing. What was read is kept until
the next inventory; a name that is not known is looked up once more before it is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Generic, TypeVar

from backends.base import BackendRejected
from backends.opennebula.documents import Host, Image, Network
from backends.opennebula.frontend import FrontEnd
from backends.opennebula.settings import Settings

T = TypeVar("T")


class Names(Generic[T]):
    """Things of one kind by name.

    `shown` is what the inventory offers, `missing` the operator's dead names.
    """

    def __init__(self, things: Iterable[tuple[int, str, T]], own_names: Mapping[str, str]) -> None:
        entries = list(things)
        counts = Counter(name for _, name, _ in entries)
        # A name two things share stands for neither; both go by their ids.
        self.ambiguous = sorted(name for name, count in counts.items() if count > 1)
        self._numbers = {name: number for number, name, _ in entries if counts[name] == 1}
        self._by_id = {number: thing for number, _, thing in entries}
        self._names: dict[int, str] = {}
        self.shown: dict[str, T] = {}
        self.missing: list[str] = []
        for own, target in own_names.items():
            number = self._number(target)
            if number is None:
                why = "which several things bear: use an id" if counts[target] > 1 else "which is not there"
                self.missing.append(f'"{own}" stands for "{target}", {why}')
            else:
                self._show(number, own)
        for name, number in self._numbers.items():
            self._show(number, name)
        for number in self._by_id:
            self._show(number, str(number))

    def _show(self, number: int, name: str) -> None:
        """The first name of a thing is the one it goes by, and the first thing of a name has it."""
        if name not in self.shown and number not in self._names:
            self._names[number] = name
            self.shown[name] = self._by_id[number]

    def find(self, name: str) -> T | None:
        """The thing of a name: the one shown, then the front-end's, then an id."""
        if name in self.shown:
            return self.shown[name]
        number = self._number(name)
        return None if number is None else self._by_id[number]

    def name_of(self, number: int, default: str) -> str:
        """What the broker calls the thing of this id."""
        return self._names.get(number, default)

    def _number(self, text: str) -> int | None:
        if text in self._numbers:
            return self._numbers[text]
        number = int(text) if text.isdecimal() and text.isascii() else -1
        return number if number in self._by_id else None


def of_images(images: Iterable[Image], settings: Settings) -> Names[Image]:
    """The bootable ones and data disks; kernels, files and backups are no disks."""
    return Names(((image.image_id, image.name, image) for image in images if image.kind in (0, 1, 2)), settings.images)


def of_networks(networks: Iterable[Network], settings: Settings) -> Names[Network]:
    return Names(((network.network_id, network.name, network) for network in networks), settings.networks)


class Directory:
    """What was last read of images, networks and hosts, and the way to look again."""

    def __init__(self, front: FrontEnd, settings: Settings) -> None:
        self._front = front
        self._settings = settings
        self._images: Names[Image] | None = None
        self._networks: Names[Network] | None = None
        self._hosts: dict[str, int] = {}

    def learn(self, hosts: Iterable[Host], images: Names[Image], networks: Names[Network]) -> None:
        """Takes over what an inventory has read."""
        self._hosts = {host.name: host.host_id for host in hosts}
        self._images = images
        self._networks = networks

    def forget(self) -> None:
        """The front-end disagreed with what was read: the next question is asked afresh."""
        self._hosts = {}
        self._images = self._networks = None

    def network_name(self, number: int, default: str) -> str:
        return self._networks.name_of(number, default) if self._networks else default

    async def images(self, wanted: Collection[str]) -> dict[str, Image]:
        """The images of these names. Raises BackendRejected for one that is not there."""
        if any(self._images is None or self._images.find(name) is None for name in wanted):
            self._images = of_images(await self._front.images(), self._settings)
        return _found(self._images, wanted, "image") if self._images else {}

    async def networks(self, wanted: Collection[str]) -> dict[str, Network]:
        """The networks of these names. Raises BackendRejected for one that is not there."""
        if any(self._networks is None or self._networks.find(name) is None for name in wanted):
            self._networks = of_networks(await self._front.networks(), self._settings)
        return _found(self._networks, wanted, "network") if self._networks else {}

    async def host_id(self, name: str) -> int:
        """The id of a host. Raises BackendRejected, a host's fault, if it is gone."""
        if name not in self._hosts:
            self._hosts = {host.name: host.host_id for host in await self._front.hosts()}
        if name not in self._hosts:
            raise BackendRejected(f'OpenNebula has no host "{name}" that this session may see', host_fault=True)
        return self._hosts[name]


def _found(names: Names[T], wanted: Collection[str], kind: str) -> dict[str, T]:
    found: dict[str, T] = {}
    for name in wanted:
        thing = names.find(name)
        if thing is None:
            shared = " (several bear it: use an id)" if name in names.ambiguous else ""
            raise BackendRejected(f'OpenNebula has no {kind} "{name}" that this session may see{shared}')
        found[name] = thing
    return found
