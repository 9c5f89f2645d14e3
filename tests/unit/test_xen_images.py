"""What is written about images, and what is wrong with it: every problem at once, each with its key and numbers."""

from __future__ import annotations

import hashlib
import struct
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import BackendRejected, HostState, ObservedHost, ObservedImage
from backends.xen import images, inspection, storage_settings
from backends.xen.images import Format, Image
from backends.xen.storage_settings import Clones

SUM = hashlib.sha256(b"x").hexdigest()


def qcow2(
    *,
    version: int = 3,
    backing: int = 0,
    cluster_bits: int = 16,
    size: int = 1 << 20,
    crypt: int = 0,
    features: int = 0,
) -> bytes:
    """A qcow2 file as far as its header goes."""
    head = struct.pack(">4sIQI", b"QFI\xfb", version, backing, 0)
    head += struct.pack(">IQIIQ", cluster_bits, size, crypt, 1, 4096)
    return head.ljust(72, b"\0") + struct.pack(">Q", features) + bytes(8192)


def problems_of(tables: dict[str, Any]) -> dict[str, str]:
    return {problem.key: problem.message for problem in storage_settings.read(tables)[1]}


def test_settings_are_read() -> None:
    found, problems = storage_settings.read(
        {
            "storage": {
                "pool": "guests",
                "type": "logical",
                "path": "/dev/vg0/",
                "source": "vg0",
                "clones": "snapshot",
            },
            "images": {
                "directory": "images",
                "cache_limit": 5,
                "catalog": {
                    "a": {
                        "url": "https://x.example/a",
                        "sha256": SUM.upper(),
                        "attributes": {"arch": ["x86_64", "i686"]},
                    },
                    "b": {"volume": "xen1/guests/b", "sha256": SUM, "format": "qcow2"},
                    "c": {"file": "c.img", "size": 512, "guest": {"type": "pv", "kernel": "/k"}},
                },
            },
        }
    )
    assert problems == []
    assert found is not None
    assert (found.place.path, found.clones, found.cache_limit) == ("/dev/vg0", Clones.SNAPSHOT, 10240)
    assert (found.images.directory, found.images.cache_limit) == ("images", 5)
    catalog = found.images.catalog
    assert (catalog["a"].sha256, catalog["a"].attributes) == (SUM, {"arch": ("x86_64", "i686")})
    assert (catalog["b"].format, catalog["c"].guest) == (Format.QCOW2, {"type": "pv", "kernel": "/k"})


def test_a_pool_without_storage_has_none() -> None:
    assert storage_settings.read({}) == (None, [])
    assert problems_of({"images": {}}) == {
        "images": "is of no use without storage, which says where disks are made of them"
    }


def test_every_bad_key_is_named_at_once() -> None:
    found = problems_of(
        {
            "storage": {"type": "zfs", "path": "guests", "cache_limit": 0, "clones": "fast", "build": 1, "colour": 1},
            "images": {
                "directory": 7,
                "cache_limit": "5G",
                "shape": "round",
                "catalog": {
                    "two": {"file": "a", "url": "ftp://x/a", "sha256": SUM},
                    "none": {},
                    "unsummed": {"url": "https://x.example/a"},
                    "-bad": {"file": "a"},
                    "worse": {
                        "volume": "guests/a",
                        "sha256": "12",
                        "size": -1,
                        "format": "vmdk",
                        "attributes": 1,
                        "guest": {"a": 1},
                        "colour": 1,
                    },
                    "text": "a.img",
                },
            },
        }
    )
    assert found.pop("images.catalog.two.url") == 'an http or https URL is wanted, not "ftp://x/a"'
    assert "exactly one of file, url and volume is required, not file and url" in found.pop("images.catalog.two")
    assert "not none" in found.pop("images.catalog.none")
    assert found.pop("images.catalog.unsummed.sha256") == "is required for an image from a url"
    assert "no name of an image: 1 to 100 of A-Z" in found.pop("images.catalog.-bad")
    assert "a table is wanted" in found.pop("images.catalog.text")
    assert "one of raw, qcow2 is wanted, not 'vmdk'" in found.pop("images.catalog.worse.format")
    assert "HOST/POOL/VOLUME" in found.pop("images.catalog.worse.volume")
    assert "there are: attributes, display_name, file, format, guest" in found.pop("images.catalog.worse.colour")
    for key in ("sha256", "size", "attributes", "guest"):
        assert "wanted" in found.pop(f"images.catalog.worse.{key}")
    for key in ("directory", "cache_limit"):
        assert "wanted" in found.pop(f"images.{key}")
    assert "there are: directory, cache, cache_limit, catalog" in found.pop("images.shape")
    assert "one of dir, fs, logical, netfs is wanted, not 'zfs'" in found.pop("storage.type")
    assert "a full path" in found.pop("storage.path")
    assert "one of auto, copy, overlay, snapshot" in found.pop("storage.clones")
    for key in ("cache_limit", "build"):
        assert "wanted" in found.pop(f"storage.{key}")
    assert "there are: build, cache_limit, clones" in found.pop("storage.colour")
    assert "is required: the name of the storage pool" in found.pop("storage.pool")
    assert found == {}


@pytest.mark.parametrize(
    ("storage", "key"),
    [
        ({"type": "logical", "path": "/dev/vg0"}, "source"),
        ({"type": "netfs", "path": "/p", "source": "/export"}, "server"),
        ({"type": "fs", "path": "/p"}, "device"),
        ({"type": "logical", "path": "/dev/vg0", "source": "vg0", "build": True}, "device"),
        ({"build": True}, "build"),
        ({"source": "vg0"}, "source"),
        ({"type": "logical", "clones": "overlay"}, "clones"),
        ({"clones": "snapshot"}, "clones"),
    ],
)
def test_what_does_not_fit_a_type_of_pool(storage: dict[str, object], key: str) -> None:
    assert list(problems_of({"storage": {"pool": "guests", **storage}})) == [f"storage.{key}"]


@pytest.mark.parametrize(
    ("data", "format", "wrong"),
    [
        (bytes(1024), "raw", ""),
        (qcow2(), "qcow2", ""),
        (qcow2(version=2)[:72], "qcow2", "truncated: 72 bytes, a table at 4096"),
        (b"", "raw", "0 bytes are no disk of whole 512-byte sectors (truncated?)"),
        (bytes(1000), "raw", "1000 bytes are no disk"),
        (bytes(1024), "qcow2", "does not begin like it"),
        (qcow2(), "raw", "begins like qcow2: convert it, or say its format"),
        (qcow2(backing=112), "qcow2", "an overlay upon another file: flatten it"),
        (qcow2(features=4), "qcow2", "its data lie in another file"),
        (qcow2(features=2), "qcow2", "marked as corrupt"),
        (qcow2(crypt=1), "qcow2", "it is encrypted"),
        (qcow2(size=0), "qcow2", "its header makes no sense"),
        (b"KDMV" + bytes(1020), "raw", "begins like vmdk"),
    ],
)
def test_what_the_first_bytes_say(tmp_path: Path, data: bytes, format: str, wrong: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    image = Image(name="debian", file="image", format=Format(format))
    if not wrong:
        assert images.look(path, image).disk == (1 << 20 if format == "qcow2" else len(data))
        return
    with pytest.raises(BackendRejected) as refused:
        images.look(path, image)
    assert wrong in str(refused.value)
    assert str(refused.value).startswith(f"image debian: {path} cannot be used: ")


text = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda each: each.strip())


@given(
    text,
    text,
    st.dictionaries(text, st.one_of(text, st.integers(-(2**60), 2**60), st.booleans(), st.lists(text).map(tuple))),
    st.dictionaries(text, text),
)
def test_a_sidecar_is_read_back_as_it_was_written(
    display: str, source: str, attributes: dict[str, Any], guest: dict[str, str]
) -> None:
    image = Image(
        name="mine",
        display_name=display,
        file="mine.raw",
        sha256=SUM,
        size=512,
        attributes=attributes,
        guest=guest,
        saved_from=source,
    )
    read, wrong = images.read_image("mine", tomllib.loads(images.write_sidecar(image)))
    assert wrong == []
    assert read == image


def test_a_directory_is_inspected_at_once(tmp_path: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "good.img").write_bytes(bytes(1024))
    for name, entry in {
        "good": f'file = "good.img"\nsha256 = "{hashlib.sha256(bytes(1024)).hexdigest()}"',
        "gone": 'file = "gone.img"',
        "short": 'file = "good.img"\nsize = 4096',
        "other": f'file = "good.img"\nsha256 = "{SUM}"',
        "huge": f'url = "https://x.example/huge"\nsha256 = "{SUM}"\nsize = {2 << 20}',
        "broken": "file =",
        "odd": 'file = "good.img"\ncolour = "red"',
        "twice": 'file = "good.img"',
    }.items():
        (directory / f"{name}.toml").write_text(entry)
    (directory / ".part.toml").write_text("")
    settings, problems = storage_settings.read(
        {
            "storage": {"pool": "guests", "cache_limit": 1},
            "images": {"directory": "images", "catalog": {"twice": {"file": "nothing.img"}}},
        }
    )
    assert settings is not None
    assert not problems
    found = [(problem.key, problem.message) for problem in inspection.inspect(settings, tmp_path, sums=True)]
    for number, (name, message) in enumerate(
        {
            "broken": "broken.toml cannot be read",
            "odd": "odd.toml: colour: no such key of an image",
            "twice2": "image twice is in the settings and in",
            "twice": f"{tmp_path}/nothing.img cannot be read: No such file or directory",
            "gone": "gone.img cannot be read",
            "huge": "image huge has 2 MiB, and storage.cache_limit allows 1 MiB",
            "other": f"good.img has the SHA-256 {hashlib.sha256(bytes(1024)).hexdigest()}, and {SUM} is expected",
            "short": "it has 1024 bytes, and 4096 are expected (truncated?)",
        }.items()
    ):
        assert message in found[number][1], name
    assert len(found) == 8
    assert found[3][0] == "images.catalog.twice"
    assert len(inspection.inspect(settings, tmp_path)) == 7, "without the sums"


def test_a_missing_directory_is_a_problem(tmp_path: Path) -> None:
    settings, _ = storage_settings.read({"storage": {"pool": "guests"}, "images": {"directory": "nowhere"}})
    assert settings is not None
    (problem,) = inspection.inspect(settings, tmp_path)
    assert "nowhere, cannot be read: No such file or directory" in problem.message


def test_images_that_fit_no_host() -> None:
    hosts = [
        ObservedHost(
            name="a", state=HostState.ACTIVE, total={"disk": 100}, attributes={"arch": "x86_64", "hypervisor": "xen"}
        ),
        ObservedHost(
            name="b", state=HostState.ACTIVE, total={"disk": 200}, attributes={"arch": "x86_64", "hypervisor": "kvm"}
        ),
    ]
    found = inspection.misfits(
        [
            ObservedImage(name="good", size_mib=200, attributes={"arch": "x86_64", "hypervisor": ("kvm", "esx")}),
            ObservedImage(name="plain"),
            ObservedImage(name="arm", attributes={"arch": "aarch64"}),
            ObservedImage(name="huge", size_mib=201),
        ],
        hosts,
    )
    assert found == [
        "image arm is for arch aarch64, and hosts have x86_64",
        "image huge has 201 MiB, and no host has more than 200 for disks",
    ]
    assert inspection.misfits([ObservedImage(name="arm", attributes={"arch": "aarch64"})], []) == []
