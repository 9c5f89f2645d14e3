"""What time alone does to ensembles: one that was not sealed in time is cancelled, and a closed one is forgotten.

Each has one next due instant, a function of its record; a heap holds them, as for leases (expiry.py), and no time is
believed while the clock is doubted. A record stays for as long as one of its workspaces does, so that none names an
ensemble that is not there, or another of that name.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.model import Cause, Ensemble, EnsembleState, State
from broker.engine.expiry import LONGEST_NAP, ClockWatch
from broker.engine.retry import interrupted_sleep

log = logging.getLogger(__name__)

LOOK_AGAIN: Final = timedelta(hours=1)
"""Until it is asked again whether the workspaces of a closed ensemble are still kept."""


def cancel(tx: Transaction, book: Book, ensemble: Ensemble, now: datetime, cause: Cause) -> Ensemble:
    """Closes an open ensemble for good; its workspaces, which hold nothing yet, end with it."""
    ended = [
        tx.put(replace(workspace, state=State.TERMINATED, cause=cause, final_time=now))
        for workspace in book.members(ensemble)
    ]
    return tx.put_ensemble(
        replace(
            ensemble,
            state=EnsembleState.CANCELLED,
            cause=cause,
            workspaces=tuple(workspace.uid for workspace in ended),
            close_time=now,
        )
    )


class EnsembleExpiry:
    """All ensembles in time."""

    def __init__(self, book: Book, clock: Clock, clock_watch: ClockWatch, *, keep_records: timedelta) -> None:
        self._book = book
        self._clock = clock
        self._clock_watch = clock_watch
        self._keep_records = keep_records
        self._heap: list[tuple[datetime, str]] = []
        self._noted: dict[str, datetime] = {}  # what was put on the heap last for each
        self._wake = asyncio.Event()

    def watch(self, ensemble: Ensemble) -> None:
        """Notes when an ensemble is due next; called at each change of it."""
        due = self._due(ensemble)
        if self._noted.get(ensemble.uid) != due:
            self._push(due, ensemble.uid)

    def watch_all(self) -> None:
        """Notes it of all there are: after a restart, or when what was decided has been lost."""
        for ensemble in self._book.ensembles.values():
            self.watch(ensemble)

    def _push(self, due: datetime, uid: str) -> None:
        self._noted[uid] = due
        heapq.heappush(self._heap, (due, uid))
        if self._heap[0][1] == uid:
            self._wake.set()

    def _due(self, ensemble: Ensemble) -> datetime:
        if ensemble.open or ensemble.close_time is None:
            return ensemble.expire_time
        return ensemble.close_time + self._keep_records

    async def run(self) -> None:
        """Does what is due, for ever; ends by cancellation."""
        self.watch_all()
        while True:
            self._wake.clear()
            now = self._clock.now()
            nap = LONGEST_NAP
            if not self._clock_watch.trusted():
                nap = min(nap, self._clock_watch.wait)
            else:
                while self._heap and self._heap[0][0] <= now:
                    uid = heapq.heappop(self._heap)[1]
                    self._noted.pop(uid, None)
                    try:
                        self._act(uid, now)
                    except Exception:
                        log.exception("ensemble=%s expiry=lost", uid)
                if self._heap:
                    nap = min(nap, (self._heap[0][0] - now).total_seconds())
            await interrupted_sleep(self._clock, max(nap, 0.001), self._wake)

    def _act(self, uid: str, now: datetime) -> None:
        """Does to one ensemble what is due at an instant."""
        ensemble = self._book.ensembles.get(uid)
        if ensemble is None or self._due(ensemble) > now:
            return
        if not ensemble.open and self._book.members(ensemble):
            self._push(now + LOOK_AGAIN, uid)
            return
        with self._book.transaction() as tx:
            if ensemble.open:
                cancel(tx, self._book, ensemble, now, Cause.LEASE)
            else:
                tx.forget_ensemble(ensemble)
