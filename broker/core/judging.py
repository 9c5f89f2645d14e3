"""The verdicts of an answer: each pool judged by itself, and when a refused route would fit.

Cheap for a plan, where pools are only named with their outcome; thorough for a refusal. reasons.py finds
the words.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.core.answers import Outcome, Reason, ReasonCode, Verdict
from broker.core.arrange import arrange
from broker.core.feasibility import Case
from broker.core.gates import WAITING
from broker.core.reasons import refusal
from broker.core.routing import Attempt, first_start
from broker.core.search import Budget, SearchLimit
from broker.core.slots import INFINITY, from_us
from broker.core.timing import fit_at


def explain(
    attempts: Sequence[Attempt], search_limit: int, *, nearest_hosts: int = 0, when: bool = False
) -> tuple[Outcome, tuple[Verdict, ...], int]:
    """Return the outcome over all routes, a verdict for every pool, and the earliest start (INFINITY: none
    known).
    """
    verdicts: dict[str, list[Verdict]] = {}
    earliest = INFINITY
    outcomes: set[Outcome] = set()
    for attempt in attempts:
        outcome, when_it_fits = _judge(attempt, search_limit, nearest_hosts, when, verdicts)
        outcomes.add(outcome)
        earliest = min(earliest, when_it_fits)
    ordered = tuple(verdict for _, found in sorted(verdicts.items()) for verdict in found)
    for outcome in (Outcome.FITS, Outcome.NOT_NOW):
        if outcome in outcomes:
            return outcome, ordered, earliest
    return Outcome.NEVER, ordered, earliest


def _judge(
    attempt: Attempt, search_limit: int, nearest_hosts: int, when: bool, verdicts: dict[str, list[Verdict]]
) -> tuple[Outcome, int]:
    """Add verdicts for the pools of a route; return its outcome and earliest start.

    A pool that is part of several routes is judged by the one in which it takes the sets that name no pool.
    """
    if attempt.placed is not None:
        for case, placed, value in zip(attempt.cases, attempt.placed, attempt.scores, strict=True):
            if case.pool not in verdicts or case.pool == attempt.candidate:
                verdicts[case.pool] = [_fits(case, sum(map(len, placed)), value)]
        return Outcome.FITS, attempt.start
    undecided = [attempt.undecided] * len(attempt.cases)
    outcomes = [_outcome_alone(attempt, position, search_limit, undecided) for position in range(len(attempt.cases))]
    route = Outcome.NEVER if Outcome.NEVER in outcomes else Outcome.NOT_NOW
    extra: list[Reason] = []
    earliest = INFINITY
    # While it is not known whether it fits at the start, no later instant can be called the earliest.
    if when and route is Outcome.NOT_NOW and not any(attempt.closed) and not attempt.undecided:
        try:
            found = first_start(attempt, INFINITY - 1, search_limit)
        except SearchLimit:
            undecided = [True] * len(undecided)
        else:
            earliest = INFINITY if found is None else found
        if attempt.until < earliest < INFINITY and attempt.until > attempt.start:
            late = from_us(attempt.until)
            assert late is not None
            extra = [Reason(code=ReasonCode.WINDOW, message=f"no room for a start by {late.isoformat()}")]
    for position, case in enumerate(attempt.cases):
        if case.pool in verdicts and case.pool != attempt.candidate:
            continue
        outcome = outcomes[position]
        if outcome is Outcome.FITS:
            verdicts[case.pool] = [_fits(case, sum(case.counts))]
            continue
        reasons = [*attempt.closed[position], *extra]
        if undecided[position] and outcome is Outcome.NOT_NOW:
            reasons.append(
                Reason(
                    code=ReasonCode.SEARCH_LIMIT,
                    requested=sum(case.counts),
                    resolvable=True,
                    message="not decided within the bound on work: waiting or asking for less may help",
                )
            )
        verdicts[case.pool] = refusal(
            case,
            case.room(attempt.prepare, attempt.end),
            outcome,
            earliest=from_us(earliest) if outcome is Outcome.NOT_NOW else None,
            known=reasons,
            nearest_hosts=nearest_hosts,
        )
    return route, earliest


def _outcome_alone(attempt: Attempt, position: int, search_limit: int, undecided: list[bool]) -> Outcome:
    """Judge one pool of a refused route by itself, so that its verdict speaks of no other pool."""
    case, closed = attempt.cases[position], attempt.closed[position]
    codes = {reason.code for reason in closed}
    if codes - WAITING:
        return Outcome.NEVER
    if ReasonCode.POOL_UNREACHABLE in codes:
        return Outcome.NOT_NOW
    try:
        if arrange(case, case.empty_room(), case.least, Budget(search_limit)) is None:
            return Outcome.NEVER
        if len(attempt.cases) > 1 and not codes and fit_at([case], attempt.prepare, attempt.held_length, search_limit):
            undecided[position] = False
            return Outcome.FITS
    except SearchLimit:
        undecided[position] = True
    return Outcome.NOT_NOW


def _fits(case: Case, nodes: int, score: float = 0.0) -> Verdict:
    return Verdict(
        pool=case.pool,
        outcome=Outcome.FITS,
        score=score,
        nodes_fit=nodes,
        host_total=len(case.snapshot.hosts.names),
    )
