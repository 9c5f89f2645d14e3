"""The store that keeps nothing answers as one with a file does."""

from __future__ import annotations

import asyncio

from broker.store.base import Row, Table
from broker.store.memory import MemoryStore


async def test_an_answer_comes_after_the_caller_could_add_to_it() -> None:
    store = MemoryStore()
    told: list[str] = []
    first = store.submit([Row(Table.SETTINGS, "a", "1")], alone=True)
    second = store.submit([], alone=False)
    first.add_done_callback(lambda done: told.append("first"))
    second.add_done_callback(lambda done: told.append("second"))
    assert not first.done()
    await second
    assert told == ["first", "second"]


async def test_who_gives_up_waiting_does_not_take_the_answer_from_others() -> None:
    store = MemoryStore()
    commit = store.submit([], alone=True)
    waiter = asyncio.ensure_future(asyncio.wait_for(commit, 60))
    await asyncio.sleep(0)
    waiter.cancel()
    await commit
    assert commit.done()
    assert not commit.cancelled()


def test_it_knows_nothing_but_what_it_was_given() -> None:
    loaded = MemoryStore({"broker_id": "replay"}).load()
    assert loaded.settings == {"broker_id": "replay"}
    assert [loaded.workspaces, loaded.tasks, loaded.requests] == [[], [], []]
