"""The NoCloud seed as a guest reads it: three files, exact user data, the same bytes every time."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator

import pytest
import yaml

from backends.xen import seed as seeds
from backends.xen.seed import Seed, SeedNic

pycdlib = pytest.importorskip("pycdlib", reason="pycdlib is not installed")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExample lab"


def files(image: bytes) -> dict[str, bytes]:
    """What a guest that mounts the image sees."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    assert iso.pvd.volume_identifier.rstrip() == b"cidata"
    found: dict[str, bytes] = {}
    for child in iso.list_children(rr_path="/"):
        if child.is_file():
            out = io.BytesIO()
            iso.get_file_from_iso_fp(out, rr_path=f"/{child.rock_ridge.name().decode()}")
            found[child.rock_ridge.name().decode()] = out.getvalue()
    iso.close()
    return found


def documents(seed: Seed) -> dict[str, object]:
    return {name: yaml.safe_load(data) for name, data in files(seeds.build(seed)).items()}


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Another time zone than the one before."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Pacific/Kiritimati"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_the_guest_reads_who_it_is_its_keys_and_its_addresses() -> None:
    nic = SeedNic(
        mac="00:16:3E:77:00:01",
        addresses=("10.77.0.101/24", "2001:db8::5/64"),
        gateways=("10.77.0.1", "2001:db8::1"),
        nameservers=("10.77.0.2", "2001:db8::2"),
    )
    seen = documents(Seed(instance_id="i-1", host_name="head-0", nics=(nic,), ssh_public_keys=(KEY,)))
    assert seen == {
        "meta-data": {"instance-id": "i-1", "local-hostname": "head-0", "public-keys": [KEY]},
        "user-data": {"ssh_authorized_keys": [KEY]},
        "network-config": {
            "version": 2,
            "ethernets": {
                "eth0": {
                    "match": {"macaddress": "00:16:3e:77:00:01"},
                    "addresses": ["10.77.0.101/24", "2001:db8::5/64"],
                    "routes": [{"to": "0.0.0.0/0", "via": "10.77.0.1"}, {"to": "::/0", "via": "2001:db8::1"}],
                    "nameservers": {"addresses": ["10.77.0.2", "2001:db8::2"]},
                }
            },
        },
    }


def test_an_interface_without_an_address_asks_dhcp() -> None:
    nics = (SeedNic(mac="00:16:3e:00:00:01", addresses=("10.0.0.5/8",)), SeedNic(mac="00:16:3e:00:00:02"))
    seen = yaml.safe_load(seeds.network_config(Seed(instance_id="i", host_name="h", nics=nics)))
    assert seen["ethernets"]["eth1"] == {"match": {"macaddress": "00:16:3e:00:00:02"}, "dhcp4": True}
    assert "dhcp4" not in seen["ethernets"]["eth0"]


def test_a_guest_without_interfaces_has_an_empty_network_configuration() -> None:
    seen = yaml.safe_load(seeds.network_config(Seed(instance_id="i", host_name="h")))
    assert seen == {"version": 2, "ethernets": {}}


def test_user_data_arrives_byte_for_byte_and_keys_beside_it() -> None:
    script = b"#!/bin/sh\n\x00\xff: [not yaml\r\n" * 5000
    seen = files(seeds.build(Seed(instance_id="i", host_name="h", ssh_public_keys=(KEY,), user_data=script)))
    assert seen["user-data"] == script
    assert yaml.safe_load(seen["meta-data"])["public-keys"] == [KEY]


ODD = [
    "true",
    "Off",
    "n",
    "12",
    "1e3",
    "0x1F",
    "1_0",
    "~",
    "null",
    "2026-01-01",
    "10:20:30",
    "=",
    "-",
    "",
    " a ",
    "a b",
]
ODD += [
    "a: b",
    "a #b",
    "x\ny: z",
    '"',
    "\\",
    "[a]",
    "{a",
    "*a",
    "&a",
    "!a",
    "%a",
    "@a",
    "`a",
    "ключ \U0001f511",
    "\x85\u2028\x7f",
]


@pytest.mark.parametrize("text", ODD)
def test_no_text_breaks_out_of_its_place(text: str) -> None:
    seen = yaml.safe_load(seeds.meta_data(Seed(instance_id=text, host_name=text, ssh_public_keys=(text, KEY))))
    assert seen == {"instance-id": text, "local-hostname": text, "public-keys": [text, KEY]}


@pytest.mark.usefixtures("elsewhere")
def test_the_same_seed_is_the_same_bytes_at_another_time_in_another_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = Seed(instance_id="i", host_name="h", user_data=b"#!/bin/sh\n", nics=(SeedNic(mac="00:16:3e:00:00:01"),))
    first = seeds.build(seed)
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert seeds.build(seed) == first
    assert seeds.build(Seed(instance_id="i2", host_name="h")) != first


def test_the_librarys_clock_runs_on_afterwards() -> None:
    seeds.build(Seed(instance_id="i", host_name="h"))
    dates = pycdlib.dates.DirectoryRecordDate()
    dates.new(time.time())
    assert dates.years_since_1900 == time.localtime().tm_year - 1900 > 100
