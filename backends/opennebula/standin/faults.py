"""Faults on demand: which call is answered wrongly, late or not at all.

Responsible for deciding, call by call, whether a rule applies. Invariant: with the same seed and the
same sequence of calls the same calls are hit. Does not carry a fault out; `server` does.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase


class FaultKind(StrEnum):
    """What goes wrong. The work is not done in the first four, and done in the others but `delay`."""

    DROP_BEFORE = "drop_before"  # the connection is closed, nothing was done
    AUTH_REFUSED = "auth_refused"  # answered as with a wrong password
    HANG = "hang"  # accepted and never answered
    HTTP_STATUS = "http_status"  # an HTML page with `status`; done beforehand if `after_work`
    DROP_AFTER = "drop_after"  # done, then the connection is closed
    BROKEN_XML = "broken_xml"  # HTTP 200 with a body that is no XML
    EMPTY_BODY = "empty_body"  # HTTP 200 with nothing in it
    TRUNCATED = "truncated"  # Content-Length of the whole, half of the body
    DELAY = "delay"  # `seconds` later, otherwise ordinary


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRule:
    """One rule. `method` may hold wildcards; the rule acts from the `nth` matching call on, `count` times."""

    kind: FaultKind
    method: str = "*"
    nth: int = 1
    count: int | None = None
    probability: float = 1.0
    seconds: float = 0.0
    status: int = 503
    after_work: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FaultKind(self.kind))


@dataclass(slots=True, eq=False)
class _Armed:
    rule: FaultRule
    seen: int = 0
    fired: int = 0


@dataclass(slots=True)
class FaultPlan:
    """The rules in force; may be changed from any thread while the stand-in runs."""

    seed: int = 0
    _armed: list[_Armed] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def add(
        self,
        kind: FaultKind | str,
        method: str = "*",
        *,
        nth: int = 1,
        count: int | None = None,
        probability: float = 1.0,
        seconds: float = 0.0,
        status: int = 503,
        after_work: bool = False,
    ) -> FaultRule:
        rule = FaultRule(
            kind=FaultKind(kind),
            method=method,
            nth=nth,
            count=count,
            probability=probability,
            seconds=seconds,
            status=status,
            after_work=after_work,
        )
        self.arm(rule)
        return rule

    def arm(self, rule: FaultRule) -> None:
        with self._lock:
            self._armed.append(_Armed(rule))

    def remove(self, rule: FaultRule) -> None:
        with self._lock:
            self._armed = [armed for armed in self._armed if armed.rule is not rule]

    def clear(self) -> None:
        with self._lock:
            self._armed.clear()

    def pick(self, method: str) -> FaultRule | None:
        """The rule that acts on this call, the oldest first; counts the call for every rule that matches."""
        chosen: FaultRule | None = None
        with self._lock:
            for armed in self._armed:
                rule = armed.rule
                if not fnmatchcase(method, rule.method):
                    continue
                armed.seen += 1
                spent = rule.count is not None and armed.fired >= rule.count
                if chosen is not None or spent or armed.seen < rule.nth:
                    continue
                if rule.probability >= 1.0 or self._random.random() < rule.probability:
                    armed.fired += 1
                    chosen = rule
        return chosen
