"""Work asked for by several at once: done once, given up when nobody waits, begun anew after a failure."""

from __future__ import annotations

import asyncio

import pytest

from backends.xen.shared import SharedWork, to_the_end


class Work:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.cleaned = 0
        self.go = asyncio.Event()
        self.cleaning = asyncio.Event()
        self.clean = asyncio.Event()
        self.clean.set()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            return self.begun
        except asyncio.CancelledError:
            self.cleaning.set()
            await self.clean.wait()
            self.cleaned += 1
            raise


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_asks_meanwhile_shares_it() -> None:
    shared, work = SharedWork[str, int](), Work()
    asking = [asyncio.create_task(shared.run("a", work)) for _ in range(3)]
    await settled()
    assert shared.running() == ("a",)
    work.go.set()
    assert await asyncio.gather(*asking) == [1, 1, 1]
    assert shared.running() == ()


async def test_one_who_leaves_does_not_end_it_for_the_others() -> None:
    shared, work = SharedWork[str, int](), Work()
    leaving, staying = (asyncio.create_task(shared.run("a", work)) for _ in range(2))
    await settled()
    leaving.cancel()
    await settled()
    work.go.set()
    assert await staying == 1
    assert work.cleaned == 0


async def test_the_last_one_who_leaves_ends_it_and_it_is_begun_anew_once_it_has_cleaned_up() -> None:
    shared, work = SharedWork[str, int](), Work()
    work.clean.clear()
    asking = [asyncio.create_task(shared.run("a", work)) for _ in range(2)]
    await settled()
    for each in asking:
        each.cancel()
    await work.cleaning.wait()
    again = asyncio.create_task(shared.run("a", work))
    await settled()
    assert (work.begun, asking[0].cancelled(), asking[1].cancelled()) == (1, True, True)
    work.clean.set()
    await settled()
    assert (work.begun, work.cleaned) == (2, 1)
    work.go.set()
    assert await again == 2


async def test_stopping_returns_when_it_has_cleaned_up() -> None:
    shared, work = SharedWork[str, int](), Work()
    work.clean.clear()
    asking = asyncio.create_task(shared.run("a", work))
    await settled()
    stopping = asyncio.create_task(shared.stop("a"))
    await work.cleaning.wait()
    await settled()
    assert not stopping.done()
    work.clean.set()
    await stopping
    assert (work.cleaned, shared.running()) == (1, ())
    with pytest.raises(asyncio.CancelledError):
        await asking
    await shared.stop("a")


async def test_a_failure_is_everybodys_and_the_next_one_begins_again() -> None:
    shared, work = SharedWork[str, int](), Work()
    work.error = ValueError("no")
    asking = [asyncio.create_task(shared.run("a", work)) for _ in range(2)]
    await settled()
    work.go.set()
    assert [str(each) for each in await asyncio.gather(*asking, return_exceptions=True)] == ["no", "no"]
    work.error = None
    assert await shared.run("a", work) == 2


async def test_closing_ends_everything() -> None:
    shared, work = SharedWork[str, int](), Work()
    asking = asyncio.create_task(shared.run("a", work))
    await settled()
    await shared.close()
    assert work.cleaned == 1
    with pytest.raises(asyncio.CancelledError):
        await asking
    await shared.close()


async def test_what_goes_to_the_end_does_so_although_it_is_cancelled_twice() -> None:
    work = Work()
    waiting = asyncio.create_task(to_the_end(work()))
    await settled()
    for _ in range(2):
        waiting.cancel()
        await settled()
    assert not waiting.done()
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (work.begun, work.cleaned) == (1, 0)
    assert await to_the_end(work()) == 2
    work.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await to_the_end(work())
