"""Whether the pools know what a request names: pools, images, networks, parameters.

Every unknown name is reported at once. A name that some pools know and others do not is no error of the request:
placement tells it as a pool's verdict.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from broker.core.errors import FieldReason, FieldsInvalid, FieldViolation
from broker.core.requests import Reference, ReferenceKind, WorkspaceRequest
from broker.pools import Pool


def check_references(wanted: WorkspaceRequest, pools: Mapping[str, Pool]) -> None:
    """Raises FieldsInvalid naming everything that no pool it could go to knows."""
    violations = unknown_references(wanted, pools)
    if violations:
        raise FieldsInvalid(violations)


def unknown_references(wanted: WorkspaceRequest, pools: Mapping[str, Pool]) -> list[FieldViolation]:
    """Everything named that no pool it could go to knows; what is named "" has been told as missing already."""
    violations: list[FieldViolation] = []
    for reference in wanted.references():
        if not reference.name:
            continue
        if reference.kind is ReferenceKind.POOL:
            if reference.name not in pools:
                violations.append(
                    reference.unknown(f'there is no pool "{reference.name}"{_nearest(reference.name, pools)}')
                )
            continue
        asked = [pools[name] for name in reference.pools or pools if name in pools]
        if not asked:
            continue  # its pool is unknown, which is told already
        if reference.kind is ReferenceKind.PARAMETER:
            violations += _parameter(reference, asked, optional=reference.name in wanted.optional_parameters)
        else:
            violations += _listed(reference, asked)
    for name in wanted.pools_named():
        for spec in pools[name].parameter_specs if name in pools else ():
            if spec.required and spec.key not in wanted.parameters:
                violations.append(
                    FieldViolation(
                        path=f'{wanted.path}.parameters["{spec.key}"]',
                        reason=FieldReason.REQUIRED,
                        message=f"pool {name} needs it: {spec.description}",
                    )
                )
    return violations


def _listed(reference: Reference, pools: Iterable[Pool]) -> list[FieldViolation]:
    """An image or network that none of these pools has; a pool never read, or that takes any name, may have it."""
    known: set[str] = set()
    for pool in pools:
        if pool.inventory is None:
            return []
        listed = pool.inventory.images if reference.kind is ReferenceKind.IMAGE else pool.inventory.networks
        if listed is None:
            return []
        known.update(each.name for each in listed)
    if reference.name in known:
        return []
    where = f"pool {reference.pools[0]}" if len(reference.pools) == 1 else "every pool"
    return [
        reference.unknown(
            f'{where} lacks the {reference.kind.value} "{reference.name}"{_nearest(reference.name, known)}'
        )
    ]


def _parameter(reference: Reference, pools: Sequence[Pool], *, optional: bool) -> list[FieldViolation]:
    """A parameter that none of these pools knows, or knows with another kind of value."""
    specs = {spec.key: spec for pool in pools for spec in pool.parameter_specs}
    spec = specs.get(reference.name)
    if spec is None:
        if optional:
            return []
        refused = {key: why for pool in pools for key, why in pool.refused_parameters.items()}
        why = refused.get(reference.name.lower())
        if why is not None:
            return [reference.unknown(f'"{reference.name}" is refused: {why}')]
        hint = _nearest(reference.name, specs)
        return [reference.unknown(f'no pool it could go to knows the parameter "{reference.name}"{hint}')]
    given = reference.value.kind.value if reference.value is not None else ""
    if given != spec.kind.value:
        return [
            reference.wrong_kind(f"is a {given or 'nothing'}; {spec.key} takes a {spec.kind.value}: {spec.description}")
        ]
    return []


def _nearest(wrong: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
