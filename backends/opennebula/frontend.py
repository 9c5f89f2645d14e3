"""A front-end's questions, answered with values: documents fetched, paged and parsed.

Responsible for which read call fetches what, for paging, and for parsing large documents beside the loop.
Invariant: an answer is whole or an error. Pages of a pool shift while they are read: a VM made meanwhile may
show up twice (it is kept once), one that ended may hide another, which is why a VM missing from a pool is not
gone.

VMs are always read as `one.vmpool.infoextended`. The shorter `one.vmpool.info` has no attribute of ours, and
`one.vmpool.infoset` knows only the ids one asks for, so neither would show a VM whose creation was never
answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from backends.opennebula import documents, failures
from backends.opennebula.documents import Datastore, Host, Image, Network, Vm
from backends.opennebula.failures import Code, RefusedByFrontEnd, Unusable
from backends.opennebula.rpc import Rpc

_VISIBLE: Final = -2  # filter: everything the session may see
_NOT_DONE: Final = -1  # state: any but DONE
_PARSE_ASIDE_CHARACTERS: Final = 64 * 1024


T = TypeVar("T")


class FrontEnd:
    """Reads one front-end through its `Rpc`."""

    def __init__(self, rpc: Rpc, page_size: int) -> None:
        self._rpc = rpc
        self._page_size = page_size

    async def vms(self) -> tuple[Vm, ...]:
        """Every VM that is not DONE, newest first: one document, or one a page."""
        return await self._paged("one.vmpool.infoextended", documents.vms, lambda vm: vm.vm_id, _NOT_DONE)

    async def vm(self, vm_id: int) -> Vm | None:
        """One VM, DONE ones too; None if there never was one of this id."""
        method = "one.vm.info"
        try:
            text = await self._rpc.read(method, vm_id)
        except RefusedByFrontEnd as refusal:
            if refusal.code == Code.NO_EXISTS:
                return None
            raise
        return await self._parse(method, text, documents.vm)

    async def hosts(self) -> tuple[Host, ...]:
        return await self._whole("one.hostpool.info", documents.hosts)

    async def datastores(self) -> tuple[Datastore, ...]:
        return await self._whole("one.datastorepool.info", documents.datastores)

    async def images(self) -> tuple[Image, ...]:
        return await self._paged("one.imagepool.info", documents.images, lambda image: image.image_id)

    async def networks(self) -> tuple[Network, ...]:
        return await self._paged("one.vnpool.info", documents.networks, lambda network: network.network_id)

    async def _whole(self, method: str, read: Callable[[str], T]) -> T:
        return await self._parse(method, await self._rpc.read(method), read)

    async def _paged(
        self, method: str, read: Callable[[str], tuple[T, ...]], number: Callable[[T], int], *more: int
    ) -> tuple[T, ...]:
        found: dict[int, T] = {}
        offset = 0
        while True:
            text = await self._rpc.read(method, _VISIBLE, offset, -self._page_size, *more)
            page = await self._parse(method, text, read)
            for entry in page:
                found.setdefault(number(entry), entry)
            if len(page) < self._page_size:
                return tuple(found.values())
            offset += len(page)

    async def _parse(self, method: str, text: str, read: Callable[[str], T]) -> T:
        try:
            if len(text) > _PARSE_ASIDE_CHARACTERS:
                return await asyncio.to_thread(read, text)
            return read(text)
        except Unusable as trouble:
            raise failures.of_answer(method, trouble, changes=False) from trouble
