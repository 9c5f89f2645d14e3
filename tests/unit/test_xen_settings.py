"""What an operator may write of a libvirt pool, and everything that is wrong with it at once."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from backends.xen import settings, uris
from backends.xen.settings import ALL_DRIVERS, XEN_DRIVERS

GOOD: dict[str, object] = {"hosts": ["xen+ssh://root@a.example.org/system", "xen+tls://b.example.org/system"]}


def problems(table: dict[str, object], drivers: frozenset[str] = ALL_DRIVERS) -> dict[str, str]:
    return {problem.key: problem.message for problem in settings.read(table, drivers)[1]}


def test_a_list_of_uris_is_enough() -> None:
    values, wrong = settings.read(GOOD, XEN_DRIVERS)
    assert wrong == []
    assert [host.name for host in values.hosts] == ["a.example.org", "b.example.org"]
    assert values.hosts[0].uri.text == "xen+ssh://root@a.example.org/system?no_tty=1", "ssh must not ask"
    assert (values.guest, values.networks, values.shutdown_wait) == ("pv", {}, 60.0)


def test_everything_that_can_be_written() -> None:
    table: dict[str, object] = {
        "hosts": [
            {
                "uri": "xen+tcp://127.0.0.1:17001/system",
                "name": "one",
                "reserve_memory": 512,
                "cpus": 8,
                "migrate_uri": "tcp://one:49152",
                "kernel": "/boot/other",
            },
            "qemu:///system",
        ],
        "guest": "pvh",
        "kernel": "/guest/vmlinux",
        "initrd": "/guest/initrd.gz",
        "cmdline": "console=hvc0",
        "networks": [
            {
                "name": "lan",
                "bridge": "xenbr0",
                "addresses": ["10.77.0.100-10.77.0.199", "10.77.0.210"],
                "reserved": ["10.77.0.150"],
                "subnet": "10.77.0.0/24",
                "gateway": "10.77.0.1",
                "nameservers": ["10.77.0.2", "10.77.0.3"],
            },
            {"name": "inner", "network": "default"},
        ],
        "connect_timeout": "5s",
        "look_timeout": "10s",
        "change_timeout": "2m",
        "save_timeout": "1h",
        "transfer_timeout": "2h",
        "shutdown_wait": "90s",
        "cpu_weights": False,
    }
    values, wrong = settings.read(table)
    assert wrong == []
    one = values.hosts[0]
    assert (one.name, one.reserve_memory, one.cpus, one.migrate_uri, one.kernel) == (
        "one",
        512,
        8,
        "tcp://one:49152",
        "/boot/other",
    )
    lan = values.networks["lan"]
    assert (lan.total, lan.is_reserved(ip_address("10.77.0.150"))) == (101, True)
    assert lan.with_prefix("10.77.0.100") == "10.77.0.100/24"
    assert (values.deadlines.connect, values.deadlines.save, values.shutdown_wait) == (5.0, 3600.0, 90.0)


def test_every_bad_key_is_named_at_once() -> None:
    table: dict[str, object] = {
        "hosts": [
            "nonsense",
            {"uri": "xen:///system", "cpus": 0, "colour": "blue"},
            {"name": "x"},
            7,
            "xen+tcp://far.example.org/system",
        ],
        "guest": "pw",
        "kernel": "vmlinux",
        "bridge": "a-bridge-with-a-long-name",
        "look_timeout": "soon",
        "cpu_weights": "yes",
        "shutdown_waits": "1m",
    }
    assert set(problems(table)) == {
        "hosts[0]",
        "hosts[1].cpus",
        "hosts[1].colour",
        "hosts[2].uri",
        "hosts[3]",
        "hosts[4]",
        "guest",
        "kernel",
        "bridge",
        "look_timeout",
        "cpu_weights",
        "shutdown_waits",
    }


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("", "text is wanted"),
        ("xen", "is no URI of a host"),
        ("xen:system", "is no URI of a host"),
        ("xen+ssh://[::1/system", "is no URI"),
        ("xen+ssh://a:port/system", "is no URI"),
        ("vbox:///session", '"vbox" is no driver'),
        ("xen+smoke://a/system", '"smoke" is no transport'),
        ("xen+ext://a/system?command=x", '"ext" is no transport'),
        ("xen+ssh:///system", "ssh needs a host"),
        ("xen+unix://a/system", "a unix socket is on this machine"),
        ("xen+tcp://192.0.2.1/system", "tcp is neither encrypted nor authenticated"),
        ("xen+ssh://root:secret@a/system", "it holds a password"),
        ("xen+ssh://a/system?no_tty=0", "would ask for a password"),
        ("xen+libssh://a/system?sshauth=agent,password", "sshauth=password would ask"),
        ("xen://a/session", 'its path is "/session"'),
        ("qemu:///", "for qemu there is: /system or /session"),
        ("test://a/default", "the test driver is in this process"),
        ("test:///", "the test driver is in this process"),
        ("xen:///system#x", "is no URI of a host"),
    ],
)
def test_a_uri_that_is_refused(uri: str, part: str) -> None:
    found = problems({"hosts": [uri]})
    assert set(found) == {"hosts[0]"}
    assert part in found["hosts[0]"]


@pytest.mark.parametrize(
    "uri",
    [
        "xen:///system",
        "xen:///",
        "xen+unix:///system?socket=/run/other",
        "xen://b.example.org/system",
        "xen+libssh2://root@b.example.org/system?keyfile=/k",
        "xen+tcp://localhost/system",
        "xen+tcp://[::1]:17001/system",
        "qemu+ssh://root@b.example.org/system",
        "qemu:///session",
        "test:///default",
        "test:///etc/host.xml",
    ],
)
def test_a_uri_that_is_taken(uri: str) -> None:
    assert problems({"hosts": [uri]}) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("xen+ssh://root@a/system", "xen+ssh://root@a/system"),
        ("xen+ssh://root@a/system", "xen+tls://A/system"),
        ("xen:///system", "xen:///"),
        ("test:///default", {"uri": "test:///default", "name": "other"}),
    ],
)
def test_the_same_host_twice(one: str, other: object) -> None:
    assert problems({"hosts": [one, other]}).popitem()[1] == "is the same host as hosts[0]"


def test_two_hosts_of_one_name() -> None:
    table: dict[str, object] = {"hosts": ["xen+ssh://a/system", "qemu+ssh://a/system"]}
    assert problems(table) == {"hosts[1].name": '"a" is the name of hosts[0], too: give both a name'}


def test_a_xen_pool_takes_xen_alone() -> None:
    table: dict[str, object] = {"hosts": ["xen:///system", "qemu:///system", "test:///default"]}
    found = problems(table, XEN_DRIVERS)
    assert set(found) == {"hosts[1]"}
    assert 'backend = "libvirt" does' in found["hosts[1]"]
    assert problems({**table, "hosts": ["xen+ssh://a/system", "qemu+ssh://b/system"]}) == {}


@pytest.mark.parametrize("hosts", [None, [], "xen:///system", 3])
def test_hosts_are_required(hosts: object) -> None:
    assert "hosts" in problems({"hosts": hosts} if hosts is not None else {})


def test_a_bridge_alone_is_a_network_of_its_name() -> None:
    values, wrong = settings.read({**GOOD, "bridge": "xenbr0"})
    assert wrong == []
    assert [(each.name, each.bridge, each.total) for each in values.networks.values()] == [("xenbr0", "xenbr0", None)]


@pytest.mark.parametrize(
    ("network", "key", "part"),
    [
        ({"bridge": "b"}, "networks[0].name", "is required"),
        ({"name": "n"}, "networks[0].bridge", "exactly one of bridge and network"),
        ({"name": "n", "bridge": "b", "network": "x"}, "networks[0].bridge", "exactly one"),
        ({"name": "n", "bridge": "b", "addresses": "10.0.0.9-10.0.0.1"}, "networks[0].addresses", "end lies before"),
        ({"name": "n", "bridge": "b", "addresses": "10.0.0.1-fe80::1"}, "networks[0].addresses", "end lies before"),
        ({"name": "n", "bridge": "b", "addresses": "ten"}, "networks[0].addresses", "ten"),
        ({"name": "n", "bridge": "b", "addresses": 10}, "networks[0].addresses", "ranges of addresses are wanted"),
        ({"name": "n", "bridge": "b", "addresses": "10.0.0.0/8"}, "networks[0].addresses", "at most"),
        (
            {"name": "n", "bridge": "b", "addresses": ["10.0.0.1-10.0.0.9", "10.0.0.9"]},
            "networks[0].addresses",
            "overlap",
        ),
        (
            {"name": "n", "bridge": "b", "addresses": "10.0.0.1", "subnet": "10.0.1.0/24"},
            "networks[0].addresses",
            "not within",
        ),
        ({"name": "n", "bridge": "b", "subnet": "10.0.0.1/24"}, "networks[0].subnet", "host bits"),
        ({"name": "n", "bridge": "b", "gateway": "10.0.0.1"}, "networks[0].gateway", "name addresses, too"),
        (
            {"name": "n", "bridge": "b", "addresses": "10.0.0.5", "gateway": "10.0.0.1"},
            "networks[0].subnet",
            "is required where there is a gateway",
        ),
        ({"name": "n", "bridge": "b", "vlan": 3}, "networks[0].vlan", "no such setting"),
        ("lan", "networks[0]", "a table with name and bridge"),
    ],
)
def test_a_network_that_is_refused(network: object, key: str, part: str) -> None:
    found = problems({**GOOD, "networks": [network]})
    assert key in found
    assert part in found[key]


def test_networks_of_one_name_and_a_bridge_beside_them() -> None:
    lan = {"name": "lan", "bridge": "xenbr0"}
    assert set(problems({**GOOD, "networks": [lan, lan], "bridge": "xenbr1"})) == {"networks[1].name", "bridge"}


def test_what_belongs_to_a_kernel_is_of_no_use_without() -> None:
    assert set(problems({**GOOD, "initrd": "/i", "cmdline": "c"})) == {"initrd", "cmdline"}


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("xen:///system", "localhost"),
        ("xen+ssh://root@a.example.org/system", "a.example.org"),
        ("xen+tcp://127.0.0.1:17001/system", "127.0.0.1-17001"),
        ("xen+tcp://[::1]:17001/system", "1-17001"),
        ("test:///etc/host-1.xml", "host-1"),
    ],
)
def test_what_a_host_is_called_by_default(uri: str, name: str) -> None:
    assert uris.parse(uri).default_name == name
