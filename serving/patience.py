"""How long a store of profiles is waited for: a deadline, and a circuit breaker behind it.

A store that gives a look-up up by itself in time (SQLite, Redis) is asked where the request runs; so is what
lies in memory. Any other is asked from a thread of this module's own, of which there are few, and is left
alone when the deadline has passed. After a question that was not answered in time the store is not asked
again until that question came back or a pause is over, so that a store that hangs costs one deadline a pause
and not one a request, and holds up no more threads than there are.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, TypeVar

from consentier.errors import StoreTimeout

__all__ = ["PAUSE_SECONDS", "Guard", "StoreUnread"]

PAUSE_SECONDS = 1.0
"""After so long a store that gave no answer is asked again, by one request, which finds out for all."""

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
            If the store fails, does not answer in time, or did not lately.

        Notes
        -----
        Costs 1 µs where the store is asked directly, and some 50 µs where it needs a thread.
        """
        state = self._state
        if state.process != os.getpid():
            state = self._state = _State()  # threads and locks stayed in the process that forked this one
        if state.resume_at is not None and not state.may_try():
            raise StoreUnread(f"{self._name}: not asked, as it has just given no answer in time")
        late: Future[Any] | None = None
        try:
            if self._answers_within is not None and self._answers_within <= deadline:
                answer = question()
            else:
                late = state.threads.start(question)
                answer = late.result(deadline)
        except (TimeoutError, StoreTimeout):
            state.give_up(late)
            raise StoreUnread(f"{self._name}: no answer within {1000 * deadline:g} ms") from None
        except Exception as error:
            state.resume_at = None  # it answers, if only to say that it cannot
            raise StoreUnread(f"{self._name}: failed with {type(error).__name__}") from error
        if state.resume_at is not None:
            state.resume_at = None
        return answer


class _State:
    """Whether a store answers, as one process sees it."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.resume_at: float | None = None
        self.threads = _Threads()
        self._late: Future[Any] | None = None
        self._lock = threading.Lock()

    def give_up(self, late: Future[Any] | None) -> None:
        """Leave the store alone, until a question that is late has come back or the pause is over."""
        if late is not None:
            late.cancel()  # which does nothing, if a thread is at it
        with self._lock:
            self._late = late
            self.resume_at = time.monotonic() + PAUSE_SECONDS

    def may_try(self) -> bool:
        """Whether to ask a store that was given up: it came back, or this is the first try after a pause."""
        with self._lock:
            if self.resume_at is None:
                return True
            if self._late is not None and self._late.done() and not self._late.cancelled():
                self._late, self.resume_at = None, None
                return True
            if time.monotonic() < self.resume_at:
                return False
            self.resume_at = time.monotonic() + PAUSE_SECONDS
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
                threading.Thread(target=self._work, name="consentier-profiles", daemon=True).start()
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
