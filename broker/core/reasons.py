"""Why not: verdicts of a refused pool and of its nearest hosts, machine-readable and in words.

Totals by reason cover every host of the pool and are counted by array operations; only the nearest hosts,
at most `NEAREST_HOSTS`, are looked at one by one. What is said of a pool that NEVER fits speaks of empty
hosts, everything else of the interval asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from broker.core.answers import Outcome, Reason, ReasonCode, Verdict
from broker.core.arrange import nodes_fit, smallest
from broker.core.feasibility import ADDRESS_PREFIX, MEMORY, Case, Room
from broker.core.gates import WAITING
from broker.core.inventory import BoolArray, HostState

NEAREST_HOSTS = 50

_STATES = {
    HostState.CORDONED: (ReasonCode.HOST_CORDONED, "cordoned: an operator keeps new nodes away", False),
    HostState.DISABLED: (ReasonCode.HOST_DISABLED, "disabled at the backend", True),
    HostState.LOST: (ReasonCode.HOST_LOST, "lost: it does not answer", True),
}
_UNITS = {"cpu": "milli-cores", "memory": "MiB", "disk": "MiB"}
# How far away a host is that a state or a rule keeps a node from; lacking room counts 0 to 1 a resource.
_STATE_AWAY, _RULE_AWAY = 10.0, 100.0


def refusal(
    case: Case,
    room: Room,
    outcome: Outcome,
    *,
    earliest: datetime | None,
    known: Sequence[Reason],
    nearest_hosts: int = NEAREST_HOSTS,
) -> list[Verdict]:
    """Return the verdict of a pool that cannot take its sets, then those of its nearest hosts.

    `known`: reasons found before any host was looked at. If they already decide, hosts are not spoken of.
    """
    codes = {reason.code for reason in known}
    hosts = len(case.snapshot.hosts.names)
    decides = codes & WAITING if outcome is Outcome.NOT_NOW else codes - WAITING
    if decides:
        return [Verdict(pool=case.pool, outcome=outcome, reasons=tuple(known), host_total=hosts)]
    judged = case.empty_room() if outcome is Outcome.NEVER else room
    fit = nodes_fit(case, judged)
    reasons = [*known, *_of_pool(case, judged, fit, outcome)]
    for index in range(len(case.sets)):
        reasons.extend(_over_hosts(case, judged, index, outcome))
    if outcome is not Outcome.NEVER:
        reasons.extend(_by_state(case))
    verdict = Verdict(
        pool=case.pool,
        outcome=outcome,
        earliest=earliest,
        reasons=tuple(reasons),
        nodes_fit=fit,
        host_total=hosts,
    )
    return [verdict, *_nearest(case, room, nearest_hosts)]


def amount(resource: str, number: int) -> str:
    """Return an amount with its unit, for people."""
    if resource.startswith(ADDRESS_PREFIX):
        return f"{number} address{'es' * (number != 1)}"
    unit = _UNITS.get(resource)
    return f"{number} {unit}" if unit else str(number)


def _label(resource: str) -> str:
    return f"network {resource.removeprefix(ADDRESS_PREFIX)}" if resource.startswith(ADDRESS_PREFIX) else resource


def _asked(case: Case, resource: str, number: int) -> str:
    overhead = case.snapshot.memory_overhead if resource == MEMORY else 0
    return f"{amount(resource, number)} asked" + (f" ({overhead} of it overhead a VM)" if overhead else "")


def _of_pool(case: Case, room: Room, fit: int, outcome: Outcome) -> list[Reason]:
    """Resources of the pool itself, and the group."""
    reasons: list[Reason] = []
    single = True
    for p, resource in enumerate(case.pool_resources):
        asked = sum(needs[p] * least for needs, least in zip(case.pool_needs, case.least, strict=True))
        free, total = max(0, room.pool[p]), case.pool_total(resource)
        if asked <= free:
            continue
        single = single and max(needs[p] for needs in case.pool_needs) <= free
        helps = asked <= total
        left = f"{amount(resource, free)} free of {total}" if helps else f"{amount(resource, total)} in all"
        reasons.append(
            Reason(
                code=ReasonCode.INSUFFICIENT_RESOURCE,
                resource=resource,
                requested=asked,
                available=free,
                resolvable=helps and outcome is not Outcome.NEVER,
                message=f"{_label(resource)}: {amount(resource, asked)} asked, pool {case.pool} has {left}",
            )
        )
    least = sum(case.least)
    if single and fit < least and all(case.fitting(room, index).any() for index in range(len(case.sets))):
        when = "fit at once, even when every host is empty" if outcome is Outcome.NEVER else "fit at once"
        reasons.append(
            Reason(
                code=ReasonCode.GROUP,
                requested=least,
                available=fit,
                resolvable=outcome is not Outcome.NEVER,
                node_set=case.sets[0].name if len(case.sets) == 1 else "",
                message=f"{least} nodes asked, {fit} {when} in pool {case.pool}",
            )
        )
    return reasons


def _over_hosts(case: Case, room: Room, index: int, outcome: Outcome) -> list[Reason]:
    """Totals over all hosts for one set: resources first, then rules."""
    name = case.sets[index].name
    allowed = case.allowed[index]
    reasons: list[Reason] = []
    for r, resource in enumerate(case.resources):
        need, free, total = case.needs[index][r], room.host[r], case.total[r]
        short = free < need if need else None
        if short is None or not short.any():
            continue
        # The best host is one that could take the node at all, if there is any.
        mask = case.mask(room, index)
        best = _greatest(free, mask if mask is not None and mask.any() else None)
        able = total >= need if allowed is None else (total >= need) & allowed
        helps = outcome is not Outcome.NEVER and bool((able & short).any())
        count = int(short.sum())
        where = f"at most {amount(resource, best)} on a host"
        if outcome is Outcome.NEVER:
            where += ", even when it is empty"
        reasons.append(
            Reason(
                code=ReasonCode.INSUFFICIENT_RESOURCE,
                resource=resource,
                requested=need,
                available=best,
                resolvable=helps,
                node_set=name,
                host_count=count,
                message=f"{_label(resource)}: {_asked(case, resource, need)}, {where}; "
                f"short on {count} host{'s' * (count != 1)}",
            )
        )
    reasons.extend(
        Reason(code=rule.code, message=rule.message, node_set=name, host_count=int(rule.barred.sum()))
        for rule in case.rules[index]
    )
    return reasons


def _greatest(free: np.ndarray[tuple[int], np.dtype[np.int64]], mask: BoolArray | None) -> int:
    chosen = free if mask is None else free[mask]
    return max(0, int(chosen.max())) if len(chosen) else 0


def _by_state(case: Case) -> list[Reason]:
    reasons: list[Reason] = []
    for state, (code, words, resolvable) in _STATES.items():
        count = int((case.snapshot.hosts.states == state).sum())
        if count:
            message = f"{count} host{'s' * (count != 1)} {words}"
            reasons.append(Reason(code=code, message=message, resolvable=resolvable, host_count=count))
    return reasons


def _nearest(case: Case, room: Room, most: int) -> list[Verdict]:
    """Verdicts of the hosts that lack least, ties by name."""
    hosts = case.snapshot.hosts
    if most <= 0 or not hosts.names:
        return []
    away = np.where(hosts.usable, 0.0, _STATE_AWAY)
    for index, needs in enumerate(case.needs):
        for free, need in zip(room.host, needs, strict=True):
            if need:
                away += np.clip((need - free) / need, 0.0, 1.0)
        for rule in case.rules[index]:
            away += rule.barred * _RULE_AWAY
    rows = smallest(away, most)
    there, total = room.host[:, rows].tolist(), case.total[:, rows].tolist()
    capacity = [case.capacity(room, i, wanted.count)[rows].tolist() for i, wanted in enumerate(case.sets)]
    tight = [case.tightness(room, i)[rows].tolist() for i in range(len(case.sets))]
    verdicts: list[Verdict] = []
    for at, row in enumerate(rows.tolist()):
        name, state = hosts.names[row], HostState(int(hosts.states[row]))
        reasons: list[Reason] = []
        possible = False  # some set could stand here if it were empty
        for index, wanted in enumerate(case.sets):
            free_here, total_here = [amounts[at] for amounts in there], [amounts[at] for amounts in total]
            short = _on_host(case, index, name, free_here, total_here)
            barred = [
                Reason(code=rule.code, message=f"{rule.message}: not {name}", node_set=wanted.name)
                for rule in case.rules[index]
                if rule.barred[row]
            ]
            possible = possible or (not barred and all(reason.resolvable for reason in short))
            reasons.extend([*short, *barred])
        if state is not HostState.ACTIVE:
            code, words, resolvable = _STATES[state]
            reasons.append(Reason(code=code, message=f"{name} is {words}", resolvable=resolvable))
        best = max(range(len(case.sets)), key=lambda index: (capacity[index][at], -index))
        takes = int(capacity[best][at])
        outcome = Outcome.FITS if takes else Outcome.NOT_NOW if possible else Outcome.NEVER
        verdicts.append(
            Verdict(
                pool=case.pool,
                host=name,
                outcome=outcome,
                score=max(0.0, tight[best][at]) if takes else 0.0,
                reasons=tuple(reasons),
                nodes_fit=takes,
            )
        )
    return verdicts


def _on_host(case: Case, index: int, host: str, free: Sequence[int], total: Sequence[int]) -> list[Reason]:
    """Resources one node of a set lacks on one host."""
    reasons: list[Reason] = []
    for resource, need, have, most in zip(case.resources, case.needs[index], free, total, strict=True):
        if not need or have >= need:
            continue
        have, helps = max(0, have), most >= need
        there = (
            f"{amount(resource, have)} free of {amount(resource, most)} on {host}"
            if helps
            else f"{amount(resource, most)} on {host}, even when it is empty"
        )
        reasons.append(
            Reason(
                code=ReasonCode.INSUFFICIENT_RESOURCE,
                resource=resource,
                requested=need,
                available=have if helps else most,
                resolvable=helps,
                node_set=case.sets[index].name,
                message=f"{_label(resource)}: {_asked(case, resource, need)}, {there}",
            )
        )
    return reasons
