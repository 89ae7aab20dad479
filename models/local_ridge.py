"""Local ridge regression: item-to-item weights from small systems, one per target item.

For each target item, its strongest co-occurring inputs are taken, and the ridge system among just those is
solved. With all inputs taken this is EASE (Steck, "Embarrassingly shallow autoencoders for sparse data", WWW
2019); with few it is an approximation of it that needs no dense matrix (Steck, "Markov random fields for
collaborative filtering", NeurIPS 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import sparse

from consentier.errors import TrainingError
from consentier.models.base import History, LinearItemModel
from consentier.models.compiled import compiled
from consentier.models.gram import GRAM_UNIT, GramStatistics, SessionOrder, gram_statistics
from consentier.models.scoring import with_second_hop
from consentier.progress import Advance

__all__ = [
    "LocalRidge",
    "choosing_targets",
    "dense_ease",
    "largest_weights",
    "solve_local_ridge",
    "touched_targets",
]

_TARGETS_PER_CHUNK = 128
# The first remedy for a block that is not positive definite, relative to its largest diagonal entry, and how
# often it is multiplied by 100 before the solver gives up.
_FIRST_JITTER = 1e-10
_JITTER_STEPS = 5


@dataclass(kw_only=True, eq=False)
class LocalRidge(LinearItemModel):
    """Sparse linear item-to-item model: ridge regression of each item on its strongest co-occurring inputs.

    See `gram_statistics` and `solve_local_ridge` for the mathematics, the papers and the cost. With
    ``neighbours`` at least the number of inputs and both exponents 0 it is EASE.
    """

    neighbours: int = 100
    """Largest number of inputs that explain an item."""
    regularisation: float = 1.0
    """Ridge penalty, at least 0."""
    row_exponent: float = 0.5
    """Rows are divided by their length to this power; 0 weighs all rows alike."""
    item_exponent: float = 0.3
    """Inputs are divided by their popularity to this power before the fit."""
    popularity_regularisation: float = 0.0
    """Penalty in proportion to the popularity of each input, at least 0."""
    reverse_weight: float = 1.0
    """In sessions, what a pair counts for predicting the item that came first: 0 to 1."""
    distance_decay: float | None = None
    """In sessions, how fast a pair counts less with the items between; see `gram_statistics`."""
    repeat_weight: float = 0.0
    """Weight of an item for itself: above 0, seen items come again where they are not filtered."""
    second_hop_weight: float = 0.0
    """How much the best items of a first score pass on; see `with_second_hop`."""
    second_hop_items: int = 50
    """How many items pass on."""
    top: int | None = None
    """Weights kept per item; None keeps all of its neighbours."""
    max_gram_entries: int | None = None
    """Budget of the Gram matrix; see `gram_statistics`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.neighbours >= 1, "neighbours", "at least 1")
        for name in ("regularisation", "row_exponent", "item_exponent", "popularity_regularisation"):
            value = getattr(self, name)
            self._require(math.isfinite(value) and value >= 0, name, "a finite number of at least 0")
        self._require(0 <= self.reverse_weight <= 1, "reverse_weight", "between 0 and 1")
        self._require(math.isfinite(self.repeat_weight), "repeat_weight", "a finite number")
        self._require(
            math.isfinite(self.second_hop_weight) and self.second_hop_weight >= 0,
            "second_hop_weight",
            "a finite number of at least 0",
        )
        self._require(self.second_hop_items >= 1, "second_hop_items", "at least 1")
        self._require(self.top is None or self.top >= 1, "top", "at least 1, or None")

    def _score(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids, scores = super()._score(history)
        if not self.second_hop_weight:
            return ids, scores
        return super()._score(self._both_hops(history, ids, scores))

    def _both_hops(self, history: History, ids: NDArray[np.int64], scores: NDArray[np.float64]) -> History:
        rows, weights = with_second_hop(
            history.inputs,
            history.weights,
            ids,
            scores,
            hop_weight=self.second_hop_weight,
            hop_items=self.second_hop_items,
        )
        return History(rows, weights)

    def _contributions(self, history: History, item: int) -> NDArray[np.float64]:
        direct = super()._contributions(history, item)
        if not self.second_hop_weight:
            return direct
        ids, scores = super()._score(history)
        both = self._both_hops(history, ids, scores)
        hops = both.inputs[history.inputs.size :]
        passed = both.weights[history.inputs.size :].astype(np.float64)
        # Of what an item passed on, each input has the share that it has in the item's own score.
        own_scores = scores[np.searchsorted(ids, hops)]
        to_item = self.weights[hops, item].toarray().ravel() * (passed / own_scores)
        through = self.weights[history.inputs][:, hops].astype(np.float64) @ to_item
        return np.asarray(direct + history.weights * through)

    def _fit(
        self, user_items: sparse.csr_matrix, persons: NDArray[np.integer] | None, advance: Advance
    ) -> sparse.csr_matrix:
        return self.solve(self.count(user_items, persons=persons), advance=advance)

    def count(
        self,
        user_items: sparse.csr_matrix,
        *,
        persons: NDArray[np.integer] | None = None,
        order: SessionOrder | None = None,
    ) -> GramStatistics:
        """Count what `solve` computes the item weights from.

        Parameters
        ----------
        user_items, persons
            As for `fit`.
        order
            Where rows are sessions: the order of their items. `reverse_weight` and `distance_decay` need it.
        """
        return gram_statistics(
            user_items,
            row_exponent=self.row_exponent,
            persons=persons,
            min_persons=self.min_persons,
            max_gram_entries=self.max_gram_entries,
            threads=self.threads,
            order=order,
            distance_decay=self.distance_decay,
        )

    def solve(
        self,
        statistics: GramStatistics,
        *,
        columns: NDArray[np.integer] | None = None,
        advance: Advance | None = None,
    ) -> sparse.csr_matrix:
        """Compute the item weights from statistics: kept ones, say, from which rows were subtracted.

        Parameters
        ----------
        statistics
            From `gram_statistics`, with this model's `row_exponent`.
        columns
            Solve only these items, see `touched_targets`.
        advance
            Called with the number of items that were finished since the last call.

        Returns
        -------
        csr_matrix of float32
            Shape (n_inputs, n_items).

        Raises
        ------
        ValueError
            The statistics were counted with other settings.
        TrainingError
            A system has no stable solution.
        """
        for name in ("row_exponent", "min_persons", "distance_decay"):
            expected, found = getattr(self, name), getattr(statistics, name)
            if expected != found:
                raise ValueError(
                    f"the statistics were computed with {name}={found}, the model has {expected}"
                )
        inputs = statistics.gram.shape[0]
        items = inputs if self.item_count is None else self.item_count
        weights = solve_local_ridge(
            statistics,
            targets=items,
            neighbours=self.neighbours,
            regularisation=self.regularisation,
            item_exponent=self.item_exponent,
            popularity_regularisation=self.popularity_regularisation,
            reverse_weight=self.reverse_weight,
            top=self.top,
            columns=columns,
            threads=self.threads,
            advance=advance,
        )
        if self.repeat_weight == 0:
            return weights
        published = statistics.counts[:items] >= statistics.min_persons
        repeats = np.where(published, np.float32(self.repeat_weight), np.float32(0))
        if columns is not None:
            repeats[np.setdiff1d(np.arange(items), columns)] = 0
        repeated = sparse.csr_matrix(weights + sparse.diags_array(repeats, shape=weights.shape))
        repeated.eliminate_zeros()
        return repeated


def solve_local_ridge(
    statistics: GramStatistics,
    *,
    targets: int,
    neighbours: int,
    regularisation: float,
    item_exponent: float = 0.0,
    popularity_regularisation: float = 0.0,
    reverse_weight: float = 1.0,
    top: int | None = None,
    columns: NDArray[np.integer] | None = None,
    threads: int | None = None,
    advance: Advance | None = None,
) -> sparse.csr_matrix:
    """Solve for the item-to-item weights.

    With ``G`` the Gram matrix, ``D`` the diagonal matrix of the inputs' popularity (distinct persons) and
    ``b`` the item exponent, let ``H = D^-b G D^-b``. For each target j, ``S`` holds the `neighbours` inputs
    with the largest ``H[i, j]`` (equal ones by ascending index), j itself excluded and those that never occur
    with j too. (Where `neighbours` covers all inputs and `min_persons` is 1, those are taken in, and with
    exponents of 0 this is EASE.) Then ``w`` solves
    ``(H[S, S] + regularisation I + c diag(H[S, S])) w = H[S, j]``, where c is `popularity_regularisation`.
    The weights are ``W[S, j] = D_S^-b w D_j^b``.

    Where rows are sessions with an order, the right-hand side (and the choice of ``S``) lets a pair count
    `reverse_weight` in sessions in which the target came first: what came later is what is to be predicted.

    Parameters
    ----------
    statistics
        Co-occurrence statistics; entries and inputs below its `min_persons` are left out.
    targets
        The first `targets` inputs are the items to predict; inputs beyond are attributes and the like.
    neighbours
        Largest number of inputs that explain a target (K).
    regularisation
        Ridge penalty, at least 0. With item exponent 0, 1 is as much as one interaction of weight 1 in a row
        of weight 1.
    item_exponent
        b, at least 0: 0 leaves popular items their full weight in the fit, .5 takes cosines (where all
        weights are 1).
    popularity_regularisation
        Penalty in proportion to each input's diagonal entry, as from randomly dropping inputs (Steck,
        "Autoencoders that don't overfit towards the identity", NeurIPS 2020); at least 0.
    reverse_weight
        What a pair counts, from 0 to 1, where the target came before the input.
    top
        Keep only so many weights of largest size per target; by default all.
    columns
        Solve only these targets; the others get no weights. By default all.
    threads
        Threads to use; all cores by default. The result does not depend on it.
    advance
        Called with the number of targets that were finished since the last call.

    Returns
    -------
    csr_matrix of float32
        ``W``, shape (n_inputs, targets), canonical, zero on the diagonal.

    Raises
    ------
    ValueError
        An argument is out of its range.
    TrainingError
        A system has no stable solution.

    Notes
    -----
    O(targets · K³ / 3) multiplications and additions in float64, in a fixed order; memory for the result and
    one K × K block per thread. Gowalla (40,981 items, K = 100) takes some 8 s on two cores. All inputs as
    neighbours cost O(n⁴): for more than about a thousand, `dense_ease` is the quicker way to plain EASE.
    """
    inputs = statistics.gram.shape[0]
    _check_arguments(
        inputs, targets, neighbours, regularisation, item_exponent, popularity_regularisation, top
    )
    if not 0 <= reverse_weight <= 1 or (reverse_weight != 1 and statistics.forward is None):
        raise ValueError(
            f"reverse_weight must be between 0 and 1, and 1 for statistics without an order, "
            f"got {reverse_weight!r}"
        )
    chosen = np.arange(targets, dtype=np.int64) if columns is None else _checked_columns(columns, targets)
    system = _system(statistics, item_exponent, reverse_weight)
    chunks = [chosen[k : k + _TARGETS_PER_CHUNK] for k in range(0, chosen.size, _TARGETS_PER_CHUNK)]
    solved = Parallel(n_jobs=-1 if threads is None else threads, prefer="threads", return_as="generator")(
        delayed(_solve_targets)(
            system,
            chunk,
            neighbours,
            float(regularisation),
            float(popularity_regularisation),
            neighbours if top is None else top,
        )
        for chunk in chunks
    )
    lengths = np.zeros(targets, dtype=np.int64)
    indices, data = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.float32)]
    for chunk, (chunk_lengths, chunk_indices, chunk_data, unsolved) in zip(chunks, solved, strict=True):
        if unsolved >= 0:
            raise TrainingError(
                f"the ridge system of item {unsolved} has no stable solution with regularisation="
                f"{regularisation}: raise it (or max_gram_entries, if the statistics were truncated)"
            )
        lengths[chunk] = chunk_lengths
        indices.append(chunk_indices)
        data.append(chunk_data)
        if advance is not None:
            advance(chunk.size)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    by_target = sparse.csc_matrix(
        (np.concatenate(data), np.concatenate(indices), starts), shape=(inputs, targets)
    )
    return by_target.tocsr()


def touched_targets(
    before: GramStatistics,
    after: GramStatistics,
    changed_inputs: NDArray[np.integer],
    *,
    targets: int,
    neighbours: int,
    item_exponent: float = 0.0,
    reverse_weight: float = 1.0,
) -> NDArray[np.int64]:
    """Find the targets whose weights may differ after whole rows were subtracted or added.

    Parameters
    ----------
    before, after
        The statistics with and without the rows, of the same inputs.
    changed_inputs
        Every input of the rows.
    targets, neighbours, item_exponent, reverse_weight
        As for `solve_local_ridge`.

    Returns
    -------
    ndarray of int64
        Ascending: the changed inputs themselves, and every target among whose strongest inputs one of them is
        or was. The system of any other target holds only entries between unchanged inputs. All targets, where
        `neighbours` covers, or covered, all inputs that anybody has.

    Notes
    -----
    O(entries in the rows of the targets that co-occur with a changed input), without solving anything.
    """
    fewest = min(np.count_nonzero(statistics.counts) for statistics in (before, after))
    if neighbours >= fewest - 1:
        return np.arange(targets, dtype=np.int64)
    changed = np.zeros(before.gram.shape[0], dtype=np.bool_)
    changed[changed_inputs] = True
    candidates = np.unique(
        np.concatenate([np.flatnonzero(changed), before.gram[changed].indices, after.gram[changed].indices])
    ).astype(np.int64)
    candidates = candidates[candidates < targets]
    touched = changed[candidates]
    for statistics in (before, after):
        open_ones = np.flatnonzero(~touched)
        touched[open_ones] = choosing_targets(
            statistics, candidates[open_ones], changed,
            neighbours=neighbours, item_exponent=item_exponent, reverse_weight=reverse_weight,
        )  # fmt: skip
    return candidates[touched]


def choosing_targets(
    statistics: GramStatistics,
    targets: NDArray[np.int64],
    inputs: NDArray[np.bool_],
    *,
    neighbours: int,
    item_exponent: float = 0.0,
    reverse_weight: float = 1.0,
) -> NDArray[np.bool_]:
    """Mark the targets among whose strongest inputs is one of the marked ones.

    Parameters
    ----------
    statistics
        What the inputs are chosen by.
    targets
        int64, shape (n,): which to look at.
    inputs
        Shape (n_inputs,): the marked inputs.
    neighbours, item_exponent, reverse_weight
        As for `solve_local_ridge`.

    Returns
    -------
    ndarray of bool
        Shape (n,). O(entries in the rows of the targets).
    """
    return _choosing(_system(statistics, item_exponent, reverse_weight), targets, neighbours, inputs)


def dense_ease(
    gram: NDArray[np.float64],
    regularisation: float,
    popularity_regularisation: float = 0.0,
) -> NDArray[np.float64]:
    """Solve EASE by inverting the whole Gram matrix: a reference, and a choice for small catalogues.

    ``B = I - P / diag(P)`` with ``P = (G + regularisation I + c diag(G))^-1`` (Steck 2019, equation 8).

    Parameters
    ----------
    gram
        Shape (n, n), in interactions of weight 1 (statistics hold it in units of `GRAM_UNIT`).
    regularisation, popularity_regularisation
        As for `solve_local_ridge`, which this equals where `neighbours` covers all inputs and the item
        exponent is 0.

    Returns
    -------
    ndarray of float64
        Shape (n, n), zero on the diagonal.

    Notes
    -----
    O(n³) time and O(n²) memory: 800 MB at 10,000 inputs.
    """
    dense = np.array(gram, dtype=np.float64)
    diagonal = np.diagonal(dense).copy()
    dense[np.diag_indices_from(dense)] += regularisation + popularity_regularisation * diagonal
    inverse = np.linalg.inv(dense)
    weights: NDArray[np.float64] = inverse / -np.diagonal(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


class _System(NamedTuple):
    """The statistics as the compiled loops read them."""

    starts: NDArray[np.int64]
    indices: NDArray[np.integer]
    values: NDArray[np.int64]
    persons: NDArray[np.int64]  # empty where every entry may be used
    min_persons: int
    diagonal: NDArray[np.float64]  # in interactions of weight 1
    scale: NDArray[np.float64]  # popularity ** -item_exponent
    forward: NDArray[np.int64]  # empty where every pair counts alike in both directions
    reverse_weight: float


def _system(statistics: GramStatistics, item_exponent: float, reverse_weight: float) -> _System:
    gram = statistics.gram
    persons = statistics.persons if statistics.min_persons > 1 else None
    return _System(
        starts=gram.indptr.astype(np.int64),
        indices=gram.indices,
        values=gram.data,
        persons=np.zeros(0, dtype=np.int64) if persons is None else persons,
        min_persons=statistics.min_persons,
        diagonal=gram.diagonal() * GRAM_UNIT,
        scale=np.maximum(statistics.counts, 1.0) ** -float(item_exponent),
        forward=(
            np.zeros(0, dtype=np.int64)
            if statistics.forward is None or reverse_weight == 1
            else statistics.forward
        ),
        reverse_weight=float(reverse_weight),
    )


def _check_arguments(
    inputs: int,
    targets: int,
    neighbours: int,
    regularisation: float,
    item_exponent: float,
    popularity_regularisation: float,
    top: int | None,
) -> None:
    if not 0 <= targets <= inputs:
        raise ValueError(f"targets must be between 0 and the number of inputs, {inputs}, got {targets!r}")
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours!r}")
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, or None for all, got {top!r}")
    for name, value in (
        ("regularisation", regularisation),
        ("item_exponent", item_exponent),
        ("popularity_regularisation", popularity_regularisation),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def _checked_columns(columns: NDArray[np.integer], targets: int) -> NDArray[np.int64]:
    chosen = np.unique(columns).astype(np.int64)
    if chosen.size and (chosen[0] < 0 or chosen[-1] >= targets):
        raise ValueError(f"columns must lie in [0, {targets}), got {chosen[0]} to {chosen[-1]}")
    return chosen


@compiled
def _solve_targets(
    system: _System,
    targets: NDArray[np.int64],
    neighbours: int,
    regularisation: float,
    popularity_regularisation: float,
    top: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], int]:
    """Solve some targets.

    Returns the number of weights per target, their inputs, the weights, and a target without solution or -1.
    """
    widest = 0
    room = 0
    for j in targets:
        width = system.scale.size - 1
        if not _takes_all(system, neighbours):
            width = min(neighbours, system.starts[j + 1] - system.starts[j])
        widest = max(widest, width)
        room += min(width, top)
    lengths = np.zeros(targets.size, dtype=np.int64)
    indices = np.empty(room, dtype=np.int32)
    data = np.empty(room, dtype=np.float32)
    block = np.empty((widest, widest + 1), dtype=np.float64)
    place = np.full(system.scale.size, -1, dtype=np.int32)
    filled = 0
    for t in range(targets.size):
        j = targets[t]
        chosen, right = _strongest_inputs(system, j, neighbours)
        size = chosen.size
        solved = False
        for step in range(_JITTER_STEPS + 1):
            largest = _fill_block(
                system, chosen, right, place, regularisation, popularity_regularisation, block
            )
            if step > 0:
                jitter = _FIRST_JITTER * 100.0 ** (step - 1) * largest
                for p in range(size):
                    block[p, p] += jitter
            solved = _factorise(block, size)
            if solved:
                break
        if not solved:
            return lengths, indices[:filled], data[:filled], j
        _substitute(block, size)
        weights = np.empty(size, dtype=np.float32)
        for p in range(size):
            weights[p] = block[p, size] * system.scale[chosen[p]] / system.scale[j]
        kept = largest_weights(weights, top)
        for p in range(size):
            if kept[p]:
                indices[filled] = chosen[p]
                data[filled] = weights[p]
                filled += 1
                lengths[t] += 1
    return lengths, indices[:filled], data[:filled], -1


@compiled
def _strongest_inputs(
    system: _System, target: int, neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Choose the inputs of a target, ascending, and their entries ``H[S, target]``."""
    if _takes_all(system, neighbours):
        return _all_inputs(system, target)
    start, stop = system.starts[target], system.starts[target + 1]
    found = np.empty(stop - start, dtype=np.int64)
    values = np.empty(stop - start, dtype=np.float64)
    count = 0
    for k in range(start, stop):
        i = system.indices[k]
        if i == target or (system.persons.size > 0 and system.persons[k] < system.min_persons):
            continue
        value = _towards(system, k)
        if value > 0:
            found[count] = i
            values[count] = value * GRAM_UNIT * system.scale[i]
            count += 1
    found, values = found[:count], values[:count]
    if count > neighbours:
        threshold = np.partition(values, count - neighbours)[count - neighbours]
        ties = neighbours - (values > threshold).sum()
        kept = np.zeros(count, dtype=np.bool_)
        for k in range(count):
            if values[k] > threshold:
                kept[k] = True
            elif values[k] == threshold and ties > 0:
                kept[k] = True
                ties -= 1
        found, values = found[kept], values[kept]
    return found, values * system.scale[target]


@compiled
def _choosing(
    system: _System, targets: NDArray[np.int64], neighbours: int, inputs: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Mark the targets among whose strongest inputs is one of the marked inputs."""
    choosing = np.zeros(targets.size, dtype=np.bool_)
    for t in range(targets.size):
        chosen, _ = _strongest_inputs(system, targets[t], neighbours)
        for p in range(chosen.size):
            if inputs[chosen[p]]:
                choosing[t] = True
                break
    return choosing


@compiled
def _takes_all(system: _System, neighbours: int) -> bool:
    return system.persons.size == 0 and neighbours >= system.scale.size - 1


@compiled
def _towards(system: _System, k: int) -> float:
    """How much an entry of a target's row counts for predicting the target."""
    value = float(system.values[k])
    if system.forward.size > 0:
        value -= (1.0 - system.reverse_weight) * system.forward[k]
    return value


@compiled
def _all_inputs(system: _System, target: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values = np.zeros(system.scale.size, dtype=np.float64)
    for k in range(system.starts[target], system.starts[target + 1]):
        i = system.indices[k]
        values[i] = _towards(system, k) * GRAM_UNIT * system.scale[i]
    others = system.diagonal > 0
    others[target] = False
    found = np.flatnonzero(others)
    return found, values[found] * system.scale[target]


@compiled
def _fill_block(
    system: _System,
    chosen: NDArray[np.int64],
    right: NDArray[np.float64],
    place: NDArray[np.int32],
    regularisation: float,
    popularity_regularisation: float,
    block: NDArray[np.float64],
) -> float:
    """Write the system of a target: upper triangle, with the right-hand side as its last column.

    Returns the largest diagonal entry. `place` is all -1, and is so again on return.
    """
    size = chosen.size
    for p in range(size):
        place[chosen[p]] = p
        block[p, p:size] = 0.0
        block[p, size] = right[p]
    for p in range(size):
        # The Gram matrix is symmetric: each pair is looked up in the shorter of its two rows.
        start, stop = system.starts[chosen[p]], system.starts[chosen[p] + 1]
        longer = 0
        for q in range(size):
            if _is_longer(system, chosen[q], chosen[p]):
                longer += 1
        if stop - start < longer * 10:
            for k in range(start, stop):
                q = place[system.indices[k]]
                if q >= 0:
                    _set_pair(system, block, chosen, p, q, k)
        else:
            for q in range(size):
                if _is_longer(system, chosen[q], chosen[p]):
                    k = start + np.searchsorted(system.indices[start:stop], chosen[q])
                    if k < stop and system.indices[k] == chosen[q]:
                        _set_pair(system, block, chosen, p, q, k)
    largest = 0.0
    for p in range(size):
        scale = system.scale[chosen[p]]
        value = (
            system.diagonal[chosen[p]] * scale * scale * (1.0 + popularity_regularisation) + regularisation
        )
        block[p, p] = value
        largest = max(largest, value)
        place[chosen[p]] = -1
    return largest


@compiled
def _is_longer(system: _System, i: int, than: int) -> bool:
    length = system.starts[i + 1] - system.starts[i]
    other = system.starts[than + 1] - system.starts[than]
    return length > other or (length == other and i > than)


@compiled
def _set_pair(
    system: _System, block: NDArray[np.float64], chosen: NDArray[np.int64], p: int, q: int, k: int
) -> None:
    if system.persons.size > 0 and system.persons[k] < system.min_persons:
        return
    low, high = min(p, q), max(p, q)
    block[low, high] = system.values[k] * GRAM_UNIT * system.scale[chosen[low]] * system.scale[chosen[high]]


@compiled
def _factorise(block: NDArray[np.float64], size: int) -> bool:
    """Factorise ``U^T U`` in place by rows, and solve ``U^T y = b`` in the last column on the way.

    The inner loops run along rows, so they may use vector instructions, while every entry still gets its
    terms subtracted one by one in ascending order: the bits do not depend on the vector width. Returns False
    where the matrix is not positive definite.
    """
    for i in range(size):
        smallest = 1e-13 * block[i, i]
        k = 0
        while k + 4 <= i:
            a, b, c, d = block[k, i], block[k + 1, i], block[k + 2, i], block[k + 3, i]
            for m in range(i, size + 1):
                block[i, m] = (
                    block[i, m]
                    - a * block[k, m]
                    - b * block[k + 1, m]
                    - c * block[k + 2, m]
                    - d * block[k + 3, m]
                )
            k += 4
        while k < i:
            a = block[k, i]
            for m in range(i, size + 1):
                block[i, m] -= a * block[k, m]
            k += 1
        if not block[i, i] > smallest:
            return False
        root = math.sqrt(block[i, i])
        for m in range(i, size + 1):
            block[i, m] /= root
    return True


@compiled
def _substitute(block: NDArray[np.float64], size: int) -> None:
    """Solve ``U w = y`` in the last column."""
    for i in range(size - 1, -1, -1):
        value = block[i, size]
        for m in range(i + 1, size):
            value -= block[i, m] * block[m, size]
        block[i, size] = value / block[i, i]


@compiled
def largest_weights(weights: NDArray[np.float32], top: int) -> NDArray[np.bool_]:
    """Mark the `top` weights of largest size, equal ones by ascending position, and never a zero."""
    sizes = np.abs(weights)
    kept = sizes > 0
    if weights.size > top:
        threshold = np.partition(sizes, sizes.size - top)[sizes.size - top]
        ties = top - (sizes > threshold).sum()
        for p in range(sizes.size):
            if sizes[p] < threshold:
                kept[p] = False
            elif sizes[p] == threshold:
                kept[p] = kept[p] and ties > 0
                ties -= 1
    return kept
