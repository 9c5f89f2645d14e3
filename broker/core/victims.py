"""Which of those who can give way have to: a minimal set, found by asking whether it would do.

QuickXplain (Junker 2004): with k of n candidates taken it asks about k log(n/k) times instead of n times, and prefers
those that come first. The answer is minimal in that none of it can be spared. Knows nothing of leases or hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def minimal(candidates: Sequence[T], enough: Callable[[Sequence[T]], bool]) -> list[T] | None:
    """Return a minimal subset that is enough, in the candidates' order, or None if all together are not.

    `enough` must go on to hold when more are added.
    """
    if enough(()):
        return []
    if not enough(candidates):
        return None
    chosen = _needed((), tuple(candidates), False, enough)
    # What was decided first may have become dispensable where `enough` is not quite monotone: placement gives up on
    # questions that are too large.
    at = 0
    while at < len(chosen):
        rest = [*chosen[:at], *chosen[at + 1 :]]
        if enough(rest):
            chosen, at = rest, 0
        else:
            at += 1
    places = {id(candidate): place for place, candidate in enumerate(candidates)}
    return sorted(chosen, key=lambda candidate: places[id(candidate)])


def _needed(taken: tuple[T, ...], open_: tuple[T, ...], grew: bool, enough: Callable[[Sequence[T]], bool]) -> list[T]:
    """Those of `open_` that are needed beside `taken`; `grew`: something was taken since that was asked last."""
    if grew and enough(taken):
        return []
    if len(open_) == 1:
        return list(open_)
    half = (len(open_) + 1) // 2
    first, second = open_[:half], open_[half:]
    of_second = _needed((*taken, *first), second, True, enough)
    of_first = _needed((*taken, *of_second), first, bool(of_second), enough)
    return of_first + of_second
