"""What an exchange of rows takes beside a fit, estimated before either is begun.

Only what the two ways do differently is weighed: a fit counts all histories and solves all items; an exchange
finds rows again through the gate of the earlier fit, goes over the kept co-occurrences, counts the histories
that change and solves the items that these touch. The estimate decides which way is taken and nothing else:
the bundle is the same by either.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consentier.features.gate import PermittedRows
from consentier.models.gram import GramStatistics
from consentier.models.local_ridge import LocalRidge, choosing_targets
from consentier.models.statistics import Statistics
from consentier.training.fit import PERSONS

__all__ = ["Estimate", "Extent", "counting_steps", "estimated", "solving_terms"]

# Processor seconds, from what `python benchmarks/retraining.py SHOP --constants` says of three shops. Only
# their ratios matter.
_STEP_COUNTED = 6e-9
_MULTIPLICATION = 0.4e-9
_ENTRY_EXCHANGED = 73e-9
_GATE_OPENED = 0.2
_RECORD_READ = 4.4e-6

_STEPS_OF_ROW = 75
"""Steps of counting that each row takes besides those for its pairs."""

_FAR = 10
"""From how many times the work on nobody needs to know how many times it is."""

_LOOKED_AT = 512
"""Items of which it is found out whether they would be solved again: beyond them the share hardly changes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What either way is estimated to take, apart from what both do alike.

    Attributes
    ----------
    looked_at
        Items of which it was found out whether they would be solved again; 0 where both ways solve all.
    touched
        How many of these would at least.
    fit, exchange
        Processor seconds of a machine like that of the benchmark: good for their ratio, no more.
    """

    looked_at: int
    touched: int
    fit: float
    exchange: float

    @property
    def exchange_is_less(self) -> bool:
        """Whether an exchange is estimated to be the quicker way."""
        return self.exchange < self.fit

    def __str__(self) -> str:
        """The estimate in words."""
        touched = ""
        if self.looked_at:
            touched = f"of {self.looked_at:,} items looked at an exchange touches {self.touched:,}; "
        share = self.exchange / self.fit
        estimated = f"{share:.0%} of" if share < _FAR else f"more than {_FAR} times"
        return f"{touched}an exchange is estimated at {estimated} the work of counting and solving all anew"


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to do.

    Attributes
    ----------
    permitted, added
        The rows as they are now, and those of persons whose rows changed or who are new.
    by_session
        Whether sessions are counted, and not persons.
    all_again
        Whether any exchange has all items solved again.
    records
        Entries of the ledger, which the gate of the earlier fit reads.
    """

    permitted: PermittedRows
    added: PermittedRows
    by_session: bool
    all_again: bool
    records: int


def estimated(statistics: Statistics, model: LocalRidge | None, extent: Extent) -> Estimate:
    """Estimate both ways.

    The rows that go are not looked for: what they add to an exchange is left out of its account.

    Parameters
    ----------
    statistics
        What the earlier fit kept, co-occurrences among it.
    model
        The model of that fit; None where all items are solved alike in both ways.
    extent
        How much there is to do.

    Notes
    -----
    O(rows + entries in the co-occurrences of 512 items).
    """
    gram = statistics.gram
    if gram is None:
        raise ValueError("there are no co-occurrences to exchange rows in")
    solved, solved_again, looked_at, touched = 0.0, 0.0, 0, 0
    if model is not None:
        items = int((statistics.counts[PERSONS] >= gram.min_persons).sum())
        terms = solving_terms(gram, items, model.neighbours)
        looked = np.arange(0, items, -(-items // _LOOKED_AT) or 1)
        again = np.ones(looked.size, dtype=np.bool_)
        if not extent.all_again and model.neighbours < np.count_nonzero(gram.counts) - 1:
            changed = _inputs_of(extent.added, statistics, gram)
            again = changed[looked] | choosing_targets(
                gram, looked, changed,
                neighbours=model.neighbours, item_exponent=model.item_exponent,
                reverse_weight=model.reverse_weight,
            )  # fmt: skip
        solved = float(terms.sum())
        solved_again = solved * float(terms[looked][again].sum()) / max(float(terms[looked].sum()), 1.0)
        looked_at, touched = looked.size, int(again.sum())
    everything, changing = (
        counting_steps(permitted.rows, by_session=extent.by_session)
        for permitted in (extent.permitted, extent.added)
    )
    return Estimate(
        looked_at,
        touched,
        fit=_STEP_COUNTED * everything + _MULTIPLICATION * solved,
        exchange=_STEP_COUNTED * changing
        + _MULTIPLICATION * solved_again
        + _ENTRY_EXCHANGED * gram.gram.nnz
        + _GATE_OPENED
        + _RECORD_READ * extent.records,
    )


def solving_terms(gram: GramStatistics, items: int, neighbours: int) -> NDArray[np.float64]:
    """How many multiplications the solution of each item's system takes: float64, shape (items,)."""
    size = np.minimum(np.diff(gram.gram.indptr)[:items] - 1, neighbours).astype(np.float64)
    terms: NDArray[np.float64] = np.maximum(size, 0) ** 3 / 3
    return terms


def counting_steps(rows: pa.Table, *, by_session: bool) -> int:
    """What counting co-occurrences in some rows takes at most, in steps. O(rows).

    One for each pair of items in a history, and some more for each row: sorting is most of it where histories
    are short. An item that stands in a history twice is taken for two, which is quicker than to find out.
    """
    histories = pc.value_counts(rows["session_id" if by_session else "person"])
    lengths: NDArray[np.int64] = histories.field("counts").to_numpy(zero_copy_only=False)
    steps: int = np.dot(lengths, lengths).item() + _STEPS_OF_ROW * rows.num_rows
    return steps


def _inputs_of(permitted: PermittedRows, statistics: Statistics, gram: GramStatistics) -> NDArray[np.bool_]:
    """Mark the inputs that stand for items in some rows."""
    published = statistics.counts[PERSONS] >= gram.min_persons
    places = statistics.items.indices(pc.unique(permitted.rows["item_id"]).to_pylist())
    there = np.zeros(published.size, dtype=np.bool_)
    there[places[places >= 0]] = True
    marked = np.zeros(gram.gram.shape[0], dtype=np.bool_)
    marked[: int(published.sum())] = there[published]
    return marked
