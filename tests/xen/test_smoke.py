"""The lab itself, by libvirt-python alone: what the other tests take for granted of an emulated host."""

from __future__ import annotations

import threading
import time

import libvirt
import pytest

from tests.xen.lab.host import Host
from tests.xen.observer import connected, console_log, domains, free_memory, guest_xml, until, xen_domains

pytestmark = [pytest.mark.xen_quick, pytest.mark.timeout(180)]


def test_a_guest_boots_and_ends(pair: tuple[Host, ...]) -> None:
    host = pair[0]
    free = free_memory(host)
    with connected(host) as connection:
        domain = connection.defineXML(guest_xml("smoke"))
        domain.create()
        until(lambda: console_log(host, "smoke"), lambda log: "GUEST up" in log)
        assert xen_domains(host) == {"smoke"}
        assert free - 110 <= free_memory(host) <= free - 96
        domain.shutdown()
        until(lambda: domains(host)["smoke"].state, lambda state: state == "off")
        assert "GUEST poweroff" in console_log(host, "smoke")
        domain.undefine()
    until(lambda: free_memory(host), lambda now: now == free)


def test_a_guest_moves_to_the_other_host(pair: tuple[Host, ...]) -> None:
    source, target = pair
    with connected(source) as here, connected(target) as there:
        domain = here.defineXML(guest_xml("mover"))
        domain.create()
        until(lambda: console_log(source, "mover"), lambda log: "GUEST up" in log)
        domain.migrate3(there, {}, libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE)
        assert not domains(source)
        assert (domains(target)["mover"].state, xen_domains(target)) == ("running", {"mover"})


def test_a_frozen_host_answers_when_it_is_thawed(pair: tuple[Host, ...]) -> None:
    host = pair[0]
    answers: list[float] = []

    def ask() -> None:
        with connected(host) as connection:
            connection.listAllDomains()
            answers.append(time.monotonic())

    host.freeze()
    assert host.status() == "paused"
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        asking.join(2)
        assert not answers
    finally:
        thawed = time.monotonic()
        host.thaw()
    asking.join(60)
    assert answers
    assert answers[0] >= thawed


def test_a_host_keeps_its_definitions_over_a_reset_and_nothing_runs(pair: tuple[Host, ...]) -> None:
    host = pair[1]
    with connected(host) as connection:
        connection.defineXML(guest_xml("kept")).create()
        connection.createXML(guest_xml("lost"), 0)
    host.ssh("sync")  # libvirt does not: what it wrote in the last seconds is lost with the power
    host.reset()
    assert {name: domain.state for name, domain in domains(host).items()} == {"kept": "off"}
    assert xen_domains(host) == set()
