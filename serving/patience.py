"""How long a store of profiles, or the consent ledger, is waited for: a deadline, and a circuit breaker.

A store that gives a look-up up by itself in time (SQLite, Redis) is asked where the request runs; so is what
lies in memory. Any other is asked from a thread of this module's own, of which there are few, and is waited
for until the deadline.

One late answer says little: on a busy machine it may be the one who asked that got no time. After
`LATE_IN_A_ROW` of them, with none in time in between, the store is left alone. Questions that were under way
together count once: what stalls a machine makes all of them late. A store that is left alone is asked again,
by one question, when the late answer has come back or a pause is over. The first pause is short, as a machine
may only have stalled for longer; each next one is twice as long, up to `PAUSE_SECONDS`.

That bounds what a store can cost. A question waits for one deadline. As long as nobody gets an answer in
time, each thread waits `LATE_IN_A_ROW` times at most, and from then on one thread at a time does: once a
pause, or as often as late answers come back. What no deadline can cut short where the request runs, a disk
that hangs or the look-up of a server's name, counts as late if it took longer than a pause, whatever came of
it; less than that a busy machine takes by itself. A store that fails at once costs no waiting, and is asked
by everybody: so it is read again as soon as it is back.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, TypeVar

from consentier.errors import LedgerTimeout, StoreTimeout

__all__ = ["LATE_IN_A_ROW", "NOT_ASKED", "PAUSE_SECONDS", "Guard", "StoreUnread"]

LATE_IN_A_ROW = 3
"""After so many answers that did not come in time, with none in between that did, a store is left alone."""

PAUSE_SECONDS = 1.0
"""After so long at most a store that was left alone is asked again, by one question."""

NOT_ASKED = "not asked, as it has just given no answer in time"
"""What is said of a store that is left alone."""

_DOUBLINGS = 3
"""From the first pause to the longest."""

_THREADS = 8
"""How many questions to one store are under way at the same time, where it needs threads."""

_QUESTIONS = 64
"""How many may be under way or waiting for a thread. What comes on top would not be answered in time."""

_IDLE_SECONDS = 2.0
"""So long a thread that has nothing to do waits for something."""

_T = TypeVar("_T")


class StoreUnread(Exception):  # noqa: N818 - a state of affairs, told in the answer
    """A store could not be read. The message names the store and the kind of fault, and quotes no data."""


class Guard:
    """Asks one store, within a deadline. Safe to use from any number of threads, and after a fork.

    Parameters
    ----------
    name
        What the store is called in the reasons of an answer.
    store
        The store. Its ``answers_within`` says after how many seconds it gives up by itself; without one it is
        asked from a thread.
    """

    def __init__(self, name: str, store: object) -> None:
        self._name = name
        # A dictionary answers at once.
        own = 0.0 if isinstance(store, dict | MappingProxyType) else getattr(store, "answers_within", None)
        self._answers_within = own if isinstance(own, int | float) else None
        self._state = _State()

    def ask(self, question: Callable[[], _T], deadline: float) -> _T:
        """What a question to the store gives.

        Parameters
        ----------
        question
            Asks the store. It may still be running, in a thread, when this method has given up.
        deadline
            For how many seconds to wait.

        Raises
        ------
        StoreUnread
            If the store fails, does not answer in time, or is left alone because it did not lately.

        Notes
        -----
        Costs 1 µs where the store is asked directly, and some 50 µs where it needs a thread. What waiting in
        vain costs at most, the module says.
        """
        state = self._state
        if state.process != os.getpid():
            state = self._state = _State()  # threads and locks stayed in the process that forked this one
        if state.resume_at is not None and not state.may_try():
            raise StoreUnread(f"{self._name}: {NOT_ASKED}")
        began = time.monotonic()
        late: Future[Any] | None = None
        try:
            if self._answers_within is not None and self._answers_within <= deadline:
                answer = question()
            else:
                late = state.threads.start(question)
                answer = late.result(deadline)
        except (StoreTimeout, LedgerTimeout):
            state.was_late(began, None)  # the store has given up: nothing more will come
            raise StoreUnread(f"{self._name}: no answer within the store's own deadline") from None
        except TimeoutError:
            state.was_late(began, late)
            raise StoreUnread(f"{self._name}: no answer within {1000 * deadline:g} ms") from None
        except Exception as error:
            state.came(began, deadline)  # it answers, if only to say that it cannot
            raise StoreUnread(f"{self._name}: failed with {type(error).__name__}") from error
        state.came(began, deadline)
        return answer


class _State:
    """Whether a store answers, as one process sees it."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.late_in_a_row = 0
        self.resume_at: float | None = None
        """When to ask a store again that is left alone; None where it is not."""
        self.threads = _Threads()
        self._counted_at = -math.inf
        """When the last late answer that counts was missed."""
        self._late: Future[Any] | None = None
        self._lock = threading.Lock()

    def came(self, began: float, deadline: float) -> None:
        """Take note of an answer: after one in time, nothing of before counts any more."""
        if time.monotonic() - began > max(deadline, PAUSE_SECONDS):
            self.was_late(began, None)
        elif self.late_in_a_row:
            with self._lock:
                self.late_in_a_row, self.resume_at = 0, None

    def was_late(self, began: float, late: Future[Any] | None) -> None:
        """Count a question that was not answered in time; leave the store alone if that was one too many.

        Parameters
        ----------
        began
            When the question was asked, by `time.monotonic`.
        late
            What may still get the answer; None where nothing more will come.
        """
        if late is not None:
            late.cancel()  # which does nothing, if a thread is at it
        with self._lock:
            now = time.monotonic()
            if began >= self._counted_at:
                self.late_in_a_row += 1
                self._counted_at = now
            if self.late_in_a_row >= LATE_IN_A_ROW:
                shorter = min(self.late_in_a_row - LATE_IN_A_ROW - _DOUBLINGS, 0)
                self._late, self.resume_at = late, now + PAUSE_SECONDS * 2.0**shorter

    def may_try(self) -> bool:
        """Whether to ask a store that is left alone: for one question, when something may have changed."""
        with self._lock:
            if self.resume_at is None:
                return True
            now = time.monotonic()
            came_back = self._late is not None and self._late.done() and not self._late.cancelled()
            if now < self.resume_at and not came_back:
                return False
            self._late, self.resume_at = None, now + PAUSE_SECONDS
            return True


class _Threads:
    """A few threads, started when they are needed, that the end of the process does not wait for."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running = 0
        self._open = 0

    def start(self, question: Callable[[], _T]) -> Future[_T]:
        """Have a question asked; the future gets its answer."""
        future: Future[_T] = Future()
        with self._lock:
            if self._open >= _QUESTIONS:
                raise TimeoutError
            if self._open >= self._running and self._running < _THREADS:
                threading.Thread(target=self._work, name="consentier-stores", daemon=True).start()
                self._running += 1
            self._open += 1
            self._waiting.put((future, question))
        return future

    def _work(self) -> None:
        while self._one():
            pass

    def _one(self) -> bool:
        """Ask one question; false if there was none for a while, and the thread may end."""
        try:
            future, question = self._waiting.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            with self._lock:
                if self._waiting.empty():
                    self._running -= 1
                    return False
            return True
        if future.set_running_or_notify_cancel():
            try:
                answer = question()
            except BaseException as error:  # noqa: BLE001 - whoever waits for the answer gets it
                self._done()
                future.set_exception(error)
            else:
                self._done()
                future.set_result(answer)
        else:
            self._done()
        return True

    def _done(self) -> None:
        with self._lock:
            self._open -= 1
