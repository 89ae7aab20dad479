"""Readers of the published splits.

DATA is a directory of Parquet files with integer ids: ``session/SET/{train,test}.parquet`` (session_id,
item_id, pos, ts), ``cf/gowalla/{train,test}.parquet``, ``cf/movielens1m/{train,val_foldin,val_heldout,
test_foldin,test_heldout}.parquet`` and ``twosource/taobao/{carts,orders_train,orders_test}.parquet``
(user_id, item_id), and ``cf/movielens1m/users.parquet`` (user_id, gender, age, occupation, zip).
Validation splits are carved out of train; MovieLens publishes its own.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from consentier.training.metrics import Relevant

__all__ = [
    "DEFAULT_DATA",
    "Interactions",
    "MatrixSplit",
    "SessionSplit",
    "Sessions",
    "read_gowalla",
    "read_movielens",
    "read_sessions",
    "read_taobao",
    "require_data",
]

DEFAULT_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
VALIDATION = "validation"
TEST = "test"

_SECONDS_PER_DAY = 86_400.0
_SEED = 7


# --- sessions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sessions:
    """Clicks by session, ragged.

    Attributes
    ----------
    starts
        int64 (sessions + 1,); session ``s`` owns the clicks ``starts[s]:starts[s + 1]``, in their order.
    items
        int64 (clicks,): item numbers.
    times
        float64 (clicks,): seconds.
    """

    starts: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def chosen(self, sessions: NDArray[np.int64]) -> Sessions:
        """Some of the sessions, in the order given."""
        lengths = np.diff(self.starts)[sessions]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        clicks = np.arange(starts[-1]) - np.repeat(starts[:-1] - self.starts[sessions], lengths)
        return Sessions(starts, self.items[clicks], self.times[clicks])

    def last_times(self) -> NDArray[np.float64]:
        """Time of each session's last click, float64 (sessions,)."""
        return self.times[self.starts[1:] - 1]


@dataclass(frozen=True)
class SessionSplit:
    """Sessions to learn from and to be judged on; every test item is known in train."""

    name: str
    train: Sessions
    test: Sessions
    item_count: int

    def facts(self) -> dict[str, int | str]:
        """Sizes, for the results."""
        return {
            "set": self.name,
            "train_clicks": len(self.train.items),
            "train_sessions": len(self.train),
            "items": self.item_count,
            "test_sessions": len(self.test),
            "test_requests": int(np.sum(np.diff(self.test.starts) - 1)),
        }


def read_sessions(data: Path, name: str, part: str = TEST, limit: int | None = None) -> SessionSplit:
    """Read a session set.

    Parameters
    ----------
    data
        The directory of all sets.
    name
        ``"diginetica"`` or ``"retailrocket"``.
    part
        ``"test"``: the published split. ``"validation"``: the last days of train, as many as the test spans,
        are judged, and the days before are learned from; clicks on items unknown there are dropped, and
        sessions of fewer than two clicks then.
    limit
        Judge at most so many sessions, drawn with a fixed seed.
    """
    folder = data / "session" / name
    train = _sessions_of(folder / "train.parquet")
    test = _sessions_of(folder / "test.parquet")
    known, items = np.unique(train.items, return_inverse=True)
    train = dataclasses.replace(train, items=items.astype(np.int64))
    if part == VALIDATION:
        days = np.ceil((test.last_times().max() - test.times.min()) / _SECONDS_PER_DAY)
        later = train.last_times() > train.last_times().max() - days * _SECONDS_PER_DAY
        test = train.chosen(np.flatnonzero(later))
        train = train.chosen(np.flatnonzero(~later))
        remaining, items = np.unique(train.items, return_inverse=True)
        train = dataclasses.replace(train, items=items.astype(np.int64))
        known = remaining
    test = _only_known(test, known)
    if limit is not None and len(test) > limit:
        drawn = np.random.default_rng(_SEED).choice(len(test), limit, replace=False)
        test = test.chosen(np.sort(drawn).astype(np.int64))
    return SessionSplit(f"{name}, {part}", train, test, len(known))


def _sessions_of(path: Path) -> Sessions:
    table = pq.read_table(path, columns=["session_id", "item_id", "pos", "ts"])
    session, item, position = (
        table[name].to_numpy().astype(np.int64) for name in ("session_id", "item_id", "pos")
    )
    times = table["ts"].to_numpy().astype(np.float64)
    order = np.lexsort((position, session))
    _, counts = np.unique(session, return_counts=True)
    starts = np.concatenate(([0], np.cumsum(counts)))
    return Sessions(starts, item[order], times[order])


def _only_known(sessions: Sessions, known: NDArray[np.int64]) -> Sessions:
    """Clicks on known items, by their numbers; sessions with two of them or more."""
    numbers = np.searchsorted(known, sessions.items)
    kept = known[np.minimum(numbers, len(known) - 1)] == sessions.items
    owner = np.repeat(np.arange(len(sessions)), np.diff(sessions.starts))
    lengths = np.bincount(owner[kept], minlength=len(sessions))
    starts = np.concatenate(([0], np.cumsum(lengths)))
    reduced = Sessions(starts, numbers[kept].astype(np.int64), sessions.times[kept])
    return reduced.chosen(np.flatnonzero(lengths >= 2))


# --- matrices ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interactions:
    """What is known of some users, a row each; all float32.

    Attributes
    ----------
    items
        (users, items): 1 where the user has the item (orders, where there are carts too).
    carts
        (users, items), the second source; None where there is one source only.
    attributes
        (users, attribute values): 1 where the value is the user's; None where there are none.
    users
        int64 (users,): the rows of train that are these users'; None where they were not learned from.
    """

    items: sparse.csr_matrix
    carts: sparse.csr_matrix | None = None
    attributes: sparse.csr_matrix | None = None
    users: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.items.shape[0])

    def rows(self, chosen: NDArray[np.int64] | slice) -> Interactions:
        """Some of the users."""
        return Interactions(
            self.items[chosen],
            None if self.carts is None else self.carts[chosen],
            None if self.attributes is None else self.attributes[chosen],
            None if self.users is None else self.users[chosen],
        )


@dataclass(frozen=True)
class MatrixSplit:
    """Users to learn from and to be judged on.

    Attributes
    ----------
    train
        What is learned from.
    histories
        What is known of the judged users at request time.
    hidden
        bool (judged users, items): what may not be recommended to whom.
    held_out
        The relevant items of each judged user.
    """

    name: str
    train: Interactions
    histories: Interactions
    hidden: sparse.csr_matrix
    held_out: Relevant

    @property
    def item_count(self) -> int:
        """Number of items."""
        return int(self.train.items.shape[1])

    def facts(self) -> dict[str, int | str]:
        """Sizes, for the results."""
        facts: dict[str, int | str] = {
            "set": self.name,
            "train_users": len(self.train),
            "train_interactions": int(self.train.items.nnz),
            "items": self.item_count,
            "test_users": len(self.histories),
            "test_pairs": len(self.held_out.items),
        }
        if self.train.carts is not None:
            facts["train_carts"] = int(self.train.carts.nnz)
        return facts

    def users(self, limit: int | None) -> MatrixSplit:
        """Judge at most so many users, drawn with a fixed seed."""
        if limit is None or len(self.histories) <= limit:
            return self
        drawn = np.sort(np.random.default_rng(_SEED).choice(len(self.histories), limit, replace=False))
        return self.judged(drawn.astype(np.int64))

    def judged(self, users: NDArray[np.int64]) -> MatrixSplit:
        """Judge these users only."""
        lists = [
            self.held_out.items[self.held_out.indptr[user] : self.held_out.indptr[user + 1]] for user in users
        ]
        return dataclasses.replace(
            self,
            histories=self.histories.rows(users),
            hidden=self.hidden[users],
            held_out=Relevant.from_lists(lists),
        )


def read_gowalla(data: Path, part: str = TEST) -> MatrixSplit:
    """Read Gowalla in LightGCN's published split.

    Every user is learned from and judged; what they have in train is hidden. ``"validation"`` holds a random
    fifth of each user's train items out, with a fixed seed (of one item, none).
    """
    folder = data / "cf" / "gowalla"
    user, item = _pairs(folder / "train.parquet")
    held_user, held_item = _pairs(folder / "test.parquet")
    items = 1 + max(int(item.max()), int(held_item.max()))
    users = 1 + max(int(user.max()), int(held_user.max()))
    if part == VALIDATION:
        held = _random_fifth(user)
        held_user, held_item = user[held], item[held]
        user, item = user[~held], item[~held]
    train = _matrix(user, item, (users, items))
    return _judged_in_train(f"gowalla, {part}", Interactions(train), train, held_user, held_item)


def read_movielens(
    data: Path, part: str = TEST, history: int | None = None, attributes: bool = False
) -> MatrixSplit:
    """Read MovieLens-1M with strong generalisation: judged users are not learned from.

    Parameters
    ----------
    data
        The directory of all sets.
    part
        ``"test"`` or ``"validation"``, both published.
    history
        Keep only so many items of each judged user's fold-in, drawn with the user's id as seed; None: all.
    attributes
        Read age band, gender, occupation and region too (a column per value).
    """
    folder = data / "cf" / "movielens1m"
    prefix = "val" if part == VALIDATION else "test"
    user, item = _pairs(folder / "train.parquet")
    train_users, rows = np.unique(user, return_inverse=True)
    known, columns = np.unique(item, return_inverse=True)
    train = _matrix(rows, columns, (len(train_users), len(known)))
    fold_in = _lists(*_pairs(folder / f"{prefix}_foldin.parquet"))
    held_out = _lists(*_pairs(folder / f"{prefix}_heldout.parquet"))
    users = np.array(sorted(held_out), dtype=np.int64)
    if history is not None:
        fold_in = {
            user: np.random.default_rng(int(user)).permutation(items)[:history]
            for user, items in fold_in.items()
        }
    lengths = [len(fold_in[user]) for user in users.tolist()]
    histories = _matrix(
        np.repeat(np.arange(len(users)), lengths),
        np.searchsorted(known, np.concatenate([fold_in[user] for user in users.tolist()])),
        (len(users), len(known)),
    )
    relevant = Relevant.from_lists([np.searchsorted(known, held_out[user]) for user in users.tolist()])
    of_train = of_judged = None
    if attributes:
        encoded = _user_attributes(folder / "users.parquet")
        of_train, of_judged = encoded[train_users], encoded[users]
    return MatrixSplit(
        f"movielens1m, {part}" + ("" if history is None else f", history of {history}"),
        Interactions(train, attributes=of_train),
        Interactions(histories, attributes=of_judged),
        sparse.csr_matrix(histories, dtype=np.bool_),
        relevant,
    )


def read_taobao(
    data: Path, part: str = TEST, new_items_only: bool = True, both_sources_only: bool = False
) -> MatrixSplit:
    """Read Taobao's carts (the online source) and orders (the CRM source), one order held out per user.

    Parameters
    ----------
    data
        The directory of all sets.
    part
        ``"test"``: the published hold-out. ``"validation"``: one random order of each user with two or more
        in train, with a fixed seed; the published one is not read.
    new_items_only
        Hide carted items too and leave out users whose held-out item is in their cart; else only bought items
        are hidden.
    both_sources_only
        Judge only users with a cart (all have orders); all are learned from.
    """
    folder = data / "twosource" / "taobao"
    cart_user, cart_item = _pairs(folder / "carts.parquet")
    user, item = _pairs(folder / "orders_train.parquet")
    held_user, held_item = _pairs(folder / "orders_test.parquet")
    shape = tuple(
        1 + max(int(each.max(initial=0)) for each in columns)
        for columns in ((cart_user, user, held_user), (cart_item, item, held_item))
    )
    if part == VALIDATION:
        held = _one_of_two_or_more(user)
        held_user, held_item = user[held], item[held]
        user, item = user[~held], item[~held]
    orders = _matrix(user, item, (shape[0], shape[1]))
    carts = _matrix(cart_user, cart_item, (shape[0], shape[1]))
    hidden = orders
    if new_items_only:
        hidden = sparse.csr_matrix(orders + carts)
        new = np.asarray(carts[held_user, held_item]).ravel() == 0
        held_user, held_item = held_user[new], held_item[new]
    if both_sources_only:
        carted = np.diff(carts.indptr)[held_user] > 0
        held_user, held_item = held_user[carted], held_item[carted]
    mode = "new items only" if new_items_only else "cart items kept"
    if both_sources_only:
        mode += ", users with both sources"
    return _judged_in_train(
        f"taobao, {part}, {mode}", Interactions(orders, carts), hidden, held_user, held_item
    )


def _judged_in_train(
    name: str,
    train: Interactions,
    hidden: sparse.csr_matrix,
    held_user: NDArray[np.int64],
    held_item: NDArray[np.int64],
) -> MatrixSplit:
    held_out = _lists(held_user, held_item)
    users = np.array(sorted(held_out), dtype=np.int64)
    return MatrixSplit(
        name,
        train,
        dataclasses.replace(train.rows(users), users=users),
        sparse.csr_matrix(hidden[users], dtype=np.bool_),
        Relevant.from_lists([held_out[user] for user in users.tolist()]),
    )


def _pairs(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    table = pq.read_table(path, columns=["user_id", "item_id"])
    return table["user_id"].to_numpy().astype(np.int64), table["item_id"].to_numpy().astype(np.int64)


def _lists(user: NDArray[np.int64], item: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """The items of each user, in the order of the file."""
    order = np.argsort(user, kind="stable")
    owners, starts = np.unique(user[order], return_index=True)
    return dict(zip(owners.tolist(), np.split(item[order], starts[1:]), strict=True))


def _matrix(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1  # a pair that stands twice counts once
    return matrix


def _random_order_within(user: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A random rank of each row within its user, from 0, and the user's number of rows."""
    order = np.lexsort((np.random.default_rng(_SEED).random(len(user)), user))
    _, starts, counts = np.unique(user[order], return_index=True, return_counts=True)
    rank = np.empty(len(user), dtype=np.int64)
    rank[order] = np.arange(len(user)) - np.repeat(starts, counts)
    total = np.empty(len(user), dtype=np.int64)
    total[order] = np.repeat(counts, counts)
    return rank, total


def _random_fifth(user: NDArray[np.int64]) -> NDArray[np.bool_]:
    rank, total = _random_order_within(user)
    return np.asarray(rank < np.minimum(np.round(total * 0.2), total - 1))


def _one_of_two_or_more(user: NDArray[np.int64]) -> NDArray[np.bool_]:
    rank, total = _random_order_within(user)
    return np.asarray((rank == 0) & (total >= 2))


def _user_attributes(path: Path) -> sparse.csr_matrix:
    """A row for each user id up to the largest, a column for each value of each attribute."""
    table = pq.read_table(path)
    user = table["user_id"].to_numpy().astype(np.int64)
    values = {name: table[name].to_pylist() for name in ("gender", "age", "occupation")}
    values["region"] = [code[:1] for code in table["zip"].to_pylist()]
    blocks = []
    for of_users in values.values():
        _, codes = np.unique(np.array(of_users), return_inverse=True)
        blocks.append(_matrix(user, codes, (int(user.max()) + 1, int(codes.max()) + 1)))
    return sparse.csr_matrix(sparse.hstack(blocks))


def require_data(data: Path, *names: str) -> None:
    """End the program with code 2 and a message where a file of the set is absent."""
    absent = [data / name for name in names if not (data / name).is_file()]
    if absent:
        print(
            f"the data are not there: {absent[0]} is absent. Name the directory of the published splits with "
            "--data; docs/benchmarks.md says what it holds.",
            file=sys.stderr,
        )
        raise SystemExit(2)
