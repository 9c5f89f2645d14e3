"""The image repository of a pool: which images there are, a local file of each, and images that are saved.

Responsible for the directory with its sidecars, the catalogue in the settings, copies of what comes from URLs and
volumes, and for new images. Invariants: an image exists when its sidecar does, which is written last, so that one that
is being saved is never taken for whole; a copy bears its checksum as its name and was compared with it; what is
fetched for several is fetched once; a copy in use is not removed to make room. It knows no hosts: how a volume is
read, it is told.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
from msgspec import Struct, structs

from backends.base import BackendRejected, ObservedImage, TransientBackendError
from backends.xen import images
from backends.xen.fetch import Progress, fetch, of_os
from backends.xen.images import NAME, NAME_FORM, SIDECAR, Format, Image, ImageSettings, Look
from backends.xen.shared import SharedWork, to_the_end

MIB: Final = 1024 * 1024
_PART: Final = ".part"

ReadVolume = Callable[[str, Path, Progress], Awaitable[str]]
"""Copies "host/pool/volume" to a new file and returns its SHA-256."""


class LocalImage(Struct, frozen=True, kw_only=True):
    """An image as a file here."""

    image: Image
    path: Path
    look: Look
    sha256: str  # as declared, else as computed


class Save(Struct, kw_only=True):
    """An image that is being saved: whoever fills the file sets its checksum."""

    path: Path
    sha256: str = ""


class Repository:
    """The images of one pool."""

    def __init__(
        self,
        settings: ImageSettings,
        base_directory: Path,
        tag: str,
        read_volume: ReadVolume,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._directory = base_directory / settings.directory if settings.directory else None
        self._cache = base_directory / settings.cache
        self._cache_limit = settings.cache_limit * MIB
        self._catalog = {name: images.placed(image, base_directory) for name, image in settings.catalog.items()}
        self._part = f".{tag}{_PART}"  # of this broker's own unfinished files
        self._read_volume = read_volume
        self._transport = transport
        self._copying: SharedWork[str, Path] = SharedWork()
        self._summing: SharedWork[tuple[str, int, int], str] = SharedWork()
        self._sums: dict[tuple[str, int, int], str] = {}
        self._saving: dict[str, str] = {}  # image name: the disk it comes from
        self._in_use: Counter[str] = Counter()
        self._sources: dict[str, str] = {}
        self.progress: dict[str, tuple[int, int]] = {}
        """What is being fetched or saved, by name: bytes done, and in all (0: not known)."""

    @property
    def saves(self) -> bool:
        """Whether there is a place for new images."""
        return self._directory is not None

    async def open(self) -> None:
        """Removes what an earlier life left unfinished."""
        await asyncio.to_thread(self._sweep)

    async def close(self) -> None:
        """Gives up what is being fetched."""
        await self._copying.close()
        await self._summing.close()

    async def images(self) -> tuple[tuple[ObservedImage, ...], list[str]]:
        """All images by name, and what is wrong with those that cannot be used."""
        known, problems = await asyncio.to_thread(self._known)
        observed = {name: await asyncio.to_thread(self._observed, image, problems) for name, image in known.items()}
        for name in self._saving:
            observed.setdefault(name, ObservedImage(name=name, ready=False))
        return tuple(observed[name] for name in sorted(observed)), problems

    async def sums(self) -> dict[str, str]:
        """The checksums of images by name, as far as they are known."""
        known, _ = await asyncio.to_thread(self._known)
        seen = {path: found for (path, _, _), found in self._sums.items()}
        found = {name: image.sha256 or seen.get(image.file, "") for name, image in known.items()}
        return {name: digest for name, digest in found.items() if digest}

    async def find(self, name: str) -> Image:
        """The image of a name. Raises BackendRejected naming those there are."""
        known, problems = await asyncio.to_thread(self._known)
        if name in known:
            return known[name]
        if name in self._saving:
            raise TransientBackendError(f"image {name} is being saved from {self._saving[name]}: it is not ready yet")
        broken = [each for each in problems if f"{name}{SIDECAR}" in each]
        raise BackendRejected(f"there is no image {name}; {'; '.join(broken) or _listed(known)}")

    @asynccontextmanager
    async def local(self, name: str) -> AsyncIterator[LocalImage]:
        """A file of an image, fetched first where it is elsewhere; it stays as long as the context lasts."""
        image = await self.find(name)
        if image.file:
            path = Path(image.file)
            look = await asyncio.to_thread(images.look, path, image)
            yield LocalImage(image=image, path=path, look=look, sha256=image.sha256 or await self._sum(path))
            return
        self._in_use[image.sha256] += 1
        try:
            path = await self._copying.run(image.sha256, lambda: self._copy(image))
            look = await asyncio.to_thread(images.look, path, image)
            yield LocalImage(image=image, path=path, look=look, sha256=image.sha256)
        finally:
            self._in_use[image.sha256] -= 1

    async def spoilt(self, local: LocalImage) -> None:
        """A file is not what its checksum says any more: a copy is removed, so that it is fetched anew."""
        if not local.image.file:
            await asyncio.to_thread(local.path.unlink, missing_ok=True)

    @asynccontextmanager
    async def saving(self, name: str, source: str, like: Image) -> AsyncIterator[Save | None]:
        """A file to fill, which is the image of this name once the context ends well; None: it was saved from this
        very disk before. Raises BackendRejected where the name is taken.

        `like` gives what the new image has in common with the one the disk began as.
        """
        directory = self._place_for(name)
        known, _ = await asyncio.to_thread(self._known)
        if name in known:
            if known[name].saved_from == source:
                yield None
                return
            raise BackendRejected(f"there is an image {name} already: save under another name")
        if name in self._saving:
            if self._saving[name] == source:
                raise TransientBackendError(f"image {name} is being saved from this disk already: wait for it")
            raise BackendRejected(f"an image {name} is being saved from another disk: save under another name")
        self._saving[name] = source
        save = Save(path=directory / f".{name}{self._part}")
        try:
            save.path.unlink(missing_ok=True)
            yield save
            await to_the_end(asyncio.to_thread(_publish, directory, name, source, like, save))
        except OSError as error:
            raise of_os(f"image {name} could not be stored in {directory}", error) from None
        finally:
            del self._saving[name]
            with suppress(OSError):
                save.path.unlink(missing_ok=True)

    def _place_for(self, name: str) -> Path:
        if self._directory is None:
            raise BackendRejected("this pool has no place for images: set images.directory")
        if not NAME.fullmatch(name):
            raise BackendRejected(f'"{name}" cannot be an image\'s name here: {NAME_FORM}')
        if not self._directory.is_dir():
            raise BackendRejected(f"the directory of images, {self._directory}, is not there")
        return self._directory

    def _known(self) -> tuple[dict[str, Image], list[str]]:
        """In a thread: every image that is written about well, and the problems with the others."""
        return images.known(self._directory, self._catalog)

    def _observed(self, image: Image, problems: list[str]) -> ObservedImage:
        path = Path(image.file) if image.file else self._cache / image.sha256
        ready, disk = True, image.size if image.format is Format.RAW else 0
        if image.file or path.exists():
            try:
                disk = images.look(path, image).disk
            except BackendRejected as error:
                problems.append(str(error))
                ready = False
        return ObservedImage(
            name=image.name,
            display_name=image.display_name,
            ready=ready,
            size_mib=-(-disk // MIB),
            attributes=image.attributes,
        )

    async def _sum(self, path: Path) -> str:
        """The checksum of a file that has none written down; computed again when the file has changed."""
        about = await asyncio.to_thread(path.stat)
        key = (str(path), about.st_size, about.st_mtime_ns)
        if key not in self._sums:
            self._sums[key] = await self._summing.run(key, lambda: asyncio.to_thread(images.sha256, path))
        return self._sums[key]

    async def _copy(self, image: Image) -> Path:
        """The copy of an image from elsewhere, compared with its checksum."""
        path = self._cache / image.sha256
        if path.exists():
            await asyncio.to_thread(os.utime, path)  # when it was used last
            return path
        part = self._cache / f".{image.sha256}{self._part}"
        try:
            await asyncio.to_thread(self._make_room, image, part)
            found = await self._get(image, part)
            if found != image.sha256:
                raise BackendRejected(
                    f"image {image.name}: {image.url or image.volume} has the SHA-256 {found}, and {image.sha256} is "
                    "expected: correct whichever is wrong"
                )
            await asyncio.to_thread(images.look, part, image)
            part.rename(path)
            return path
        except OSError as error:
            raise of_os(f"image {image.name} could not be stored in {self._cache}", error) from None
        finally:
            self.progress.pop(image.name, None)
            part.unlink(missing_ok=True)

    async def _get(self, image: Image, part: Path) -> str:
        def progress(done: int, expected: int) -> None:
            self.progress[image.name] = (done, expected or image.size)

        if image.volume:
            return await self._read_volume(image.volume, part, progress)
        return await fetch(image.url, part, image.size or self._cache_limit, progress, self._transport)

    def _make_room(self, image: Image, part: Path) -> None:
        """In a thread: removes copies, the one used longest ago first, until the new one has room."""
        self._cache.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        if image.size > self._cache_limit:
            raise BackendRejected(
                f"image {image.name} has {image.size} bytes, and images.cache_limit allows {self._cache_limit}"
            )
        copies = sorted(
            ((path, path.stat()) for path in self._cache.iterdir() if not path.name.startswith(".")),
            key=lambda each: each[1].st_mtime_ns,
        )
        held = sum(about.st_size for _, about in copies)
        for path, about in copies:
            if held + image.size <= self._cache_limit and shutil.disk_usage(self._cache).free > image.size:
                return
            if not self._in_use[path.name]:
                path.unlink()
                held -= about.st_size
        if shutil.disk_usage(self._cache).free <= image.size:
            raise TransientBackendError(f"{self._cache} has no room for {image.size} bytes of image {image.name}")

    def _sweep(self) -> None:
        for directory in (self._cache, self._directory):
            if directory is not None and directory.is_dir():
                for path in directory.glob(f".*{self._part}"):
                    path.unlink(missing_ok=True)


def _publish(directory: Path, name: str, source: str, like: Image, save: Save) -> None:
    """In a thread: the file gets a name of its own, and then its sidecar says that it is whole."""
    with save.path.open("rb+") as file:
        if (other := images.foreign_format(file.read(64))) is not None:
            raise BackendRejected(
                f"the disk begins like a {other} file: an image of it would be taken for one; it is not saved"
            )
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    final = directory / f"{name}-{save.sha256[:12]}.raw"
    save.path.rename(final)
    image = structs.replace(
        like,
        name=name,
        display_name="",
        file=final.name,
        url="",
        volume="",
        sha256=save.sha256,
        size=size,
        format=Format.RAW,
        saved_from=source,
    )
    try:
        save.path.write_text(images.write_sidecar(image), encoding="utf-8")
        with save.path.open("rb+") as file:
            os.fsync(file.fileno())
        sidecar = directory / f"{name}{SIDECAR}"
        os.link(save.path, sidecar)  # unlike a rename, never over another's
    except FileExistsError:
        if final.name not in sidecar.read_text(encoding="utf-8"):
            final.unlink()
        raise BackendRejected(f"there is an image {name} by now: save under another name") from None
    except BaseException:
        final.unlink(missing_ok=True)
        raise
    _sync(directory)


def _sync(directory: Path) -> None:
    """Has the names in a directory outlive a power cut."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _listed(known: dict[str, Image]) -> str:
    names = sorted(known)
    if not names:
        return "there are none"
    return f"there are: {', '.join(names[:20])}{f' and {len(names) - 20} more' if len(names) > 20 else ''}"
