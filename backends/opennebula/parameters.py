"""Scheduler parameters of an OpenNebula pool: which there are, of which kind, and which are refused by name.

Invariant: whatever is accepted here has an effect. What only OpenNebula's own scheduler would honour is
refused, because the broker chooses the host and deploys to it. Where a value ends up in the template,
`template` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from backends.base import BackendRejected, ParameterKind, ParameterSpec, ParameterValue

NAMESPACE: Final = "opennebula:"
_INTS: Final = range(2**31)


def _spec(name: str, kind: ParameterKind, description: str) -> ParameterSpec:
    return ParameterSpec(key=NAMESPACE + name, kind=kind, description=description)


KNOWN: Final[tuple[ParameterSpec, ...]] = (
    _spec("template", ParameterKind.INT, "id of an OpenNebula template to start from; the request's own values win"),
    _spec("datastore", ParameterKind.INT, "id of the system datastore to deploy to (fourth argument of one.vm.deploy)"),
    _spec("vcpu", ParameterKind.INT, "number of virtual CPUs; without it the cores, rounded up"),
    _spec("cpu_model", ParameterKind.STRING, "CPU_MODEL/MODEL, such as host-passthrough"),
    _spec("graphics", ParameterKind.STRING, "GRAPHICS/TYPE, such as VNC or SPICE; listens on the host's loopback only"),
    _spec("boot", ParameterKind.STRING, "OS/BOOT, the boot order, such as disk0,nic0"),
    _spec("description", ParameterKind.STRING, "DESCRIPTION, a plain attribute for people"),
    _spec("labels", ParameterKind.STRING_LIST, "LABELS, for people and their tools"),
    _spec("budget", ParameterKind.INT, "BUDGET, a plain attribute for the site's accounting"),
)

_SCHEDULER_ONLY: Final = (
    "requirements",
    "rank",
    "sched_requirements",
    "sched_rank",
    "sched_ds_requirements",
    "sched_ds_rank",
    "sched_action",
    "user_priority",
)

REFUSED: Final[tuple[ParameterSpec, ...]] = tuple(
    ParameterSpec(
        key=NAMESPACE + name,
        kind=ParameterKind.STRING,
        description="",
        refused="OpenNebula's own scheduler alone would honour it, and the broker chooses the host itself: "
        "say which hosts will do with --select on host attributes",
    )
    for name in _SCHEDULER_ONLY
)

SPECS: Final = KNOWN + REFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The parameters of one node; None and empty mean not given."""

    template: int | None = None
    datastore: int | None = None
    vcpu: int | None = None
    cpu_model: str = ""
    graphics: str = ""
    boot: str = ""
    description: str = ""
    labels: tuple[str, ...] = ()
    budget: int | None = None


def _checked(spec: ParameterSpec, value: ParameterValue) -> ParameterValue:
    match spec.kind:
        case ParameterKind.INT:
            good = isinstance(value, int) and not isinstance(value, bool) and value in _INTS
        case ParameterKind.STRING_LIST:
            good = isinstance(value, tuple)
        case _:
            good = isinstance(value, str)
    if not good:
        raise BackendRejected(f"{spec.key} takes a value of kind {spec.kind} (whole numbers from 0), not {value!r}")
    return value


def read(values: Mapping[str, ParameterValue]) -> Parameters:
    """The parameters of this namespace. Raises BackendRejected naming a key that is refused or unknown."""
    specs = {spec.key: spec for spec in SPECS}
    given: dict[str, ParameterValue] = {}
    for key, value in values.items():
        if not key.lower().startswith(NAMESPACE):
            continue
        spec = specs.get(key) or specs.get(key.lower())
        if spec is not None and spec.refused:
            raise BackendRejected(f"{key}: {spec.refused}")
        if spec is None or spec.key != key:
            known = ", ".join(sorted(each.key for each in KNOWN))
            raise BackendRejected(f"{key} is no parameter of this pool; there are: {known}")
        given[key[len(NAMESPACE) :]] = _checked(spec, value)
    return Parameters(**given)  # type: ignore[arg-type]
