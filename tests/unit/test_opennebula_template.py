"""What the broker writes into a VM's template, what it refuses to write, and the scheduler parameters."""

from __future__ import annotations

from base64 import b64decode

import pytest
from lxml import etree

from backends.base import (
    BackendRejected,
    DiskSpec,
    NicSpec,
    NodeSpec,
    ParameterKind,
    ParameterValue,
)
from backends.opennebula import documents, parameters, template
from backends.opennebula.documents import Image, Network
from backends.opennebula.parameters import KNOWN, Parameters
from backends.opennebula.rpc import encode
from tests.support.opennebula_pool import identity, node


def image(number: int, size: int) -> Image:
    return Image(
        image_id=number,
        name="",
        kind=0,
        state=1,
        size=size,
        datastore_id=1,
        arch="",
        hypervisor="",
    )


IMAGES = {"os": image(3, 1024), "data": image(4, 100)}
NETWORKS = {"net": Network(network_id=5, name="net", clusters=frozenset(), size=10, used=0)}


def built(spec: NodeSpec, given: Parameters | None = None) -> etree._Element:
    return etree.fromstring(template.build(spec, given or Parameters(), IMAGES, NETWORKS))


def vectors(root: etree._Element, name: str) -> list[dict[str, str]]:
    return [{str(leaf.tag): leaf.text or "" for leaf in entry} for entry in root.findall(name)]


def test_the_least() -> None:
    root = built(node())
    assert {str(leaf.tag): leaf.text for leaf in root if len(leaf) == 0} == {
        "NAME": "web",
        "CPU": "1",
        "VCPU": "1",
        "MEMORY": "512",
    }
    assert vectors(root, "WORKSPACE_BROKER") == [{"BROKER": "broker-1", "WORKSPACE": "ws-1", "NODE": "0"}]
    assert vectors(root, "CONTEXT") == [{"NETWORK": "YES"}]


@pytest.mark.parametrize(
    ("milli", "cores", "vcpu"), [(500, "0.5", "1"), (125, "0.125", "1"), (10000, "10", "10"), (1500, "1.5", "2")]
)
def test_cores(milli: int, cores: str, vcpu: str) -> None:
    root = built(node(cpu=milli))
    assert (root.findtext("CPU"), root.findtext("VCPU")) == (cores, vcpu)


@pytest.mark.parametrize("amounts", [{}, {"cpu": 1000}, {"memory": 64}, {"cpu": 0, "memory": 64}])
def test_a_vm_needs_cpu_and_memory(amounts: dict[str, int]) -> None:
    with pytest.raises(BackendRejected, match="both must be positive"):
        built(node(amounts=amounts))


@pytest.mark.parametrize(
    ("disk", "extra", "wanted"),
    [
        (0, (), [{"IMAGE_ID": "3"}]),
        (1024, (), [{"IMAGE_ID": "3"}]),
        (5000, (), [{"IMAGE_ID": "3", "SIZE": "5000"}]),
        (
            5000,
            (DiskSpec(size_mib=1000, device="vdb"), DiskSpec(image="data", read_only=True)),
            [
                {"IMAGE_ID": "3", "SIZE": "3900"},
                {"TYPE": "fs", "FORMAT": "raw", "SIZE": "1000", "TARGET": "vdb"},
                {"IMAGE_ID": "4", "READONLY": "YES"},
            ],
        ),
    ],
)
def test_the_boot_disk_gets_what_the_others_leave(
    disk: int, extra: tuple[DiskSpec, ...], wanted: list[dict[str, str]]
) -> None:
    spec = node(image="os", disks=extra, amounts={"cpu": 1000, "memory": 64, "disk": disk})
    assert vectors(built(spec), "DISK") == wanted


def test_without_an_image_the_disk_is_blank_unless_a_template_has_one() -> None:
    spec = node(amounts={"cpu": 1000, "memory": 64, "disk": 10})
    assert vectors(built(spec), "DISK") == [{"TYPE": "fs", "FORMAT": "raw", "SIZE": "10"}]
    assert vectors(built(spec, Parameters(template=7)), "DISK") == []
    with pytest.raises(BackendRejected, match="image or a size"):
        built(node(disks=(DiskSpec(),)))


def test_nics() -> None:
    nics = (NicSpec(network="net"), NicSpec(network="net", name="eth1", addresses=("10.0.0.12", "fd00::1")))
    assert vectors(built(node(nics=nics)), "NIC") == [
        {"NETWORK_ID": "5"},
        {"NETWORK_ID": "5", "NAME": "eth1", "IP": "10.0.0.12", "IP6": "fd00::1"},
    ]
    with pytest.raises(BackendRejected, match="one IP address"):
        built(node(nics=(NicSpec(network="net", addresses=("10.0.0.1", "10.0.0.2")),)))
    with pytest.raises(BackendRejected, match="no IP address"):
        built(node(nics=(NicSpec(network="net", addresses=("ten",)),)))


def test_context_takes_any_bytes() -> None:
    data = bytes(range(256)) + "😀".encode()
    (context,) = vectors(built(node(user_data=data, ssh_public_keys=("ssh-rsa a", "ssh-rsa b"))), "CONTEXT")
    assert b64decode(context["USERDATA"]) == data
    assert context["USERDATA_ENCODING"] == "base64"
    assert context["SSH_PUBLIC_KEY"] == "ssh-rsa a\nssh-rsa b"


def test_a_templates_own_context_stays_unless_there_is_something_to_say() -> None:
    assert vectors(built(node(), Parameters(template=7)), "CONTEXT") == []
    assert vectors(built(node(user_data=b"x"), Parameters(template=7)), "CONTEXT") != []


def test_no_value_breaks_out_of_its_attribute() -> None:
    nasty = 'a"]\nCPU="99"\n<CPU>99</CPU><![CDATA[]]>&amp;\\'
    root = built(node(identity=identity(nasty)), Parameters(description=nasty))
    assert root.findtext("DESCRIPTION") == nasty
    assert root.findtext("WORKSPACE_BROKER/WORKSPACE") == nasty
    assert len(root.findall(".//CPU")) == 1


@pytest.mark.parametrize("name", ["a/b", 'a"b', "a:b", "a$b", "", "  ", "n" * 129, "smile 😀", "bell\x07"])
def test_names_are_refused_before_they_are_sent(name: str) -> None:
    with pytest.raises(BackendRejected):
        built(node(name=name))


def test_names_that_will_do() -> None:
    assert built(node(name="größe-名_1.x")).findtext("NAME") == "größe-名_1.x"


@pytest.mark.parametrize("text", ["😀", "\x00", "\x1b", "\ud800", "\ufffe"])
def test_a_character_the_wire_cannot_take_is_named(text: str) -> None:
    with pytest.raises(BackendRejected, match=r"U\+"):
        encode("one.vm.allocate", ("s:p", f"<T>{text}</T>", True))
    with pytest.raises(BackendRejected, match=r"U\+"):
        built(node(ssh_public_keys=(f"ssh-rsa {text}",)))


def test_an_integer_the_wire_cannot_take() -> None:
    assert b"<int>2147483647</int>" in encode("one.vm.info", ("s:p", 2**31 - 1))
    with pytest.raises(BackendRejected, match="32 bits"):
        encode("one.vm.info", ("s:p", 2**31))


def test_a_template_reads_back_as_the_identity_it_was_written_with() -> None:
    root = built(node(identity=identity("ws-9", 4)))
    tag = etree.tostring(root.findall("WORKSPACE_BROKER")[0], encoding="unicode")
    text = f"<VM><ID>1</ID><STATE>1</STATE><LCM_STATE>0</LCM_STATE><USER_TEMPLATE>{tag}</USER_TEMPLATE></VM>"
    assert documents.vm(text).identity == identity("ws-9", 4)


GOOD: dict[str, tuple[ParameterValue, str, str]] = {
    "vcpu": (4, "VCPU", "4"),
    "cpu_model": ("host-passthrough", "CPU_MODEL/MODEL", "host-passthrough"),
    "graphics": ("VNC", "GRAPHICS/TYPE", "VNC"),
    "boot": ("disk0,nic0", "OS/BOOT", "disk0,nic0"),
    "description": ("for you", "DESCRIPTION", "for you"),
    "labels": (("a", "b"), "LABELS", "a,b"),
    "budget": (42, "BUDGET", "42"),
}


@pytest.mark.parametrize("name", GOOD)
def test_parameter(name: str) -> None:
    value, path, wanted = GOOD[name]
    given = parameters.read({f"opennebula:{name}": value, "other:thing": 1})
    assert built(node(), given).findtext(path) == wanted


def test_every_parameter_has_a_test() -> None:
    assert {spec.key for spec in KNOWN} == {f"opennebula:{name}" for name in (*GOOD, "template", "datastore")}


@pytest.mark.parametrize(
    "name",
    [
        "requirements",
        "rank",
        "sched_requirements",
        "SCHED_REQUIREMENTS",
        "sched_rank",
        "sched_ds_requirements",
        "sched_ds_rank",
        "sched_action",
        "user_priority",
    ],
)
def test_what_only_opennebulas_scheduler_honours_is_refused_by_name(name: str) -> None:
    with pytest.raises(BackendRejected, match=rf"opennebula:{name}: .*--select"):
        parameters.read({f"opennebula:{name}": "x"})


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendRejected, match=r"opennebula:nope .*opennebula:budget"):
        parameters.read({"opennebula:nope": 1})


WRONG: dict[ParameterKind, list[ParameterValue]] = {
    ParameterKind.INT: [-1, 2**31, True, "1", 1.0],
    ParameterKind.STRING: [1, ("a",)],
    ParameterKind.STRING_LIST: ["a", 1],
}


@pytest.mark.parametrize("spec", KNOWN, ids=lambda spec: spec.key)
def test_a_parameter_of_the_wrong_kind_is_refused(spec: object) -> None:
    assert spec in KNOWN
    for entry in KNOWN:
        for value in WRONG[entry.kind]:
            with pytest.raises(BackendRejected, match=entry.key):
                parameters.read({entry.key: value})
