"""Asks a third party's policy so that it can neither stop the broker nor mislead it.

Invariant: there is an answer within the budget, and it keeps the protocol. The policy runs in a thread of its own, and
so does the check of what it answers. Where it raises, is late or breaks the protocol, the default answers instead; that
is counted each time and logged once. One that was late is asked no more: its thread cannot be stopped. Which policies
there are is decided in policies.py.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from msgspec import Struct

from broker.core.inventory import FloatArray
from broker.core.policies import Backfill, HostChoice, Passing, Waiting
from broker.metrics import Metrics
from broker.policy_registry import Kind

log = logging.getLogger(__name__)

SHOWN: Final = 80
"""Characters of a wrong answer that are logged."""


class Named(Protocol):
    """A workspace, waiting or holding capacity."""

    @property
    def uid(self) -> str:
        """Which."""


A = TypeVar("A")
W = TypeVar("W", bound=Named)


class Why(StrEnum):
    """What was wrong."""

    ERROR = "error"  # it raised
    LATE = "late"
    ANSWER = "answer"  # it answered what the protocol does not allow


class WrongAnswer(ValueError):
    """An answer that the protocol does not allow."""


class Subject(Struct, frozen=True, kw_only=True):
    """Which policy it is, to those who read of it."""

    kind: Kind
    name: str
    key: str  # where it is configured
    default: str  # what answers instead
    metrics: Metrics

    def failed(self, why: Why) -> None:
        """Counts a failure."""
        self.metrics.policy_failures.labels(self.kind, self.name, why).inc()

    def log(self, why: Why, what: str, advice: str, error: BaseException | None = None) -> None:
        """Tells operators what is wrong, what happens instead, and what to do."""
        log.error(
            "policy=%s kind=%s key=%s failure=%s: %s; %s answers instead. %s",
            *(self.name, self.kind, self.key, why, what, self.default, advice),
            exc_info=error,
        )


class Guard:
    """One policy's thread, and what is known of its failures."""

    def __init__(self, subject: Subject, budget: float) -> None:
        self._subject = subject
        self._budget = budget
        self._off = False
        self._told: set[Why] = set()
        self._questions: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A daemon: one that never answers must not keep the process from its end.
        name = f"policy {subject.key}"
        threading.Thread(target=_work, args=(self._questions,), name=name, daemon=True).start()
        weakref.finalize(self, self._questions.put, None)

    def ask(self, question: Callable[[], A]) -> A | None:
        """The answer to a question that is put to the policy in its thread; None if there is no good one in time."""
        if self._off:
            return None
        outcomes: SimpleQueue[tuple[A | None, BaseException | None]] = SimpleQueue()  # not shared with late answers
        self._questions.put(lambda: outcomes.put(_outcome(question)))
        try:
            answer, error = outcomes.get(timeout=self._budget)  # real time, since it is real time that is lost
        except Empty:
            self._off = True
            self._questions.put(None)
            self._failed(
                Why.LATE,
                f"no answer within {self._budget * 1000:g} ms",
                "It is switched off until the broker restarts: make it faster, or raise queue.policy_budget",
            )
            return None
        if error is None:
            return answer
        again = "It is asked again next time: mend it, or configure another"
        if isinstance(error, WrongAnswer):
            self._failed(Why.ANSWER, f"wrong answer, {error}", again)
        else:
            self._failed(Why.ERROR, f"it raised {type(error).__name__}", again, error)
        return None

    def _failed(self, why: Why, what: str, advice: str, error: BaseException | None = None) -> None:
        self._subject.failed(why)
        if why not in self._told:
            self._told.add(why)
            self._subject.log(why, what, advice, error)


def _work(questions: SimpleQueue[Callable[[], None] | None]) -> None:
    """Answers questions one after another, until there is None."""
    while (question := questions.get()) is not None:
        question()
        del question  # it refers to the guard, with which this thread ends


def _outcome(question: Callable[[], A]) -> tuple[A | None, BaseException | None]:
    try:
        return question(), None
    except BaseException as error:  # also what would end the thread
        return None, error


class OrderPolicy(Protocol[W]):
    """A QueueOrder or a VictimChoice."""

    def order(self, workspaces: Sequence[W], now: datetime) -> Sequence[W]:
        """Return the same workspaces in another order."""


class GuardedOrder(Generic[W]):
    """A third party's QueueOrder or VictimChoice."""

    def __init__(self, policy: OrderPolicy[W], default: OrderPolicy[W], guard: Guard) -> None:
        self._policy = policy
        self._default = default
        self._guard = guard

    def order(self, workspaces: Sequence[W], now: datetime) -> Sequence[W]:
        """Return the same workspaces in the policy's order."""
        given = tuple(workspaces)
        answer = self._guard.ask(lambda: reordered(given, self._policy.order(given, now)))
        return self._default.order(workspaces, now) if answer is None else answer


class GuardedBackfill:
    """A third party's Backfill."""

    def __init__(self, policy: Backfill, default: Backfill, guard: Guard) -> None:
        self._policy = policy
        self._default = default
        self._guard = guard

    def blocked(self, waiting: Waiting, ahead: int, now: datetime) -> Passing:
        """Say what those behind `waiting` have to heed."""
        answer = self._guard.ask(lambda: _passing(self._policy.blocked(waiting, ahead, now)))
        return self._default.blocked(waiting, ahead, now) if answer is None else answer


class GuardedHostChoice:
    """A third party's HostChoice."""

    def __init__(self, policy: HostChoice, default: HostChoice, guard: Guard) -> None:
        self._policy = policy
        self._default = default
        self._guard = guard

    def rank(self, hosts: Sequence[str], left: Mapping[str, FloatArray]) -> FloatArray:
        """Return a number a host, the least for the best."""
        answer = self._guard.ask(lambda: _ranks(hosts, self._policy.rank(hosts, left)))
        return self._default.rank(hosts, left) if answer is None else answer


def reordered(given: Sequence[W], answer: object) -> list[W]:
    """An answer that has to be the same workspaces in another order. Raises WrongAnswer."""
    if not isinstance(answer, Iterable):
        raise WrongAnswer(f"{_shown(answer)} is no sequence")
    left = {each.uid: each for each in given}
    found: list[W] = []
    for each in islice(answer, len(given) + 1):  # it may have no end
        uid = getattr(each, "uid", None)
        if not isinstance(uid, str) or uid not in left:
            raise WrongAnswer(f"{_shown(each)} was not asked about, or stands there twice")
        found.append(left.pop(uid))
    if left:
        raise WrongAnswer(f"{len(left)} of {len(given)} are missing, such as {next(iter(left))}")
    return found


def _passing(answer: object) -> Passing:
    if not isinstance(answer, Passing):
        raise WrongAnswer(f"{_shown(answer)} is no Passing")
    return answer


def _ranks(hosts: Sequence[str], answer: Any) -> FloatArray:
    try:
        ranks = np.array(answer, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise WrongAnswer(f"{_shown(answer)} are no numbers") from error
    if ranks.shape != (len(hosts),):
        raise WrongAnswer(f"numbers in the shape {ranks.shape} for {len(hosts)} hosts")
    nowhere = np.flatnonzero(np.isnan(ranks))
    if len(nowhere):
        raise WrongAnswer(f"no number for {len(nowhere)} of {len(hosts)} hosts, such as {hosts[nowhere[0]]}")
    return ranks


def _shown(answer: object) -> str:
    text = repr(answer)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
