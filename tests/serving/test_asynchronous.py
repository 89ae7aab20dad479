"""The recommender of asyncio services: the same answers, and a loop that goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time

import pytest
from engines import ITEMS, engine

from consentier.consent import Permission, Resolution, Tier
from consentier.serving import Request
from consentier.serving.asynchronous import AsyncRecommender

ONLINE = Request(session=ITEMS[:2], online_history=ITEMS[2:4], permission=Permission.ONLINE, n=5)


class SlowLedger:
    """Takes its time, and counts how many ask at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def resolve(self, **question: object) -> Resolution:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(0.05)
        with self._lock:
            self._inside -= 1
        return Resolution()

    def linked_since(self, *question: object, **when: object) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_the_answers_are_the_same(threads: int) -> None:
    async def ask() -> None:
        async with AsyncRecommender(engine(), threads=threads) as asked:
            assert await asked.recommend(ONLINE) == engine().recommend(ONLINE)
            assert await asked.similar(ITEMS[0], n=3) == engine().similar(ITEMS[0], n=3)
            expected = engine().basket(ITEMS[:2], n=3, exclude=ITEMS[5:6])
            assert await asked.basket(ITEMS[:2], n=3, exclude=ITEMS[5:6]) == expected

    asyncio.run(ask())


def test_the_loop_goes_on_while_a_store_blocks_and_no_more_than_so_many_ask_at_once() -> None:
    ledger = SlowLedger()
    recommender = dataclasses.replace(engine(), ledger=ledger)  # type: ignore[arg-type]

    async def ask() -> int:
        turns = 0
        async with AsyncRecommender(recommender, threads=2) as asked:
            questions = asyncio.gather(*(asked.recommend(ONLINE) for _ in range(6)))
            while not questions.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert {answer.tier for answer in await questions} == {Tier.SESSION}
        return turns

    assert asyncio.run(ask()) > 20
    assert ledger.most == 2


def test_wrong_arguments_raise_here_too_and_a_closed_one_answers_no_more() -> None:
    async def ask() -> None:
        asked = AsyncRecommender(engine(), threads=1)
        with pytest.raises(TypeError, match=r"recommend takes a consentier\.Request"):
            await asked.recommend("session")  # type: ignore[arg-type]
        await asked.close()
        with pytest.raises(RuntimeError):
            await asked.recommend(ONLINE)

    asyncio.run(ask())


@pytest.mark.parametrize(("threads", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_the_number_of_threads_is_checked(threads: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="threads must be"):
        AsyncRecommender(engine(), threads=threads)
