"""What is wrong with the images of a pool, all at once: their files, their sizes, and the hosts they are for.

Responsible for looking before anybody asks for an image: for an operator's check of the settings, and for the warnings
of an inventory. Invariant: nothing is fetched and nothing is changed. What it does not find, `storage` refuses when
the image is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from backends.base import AttributeValue, BackendRejected, ObservedHost, ObservedImage, SettingProblem
from backends.xen import images
from backends.xen.images import Image
from backends.xen.storage_settings import StorageSettings

MIB: Final = 1024 * 1024
MATCHED: Final = ("arch", "hypervisor")
"""Attributes that an image and a host must agree on, where both have them."""


def inspect(settings: StorageSettings, base_directory: Path, *, sums: bool = False) -> list[SettingProblem]:
    """Every problem with the images of the settings and of their directory; `sums`: reads all of them and compares."""
    about = settings.images
    problems: list[SettingProblem] = []
    directory = base_directory / about.directory if about.directory else None
    catalog = {name: images.placed(image, base_directory) for name, image in about.catalog.items()}
    known, unread = images.known(directory, catalog)
    problems += [SettingProblem(key="images.directory", message=message) for message in unread]
    for name, image in known.items():
        key = f"images.catalog.{name}" if name in catalog else "images.directory"
        problems += [SettingProblem(key=key, message=message) for message in _wrong(image, settings, sums=sums)]
    return problems


def misfits(seen: Iterable[ObservedImage], hosts: Sequence[ObservedHost]) -> list[str]:
    """Images that no host can run or hold, and why."""
    found: list[str] = []
    for image in seen:
        for key in MATCHED:
            wanted = _values(image.attributes.get(key))
            have = [_values(host.attributes.get(key)) for host in hosts if key in host.attributes]
            if wanted and have and not any(wanted & each for each in have):
                there = ", ".join(sorted(set().union(*have)))
                found.append(f"image {image.name} is for {key} {', '.join(sorted(wanted))}, and hosts have {there}")
        disks = [host.total["disk"] for host in hosts if "disk" in host.total]
        if disks and image.size_mib > max(disks):
            found.append(
                f"image {image.name} has {image.size_mib} MiB, and no host has more than {max(disks)} for disks"
            )
    return found


def _wrong(image: Image, settings: StorageSettings, *, sums: bool) -> list[str]:
    """What is wrong with one image that is written about well."""
    found: list[str] = []
    size = image.size
    if image.file:
        try:
            size = images.look(Path(image.file), image).size
            if sums and image.sha256 and (actual := images.sha256(Path(image.file))) != image.sha256:
                found.append(
                    f"image {image.name}: {image.file} has the SHA-256 {actual}, and {image.sha256} is expected"
                )
        except BackendRejected as refused:
            found.append(str(refused))
    if size > settings.cache_limit * MIB:
        found.append(
            f"image {image.name} has {-(-size // MIB)} MiB, and storage.cache_limit allows {settings.cache_limit} MiB "
            "of images on a host"
        )
    return found


def _values(value: AttributeValue | None) -> set[str]:
    if value is None:
        return set()
    return set(value) if isinstance(value, tuple) else {str(value)}
