"""Repeat consumption, learnt: how often a session goes on with an item that it has seen already.

Sessions return to what they saw, and more often to the last items than to earlier ones (Anderson et al. 2014,
"The dynamics of repeat consumption"). What is learnt is one small table of probabilities, by the number of
distinct items seen so far and by how many of them came after the item in question. It is counted in integers,
so that a person can be subtracted from it, and holds nothing about any item or person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consentier.models.compiled import compiled

__all__ = ["LONGEST_SESSION", "RepeatCounts", "repeat_counts"]

LONGEST_SESSION = 12
"""Distinct items up to which sessions are told apart; longer ones count as this long."""

_CELLS = LONGEST_SESSION * (LONGEST_SESSION + 1)


@dataclass(frozen=True, eq=False)
class RepeatCounts:
    """How sessions went on.

    Attributes
    ----------
    events
        int64, shape (L, L + 1), with L = `LONGEST_SESSION`. ``events[n - 1, d]`` counts how often a session
        with n distinct items went on with the one behind which d other distinct ones were seen; the last
        column counts all else.
    persons
        int64, same shape: distinct persons behind each count.
    """

    events: NDArray[np.int64]
    persons: NDArray[np.int64]

    def without(self, others: RepeatCounts) -> RepeatCounts:
        """The counts without those of some persons, all of whose sessions were counted."""
        return RepeatCounts(self.events - others.events, self.persons - others.persons)

    def together_with(self, others: RepeatCounts) -> RepeatCounts:
        """The counts with those of further persons."""
        return RepeatCounts(self.events + others.events, self.persons + others.persons)

    def probabilities(self, min_persons: int) -> NDArray[np.float32]:
        """Estimate the probability of each repeat, with one more observation of something else.

        Parameters
        ----------
        min_persons
            Cells with fewer distinct persons behind them are 0.

        Returns
        -------
        ndarray of float32
            Shape (L, L): by distinct items seen, less one, and by distinct items since.
        """
        shown = np.where(self.persons >= min_persons, self.events, 0)[:, :-1]
        probabilities = shown / (self.events.sum(axis=1, keepdims=True) + 1)
        return np.asarray(probabilities, dtype=np.float32)


def repeat_counts(
    sessions: NDArray[np.int64], items: NDArray[np.int64], owners: NDArray[np.int64]
) -> RepeatCounts:
    """Count how sessions went on.

    Parameters
    ----------
    sessions
        int64, shape (events,): number of each event's session. Events of a session stand together, in order.
    items
        int64, shape (events,): number of each event's item.
    owners
        int64, shape (sessions,): number of each session's person.

    Notes
    -----
    O(events × distinct items of a session).
    """
    cells = _cells(sessions, items)
    counted = cells >= 0
    cells, persons = cells[counted], owners[sessions[counted]]
    distinct = np.unique(persons * _CELLS + cells) % _CELLS
    shape = (LONGEST_SESSION, LONGEST_SESSION + 1)
    return RepeatCounts(
        np.bincount(cells, minlength=_CELLS).reshape(shape).astype(np.int64),
        np.bincount(distinct, minlength=_CELLS).reshape(shape).astype(np.int64),
    )


@compiled
def _cells(sessions: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cell of each event, by what its session saw before it; -1 for the first one of a session."""
    cells = np.full(items.size, -1, dtype=np.int64)
    recent = np.empty(items.size, dtype=np.int64)  # distinct items of the session, the latest one last
    count = 0
    for k in range(items.size):
        if k == 0 or sessions[k] != sessions[k - 1]:
            count = 0
        place = count - 1
        while place >= 0 and recent[place] != items[k]:
            place -= 1
        if count > 0:
            column = LONGEST_SESSION if place < 0 else min(count - 1 - place, LONGEST_SESSION)
            cells[k] = (min(count, LONGEST_SESSION) - 1) * (LONGEST_SESSION + 1) + column
        if place < 0:
            place = count
            count += 1
        for later in range(place, count - 1):
            recent[later] = recent[later + 1]
        recent[count - 1] = items[k]
    return cells
