"""Images: what is written about one, in the pool's settings or in a file beside it, and what its first bytes say.

Responsible for the values, for reading them with everything that is wrong named at once, and for looking at an image
file: its size, its format, whether it may be used at all. Invariant: an image that passed `look` is whole as far as
its size tells, and refers to no other file of the host it will lie on. Checksums are compared by whoever reads all of
it. Nothing is fetched here.

    [pools.lab.images]
    directory = "images"              # NAME.toml beside each file; saved images go there
    cache = "image-cache"             # copies of what comes from URLs and volumes
    cache_limit = 20480               # MiB
    [pools.lab.images.catalog.debian12]
    url = "https://images.example.org/debian12.raw"
    sha256 = "..."
    attributes = { arch = "x86_64", hypervisor = "xen" }
    guest = { type = "pv", kernel = "/guest/vmlinux" }
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct, field, structs

from backends.base import AttributeValue, BackendRejected, SettingProblem

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
NAME_FORM: Final = "1 to 100 of A-Z, a-z, 0-9, '.', '_', '+' and '-', a letter or digit first"
SIDECAR: Final = ".toml"
SECTOR: Final = 512

_QCOW2: Final = b"QFI\xfb"
# A guest may write one of these upon its own raw disk; whatever guesses formats later would follow what it refers to.
_OTHERS: Final[Mapping[bytes, str]] = {
    _QCOW2: "qcow2",
    b"QED\0": "qed",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"<<< ": "vdi",
    b"conectix": "vpc",
    b"LUKS\xba\xbe": "luks",
}
_HEAD: Final = 104  # of a qcow2 header, all that is looked at


class Format(StrEnum):
    """What an image file is."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Image(Struct, frozen=True, kw_only=True):
    """An image as it is written about. Exactly one of `file`, `url` and `volume` is set."""

    name: str
    display_name: str = ""
    file: str = ""  # relative to where it is written
    url: str = ""
    volume: str = ""  # "host/pool/volume"
    sha256: str = ""
    size: int = 0  # bytes of the file; 0: not said
    format: Format = Format.RAW
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    guest: Mapping[str, str] = field(default_factory=dict)  # what the domain is made of
    saved_from: str = ""  # the disk it was saved from


class ImageSettings(Struct, frozen=True, kw_only=True):
    """Where a pool's images are. Sizes in MiB."""

    directory: str = ""
    cache: str = "image-cache"
    cache_limit: int = 20 * 1024
    catalog: Mapping[str, Image] = field(default_factory=dict)


class Look(Struct, frozen=True, kw_only=True):
    """What a file is: bytes of the file, and of the disk that a guest sees in it."""

    size: int
    disk: int
    format: Format


def read(table: Mapping[str, object], at: str = "images") -> tuple[ImageSettings, list[SettingProblem]]:
    """The settings in a table and everything that is wrong with it; touches nothing."""
    problems: list[SettingProblem] = []
    values: dict[str, Any] = {}
    for key, value in table.items():
        match key:
            case "directory" | "cache" if isinstance(value, str) and value:
                values[key] = value
            case "cache_limit" if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                values[key] = value
            case "catalog" if isinstance(value, Mapping):
                values[key] = {}
                for name, entry in value.items():
                    image, wrong = read_image(name, entry)
                    problems += [
                        SettingProblem(key=f"{at}.catalog.{name}{'.' * bool(path)}{path}", message=text)
                        for path, text in wrong
                    ]
                    if image is not None:
                        values[key][name] = image
            case "directory" | "cache" | "cache_limit" | "catalog":
                wanted = {"cache_limit": "a positive number of MiB", "catalog": "a table of images by name"}
                message = f"{wanted.get(key, 'the name of a directory')} is wanted, not {value!r}"
                problems.append(SettingProblem(key=f"{at}.{key}", message=message))
            case _:
                known = "directory, cache, cache_limit, catalog"
                problems.append(SettingProblem(key=f"{at}.{key}", message=f"no such setting; there are: {known}"))
    return ImageSettings(**values), problems


def read_image(name: str, entry: object) -> tuple[Image | None, list[tuple[str, str]]]:
    """An image in a table and everything that is wrong with it, as (key, message); None where anything is."""
    if not NAME.fullmatch(name):
        return None, [("", f'"{name}" is no name of an image: {NAME_FORM}')]
    if not isinstance(entry, Mapping):
        return None, [("", "a table is wanted, with file, url or volume")]
    wrong: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for key, value in entry.items():
        reader = _READERS.get(key)
        if reader is None:
            wrong.append((key, f"no such key of an image; there are: {', '.join(sorted(_READERS))}"))
            continue
        try:
            values[key] = reader(value)
        except ValueError as error:
            wrong.append((key, str(error)))
    sources = [key for key in ("file", "url", "volume") if key in entry]
    if len(sources) != 1:
        wrong.append(("", f"exactly one of file, url and volume is required, not {' and '.join(sources) or 'none'}"))
    elif sources != ["file"] and "sha256" not in entry:
        wrong.append(("sha256", f"is required for an image from a {sources[0]}"))
    return (None, wrong) if wrong else (Image(name=name, **values), wrong)


def read_sidecar(path: Path) -> tuple[Image | None, list[tuple[str, str]]]:
    """The image that a NAME.toml describes; its `file` starts where the sidecar lies."""
    try:
        entry = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return None, [("", f"{path} cannot be read: {error}")]
    image, wrong = read_image(path.name.removesuffix(SIDECAR), entry)
    return image, [(key, f"{path}: {key}{': ' * bool(key)}{message}") for key, message in wrong]


def known(directory: Path | None, catalog: Mapping[str, Image]) -> tuple[dict[str, Image], list[str]]:
    """Every image of the settings and of the directory that is written about well, with the full name of its file, and
    what is wrong with the others."""
    found = dict(catalog)
    problems: list[str] = []
    if directory is None:
        return found, problems
    try:
        sidecars = sorted(path for path in directory.iterdir() if path.suffix == SIDECAR)
    except OSError as error:
        return found, [f"the directory of images, {directory}, cannot be read: {error.strerror}"]
    for path in sidecars:
        if path.name.startswith("."):
            continue
        image, wrong = read_sidecar(path)
        problems += [message for _, message in wrong]
        if image is None:
            continue
        if image.name in found:
            problems.append(f"image {image.name} is in the settings and in {path}: the settings' one counts")
            continue
        found[image.name] = placed(image, directory)
    return found, problems


def placed(image: Image, directory: Path) -> Image:
    """The image with the full name of its file."""
    return structs.replace(image, file=str(directory / image.file)) if image.file else image


def write_sidecar(image: Image) -> str:
    """The text of a sidecar that `read_sidecar` reads back."""
    lines = [f"{key} = {_toml(value)}" for key in _READERS if (value := getattr(image, key))]
    return "\n".join(lines) + "\n"


def look(path: Path, image: Image) -> Look:
    """What the file of an image is. Raises BackendRejected with what is wrong with it, all of it."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BackendRejected(f"image {image.name}: {path} cannot be read: {error.strerror}") from None
    wrong: list[str] = []
    if image.size and size != image.size:
        wrong.append(f"it has {size} bytes, and {image.size} are expected{' (truncated?)' * (size < image.size)}")
    disk = size
    if image.format is Format.QCOW2:
        disk = _qcow2(head, size, wrong)
    else:
        if (other := foreign_format(head)) is not None:
            wrong.append(f"it is said to be raw and begins like {other}: convert it, or say its format")
        if not size or size % SECTOR:
            wrong.append(f"{size} bytes are no disk of whole {SECTOR}-byte sectors (truncated?)")
    if wrong:
        raise BackendRejected(f"image {image.name}: {path} cannot be used: {'; '.join(wrong)}")
    return Look(size=size, disk=disk, format=image.format)


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal; reads all of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def foreign_format(head: bytes) -> str | None:
    """What else than raw the first bytes of a disk would be taken for, None for nothing."""
    return next((word for magic, word in _OTHERS.items() if head.startswith(magic)), None)


def _qcow2(head: bytes, size: int, wrong: list[str]) -> int:
    """The size of the disk in a qcow2 file; appends what is wrong with it."""
    if len(head) < 72 or not head.startswith(_QCOW2):
        wrong.append("it is said to be qcow2 and does not begin like it")
        return 0
    version, backing = struct.unpack_from(">IQ", head, 4)
    cluster_bits, disk, encrypted, _, first_table = struct.unpack_from(">IQIIQ", head, 20)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 and len(head) >= 80 else 0
    if backing:
        wrong.append("it is an overlay upon another file: flatten it (qemu-img convert)")
    if features & 4:
        wrong.append("its data lie in another file: convert it (qemu-img convert)")
    if features & 2:
        wrong.append("it is marked as corrupt (qemu-img check)")
    if encrypted:
        wrong.append("it is encrypted")
    if not 9 <= cluster_bits <= 21 or disk % SECTOR or not disk or first_table >= size:
        wrong.append(f"its header makes no sense, or it is truncated: {size} bytes, a table at {first_table}")
    return int(disk)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"text is wanted, not {value!r}")
    return value


def _url(value: object) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f'an http or https URL is wanted, not "{text}"')
    return text


def _volume(value: object) -> str:
    text = _text(value)
    if len(text.split("/")) != 3 or not all(text.split("/")):
        raise ValueError(
            f'"HOST/POOL/VOLUME" is wanted, by libvirt\'s names and the pool\'s name of the host, not "{text}"'
        )
    return text


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError(f"64 hexadecimal digits are wanted, not {value!r}")
    return value.lower()


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"a number of bytes is wanted, not {value!r}")
    return value


def _format(value: object) -> Format:
    if not isinstance(value, str) or value not in list(Format):
        raise ValueError(f"one of {', '.join(Format)} is wanted, not {value!r}")
    return Format(value)


def _attributes(value: object) -> dict[str, AttributeValue]:
    if not isinstance(value, Mapping):
        raise ValueError('a table is wanted, such as { arch = "x86_64", hypervisor = "xen" }')
    found: dict[str, AttributeValue] = {}
    for key, entry in value.items():
        if isinstance(entry, list) and all(isinstance(each, str) for each in entry):
            found[key] = tuple(entry)
        elif isinstance(entry, str | int | float | bool):
            found[key] = entry
        else:
            raise ValueError(f"{key}: text, a number, true, false or a list of texts is wanted, not {entry!r}")
    return found


def _guest(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(entry, str) for entry in value.values()):
        raise ValueError('a table of texts is wanted, such as { type = "pv", kernel = "/boot/vmlinuz" }')
    return dict(value)


_READERS: Final = {
    "display_name": _text,
    "file": _text,
    "url": _url,
    "volume": _volume,
    "sha256": _sha256,
    "size": _size,
    "format": _format,
    "attributes": _attributes,
    "guest": _guest,
    "saved_from": _text,
}


def _toml(value: object) -> str:
    """A value in TOML: texts as JSON writes them, but for what only TOML wants escaped."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return f"[{', '.join(_toml(each) for each in value)}]"
        case Mapping():
            return f"{{ {', '.join(f'{_toml(key)} = {_toml(each)}' for key, each in value.items())} }}"
        case _:
            return str(value)
