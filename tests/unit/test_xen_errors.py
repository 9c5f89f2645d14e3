"""Each libvirt code is one kind of error, as it was seen on real Xen and on the test driver."""

from __future__ import annotations

import pytest

from backends.base import BackendError, BackendRejected, OutcomeUnknown, TransientBackendError
from backends.xen.errors import Code, HostLost, Kind, NotYet, Refused, Verdict, of_cut_off, of_libvirt, verdict

# Code, driver, what was asked for when it was seen, and what it amounts to for a change.
SEEN = [
    (1, "xen", "create: no memory, no kernel, too many vcpus, no disk, no bridge", Verdict.HOST),
    (1, "xen", "shutdown of a domain that is off", Verdict.HOST),
    (1, "xen", "delete of a volume in use", Verdict.HOST),
    (1, "test", "create of one that runs, suspend of one that is paused", Verdict.REQUEST),
    (1, "qemu", "create: no memory", Verdict.HOST),
    (3, "xen", "getAllDomainStats, resize on a volume group", Verdict.REQUEST),
    (3, "test", "migrate, setKeepAlive", Verdict.REQUEST),
    (8, "xen", "malformed UUID, domain type kvm, SAVE_PAUSED", Verdict.REQUEST),
    (8, "test", "START_PAUSED", Verdict.REQUEST),
    (9, "xen", "define: the name is taken; managedSave: dom0's disk is full", Verdict.HOST),
    (9, "test", "define: the name is taken", Verdict.HOST),
    (21, "xen", "define without a name", Verdict.REQUEST),
    (27, "xen", "define without memory", Verdict.REQUEST),
    (35, "xen", "define of no XML", Verdict.REQUEST),
    (38, "xen", "define, upload: the disk is full", Verdict.HOST),
    (42, "xen", "any call on an unknown domain", Verdict.REQUEST),
    (50, "xen", "an unknown volume", Verdict.HOST),
    (55, "xen", "create of one that runs, suspend of one that is off", Verdict.REQUEST),
    (67, "xen", "pool start without its volume group", Verdict.HOST),
    (68, "qemu", "another job holds the domain", Verdict.WAIT),
    (74, "xen", "trim", Verdict.REQUEST),
    (76, "xen", "build of a pool that is built", Verdict.HOST),
    (78, "xen", "an operation was broken off", Verdict.UNKNOWN),
    (90, "xen", "the volume exists", Verdict.HOST),
    (4711, "xen", "a code of a later libvirt", Verdict.UNKNOWN),
]
KINDS: dict[Verdict, type[BackendError]] = {
    Verdict.REQUEST: Refused,
    Verdict.HOST: Refused,
    Verdict.WAIT: NotYet,
    Verdict.UNKNOWN: OutcomeUnknown,
}


@pytest.mark.parametrize(("code", "driver", "when", "expected"), SEEN)
def test_a_change_that_was_answered_with_an_error(code: int, driver: str, when: str, expected: Verdict) -> None:
    assert verdict(code, driver) is expected
    error = of_libvirt("defining", "x", code, when, driver=driver, kind=Kind.CHANGE)
    assert type(error) is KINDS[expected]
    assert f"defining on x: {when} (libvirt code {code})" in str(error)
    if isinstance(error, Refused):
        assert (error.code, error.host_fault) == (code, expected is Verdict.HOST)


@pytest.mark.parametrize("driver", ["xen", "test", "qemu"])
@pytest.mark.parametrize("code", Code)
def test_every_code_is_exactly_one_kind_for_a_look_and_for_a_change(code: Code, driver: str) -> None:
    for kind in Kind:
        error = of_libvirt("asking", "x", code, "said so", driver=driver, kind=kind)
        kinds = [each for each in (TransientBackendError, BackendRejected, OutcomeUnknown) if isinstance(error, each)]
        assert len(kinds) == 1
        assert kind is not Kind.LOOK or kinds != [OutcomeUnknown], "a look changes nothing, so nothing is unknown"


def test_an_unclear_answer_to_a_look_is_no_silence_of_the_host() -> None:
    error = of_libvirt("listing", "x", 4711, "?", driver="xen", kind=Kind.LOOK)
    assert isinstance(error, TransientBackendError)
    assert error.answered


@pytest.mark.parametrize("kind", Kind)
def test_what_is_cut_off(kind: Kind) -> None:
    error = of_cut_off("defining", "x", "no answer within 5 s", kind=kind, answered=True)
    if kind is Kind.LOOK:
        assert isinstance(error, HostLost)
        assert error.answered
    else:
        assert isinstance(error, OutcomeUnknown)
        assert str(error) == "defining on x: no answer within 5 s; it may have been done"
