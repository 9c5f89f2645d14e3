"""Documents as recorded from a real front-end, in our units; and documents nobody should believe."""

from __future__ import annotations

import random
import xmlrpc.client

import pytest

from backends.base import Identity
from backends.opennebula import documents
from backends.opennebula.failures import Unusable
from backends.opennebula.rpc import decode
from tests.support.standin_corpus import rows

READERS = {
    "one.vm.info": documents.vm,
    "one.vmpool.infoextended": documents.vms,
    "one.vmpool.info": documents.vms,
    "one.hostpool.info": documents.hosts,
    "one.imagepool.info": documents.images,
    "one.vnpool.info": documents.networks,
    "one.datastorepool.info": documents.datastores,
}


def recorded(number: int) -> str:
    answer = decode(rows()[number - 1].response)
    assert answer[0] is True
    assert isinstance(answer[1], str)
    return answer[1]


def test_hosts_are_hundredths_and_kilobytes() -> None:
    hosts = {host.name: host for host in documents.hosts(recorded(152))}
    assert (hosts["node000"].cpu, hosts["node000"].memory, hosts["node000"].disk) == (8000, 16384, 0)
    assert (hosts["node000"].host_id, hosts["node000"].state, hosts["node000"].cluster) == (0, 2, "default")
    assert hosts["node000"].template["ARCH"] == "x86_64"
    assert hosts["node000"].drivers == ("dummy", "dummy")
    # Replaced attributes: everything but the drivers is gone, and a vector is no plain attribute.
    assert hosts["node001"].template == {"A": "1", "IM_MAD": "dummy", "VM_MAD": "dummy"}


def test_a_host_that_failed_says_why_and_has_no_figures() -> None:
    host = {host.name: host for host in documents.hosts(recorded(31))}["fail000"]
    assert (host.state, host.cpu, host.memory) == (3, 0, 0)
    assert "Error monitoring Host" in host.error


def test_a_vm_is_cores_and_megabytes() -> None:
    vm = documents.vm(recorded(142))
    assert (vm.vm_id, vm.name, vm.state, vm.lcm, vm.host) == (8, "full", 3, 3, "node000")
    assert (vm.cpu, vm.memory, vm.disk) == (500, 256, 164)
    assert [(disk.disk_id, disk.image_id, disk.target) for disk in vm.disks] == [(0, "0", "sda"), (1, "", "sdb")]
    assert [(nic.network, nic.addresses, nic.mac, nic.name) for nic in vm.nics] == [
        ("net1", ("10.0.0.12",), "02:00:0a:00:00:0c", "NIC0")
    ]
    assert vm.identity is None


def test_the_current_host_is_the_last_record() -> None:
    assert documents.vm(recorded(648)).host == "node000"
    (vm,) = documents.vms(recorded(649))
    assert vm.host == "node000"


def test_a_thousand_vms() -> None:
    vms = documents.vms(recorded(552))
    assert len(vms) == 1000
    assert {vm.state for vm in vms} == {3}


def test_why_a_vm_waits() -> None:
    messages = {vm.name: vm.message for vm in documents.vms(recorded(530))}
    assert "No host meets SCHED_REQUIREMENTS" in messages["norequirement"]
    assert messages["fits"] == ""


def test_images_networks_datastores() -> None:
    images = {image.name: image for image in documents.images(recorded(85))}
    assert (images["os1"].size, images["os1"].kind, images["os1"].state) == (1024, 0, 1)
    (network,) = documents.networks(recorded(91))
    assert (network.name, network.size, network.used, network.clusters) == ("net1", 60, 0, frozenset({0}))
    stores = {store.name: store for store in documents.datastores(recorded(75))}
    assert [store.name for store in stores.values() if store.system] == ["sysds2", "system"]
    assert (stores["system"].total, stores["system"].used, stores["system"].shared) == (4796800, 1429920, True)
    assert stores["system"].clusters == frozenset({0, 100})


def test_every_recorded_document_is_read() -> None:
    read = 0
    for row in rows():
        reader = READERS.get(row.method or "")
        if reader is not None and row.kind == "true":
            reader(recorded(row.n))
            read += 1
    assert read > 100


VM = "<VM><ID>7</ID><NAME>x</NAME><STATE>1</STATE><LCM_STATE>0</LCM_STATE>{}</VM>"
TAG = "<USER_TEMPLATE><WORKSPACE_BROKER>{}</WORKSPACE_BROKER></USER_TEMPLATE>"


def test_identity() -> None:
    tag = TAG.format("<BROKER><![CDATA[b]]></BROKER><NODE>3</NODE><WORKSPACE>w</WORKSPACE>")
    assert documents.vm(VM.format(tag)).identity == Identity(broker_id="b", workspace_uid="w", node_index=3)


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "text",
        "<BROKER>b</BROKER><WORKSPACE>w</WORKSPACE>",
        "<BROKER>b</BROKER><WORKSPACE>w</WORKSPACE><NODE>-1</NODE>",
        "<BROKER/><WORKSPACE>w</WORKSPACE><NODE>0</NODE>",
        "<BROKER>b</BROKER><WORKSPACE></WORKSPACE><NODE>0</NODE>",
    ],
)
def test_a_tag_we_would_not_write_is_nobodys(tag: str) -> None:
    assert documents.vm(VM.format(TAG.format(tag))).identity is None


def test_cores_round_up_and_reserves_never_go_below_nothing() -> None:
    template = "<TEMPLATE><CPU>0.1234</CPU><MEMORY>64</MEMORY></TEMPLATE>"
    assert documents.vm(VM.format(template)).cpu == 124
    share = "<HOST_SHARE><MAX_CPU>-100</MAX_CPU><MAX_MEM>-1</MAX_MEM></HOST_SHARE>"
    (host,) = documents.hosts(f"<HOST_POOL><HOST><ID>1</ID><STATE>2</STATE>{share}</HOST></HOST_POOL>")
    assert (host.cpu, host.memory) == (0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "<HOST_POOL></HOST_POOL>",
        "<VM_POOL><VM>",
        "<VM_POOL><VM><ID>x</ID></VM></VM_POOL>",
        "<VM_POOL><VM><ID>1</ID><NAME>n</NAME></VM></VM_POOL>",
        "<VM_POOL>" + VM.format("<TEMPLATE><CPU>NaN</CPU></TEMPLATE>") + "</VM_POOL>",
        "<VM_POOL>" + VM.format("<TEMPLATE><CPU>many</CPU></TEMPLATE>") + "</VM_POOL>",
        "<VM_POOL>" + VM.format("<TEMPLATE><MEMORY>1G</MEMORY></TEMPLATE>") + "</VM_POOL>",
        '<!DOCTYPE x [<!ENTITY a "b">]><VM_POOL></VM_POOL>',
        '<?xml version="1.0"?><!DOCTYPE VM_POOL SYSTEM "file:///etc/passwd"><VM_POOL></VM_POOL>',
        "<OTHER><VM_POOL></VM_POOL></OTHER>",
        "<VM_POOL>\x01</VM_POOL>",
        "<VM_POOL>\ud800</VM_POOL>",
    ],
)
def test_nonsense_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(Unusable):
        documents.vms(text)


def test_a_doctype_inside_a_value_is_only_text() -> None:
    value = "<USER_TEMPLATE><ERROR><![CDATA[<!DOCTYPE html>]]></ERROR></USER_TEMPLATE>"
    assert documents.vm(VM.format(value)).message == "<!DOCTYPE html>"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"<html>",
        b"\xff\xfe<\x00",
        b"<?xml version='1.0'?><!DOCTYPE x><methodResponse/>",
        b"<?xml version='1.0'?><!doctype x><methodResponse/>",
        b"<methodResponse></methodResponse>",
        b"<methodResponse><params></params></methodResponse>",
        b"<methodResponse><params><param><value>text</value></param></params></methodResponse>",
        b"<methodResponse><params><param><value><int>x</int></value></param></params></methodResponse>",
        b"<methodResponse><params><param><value><wat>1</wat></value></param></params></methodResponse>",
        xmlrpc.client.dumps(([],), methodresponse=True).encode(),
        xmlrpc.client.dumps(([True],), methodresponse=True).encode(),
        xmlrpc.client.dumps(([1, 2, 3],), methodresponse=True).encode(),
        xmlrpc.client.dumps(({"a": 1},), methodresponse=True).encode(),
        xmlrpc.client.dumps(([True, 1, 0],), methodresponse=True).encode()[:-30],
    ],
)
def test_an_answer_of_another_shape_is_unusable(body: bytes) -> None:
    with pytest.raises(Unusable):
        decode(body)


def test_every_recorded_answer_is_told_apart() -> None:
    """Each of the 664 rows is an array, a fault or unusable, as the recording says."""
    for row in rows():
        if row.kind in ("true", "false"):
            assert decode(row.response)[0] is (row.kind == "true"), row.label
        elif row.kind == "fault":
            with pytest.raises(xmlrpc.client.Fault):
                decode(row.response)
        elif row.kind == "not-xmlrpc":
            with pytest.raises(Unusable):
                decode(row.response)


def test_whatever_comes_back_is_read_or_unusable() -> None:
    """Recorded answers with a few bytes changed, cut, doubled or spliced in never raise anything else."""
    chance = random.Random(7)
    answers = [row for row in rows() if row.method in READERS and 0 < len(row.response) < 10_000]
    splices = (b"<!DOCTYPE x>", b"&a;", b"<nil/>", b"<![CDATA[", b"\x00", b"&lt;!DOCTYPE&gt;", b"9" * 40, b"NaN")
    for _ in range(5000):
        row = chance.choice(answers)
        body = bytearray(row.response)
        for _ in range(chance.randint(1, 3)):
            at, end = chance.randrange(len(body)), chance.randrange(len(body))
            cut = chance.choice(
                (b"", chance.choice(splices), bytes(body[end : end + 60]), bytes([chance.randrange(256)]))
            )
            body[at : at + chance.randint(0, 8)] = cut
        try:
            answer = decode(bytes(body))
            if isinstance(answer[1], str):
                READERS[row.method or ""](answer[1])
        except (Unusable, xmlrpc.client.Fault):
            continue
