"""Tiny made-up data in the layout of the published splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_DAY = 86_400.0


def write_published(folder: Path) -> Path:
    """Write every set, and return the folder."""
    rng = np.random.default_rng(3)
    for name in ("diginetica", "retailrocket"):
        _write_sessions(folder / "session" / name, rng)
    _write_pairs(folder / "cf" / "gowalla" / "train.parquet", *_users_items(rng, range(30), 6))
    _write_pairs(folder / "cf" / "gowalla" / "test.parquet", *_users_items(rng, range(30), 2))
    films = folder / "cf" / "movielens1m"
    # Ids are neither contiguous nor ordered by part; every film is in train.
    user, item = _users_items(rng, range(1, 60, 2), 8)
    _write_pairs(films / "train.parquet", np.append(user, [99] * 20), np.append(item, np.arange(20)) * 3)
    for part, users in (("val", range(0, 20, 2)), ("test", range(20, 60, 2))):
        user, item = _users_items(rng, users, 8)
        known = np.arange(len(user)) % 8 < 6
        _write_pairs(films / f"{part}_foldin.parquet", user[known], item[known] * 3)
        _write_pairs(films / f"{part}_heldout.parquet", user[~known], item[~known] * 3)
    ids = np.arange(100)
    users = {
        "user_id": ids,
        "gender": np.where(ids % 2, "F", "M"),
        "age": np.array([1, 18, 25])[ids % 3],
        "occupation": ids % 4,
        "zip": np.char.add((ids % 5).astype(str), "1234"),
    }
    _write(films / "users.parquet", users)
    shop = folder / "twosource" / "taobao"
    _write_pairs(shop / "carts.parquet", *_users_items(rng, range(24), 3))  # the others have no cart
    user, item = _users_items(rng, range(30), 4)
    last = np.arange(len(user)) % 4 == 3
    _write_pairs(shop / "orders_train.parquet", user[~last], item[~last])
    _write_pairs(shop / "orders_test.parquet", user[last], item[last])
    return folder


def _write_sessions(folder: Path, rng: np.random.Generator) -> None:
    lengths = rng.integers(2, 6, 120)
    session = np.repeat(np.arange(120), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    clicks = {
        "session_id": session,
        "item_id": 100 + rng.integers(0, 20, len(session)),
        "pos": position,
        "ts": session * _DAY / 4 + position,
    }
    clicks["item_id"][:20] = 100 + np.arange(20)  # every item is in train
    for name, chosen in (("train", session < 100), ("test", session >= 100)):
        _write(folder / f"{name}.parquet", {column: values[chosen] for column, values in clicks.items()})


def _users_items(rng: np.random.Generator, users: range, each: int) -> tuple[np.ndarray, np.ndarray]:
    items = [rng.permutation(20)[:each] for _ in users]
    return np.repeat(np.array(users), each), np.concatenate(items)


def _write_pairs(path: Path, user: np.ndarray, item: np.ndarray) -> None:
    _write(path, {"user_id": user.astype(np.int32), "item_id": item.astype(np.int32)})


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
