from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from consentier.models.gram import gram_statistics
from consentier.models.item_index import ItemIndex
from consentier.models.statistics import (
    Fingerprints,
    Statistics,
    StatisticsError,
    read_statistics,
    write_statistics,
)

KEY = bytes(range(16))


def prints(**rows: int) -> Fingerprints:
    """Fingerprints of persons p1, p2, … whose names hash to their numbers."""
    persons = np.array([int(name[1:]) for name in rows], dtype=np.uint64)
    return Fingerprints(KEY, persons, np.array(list(rows.values()), dtype=np.uint64))


def statistics(min_persons: int = 2) -> Statistics:
    histories = sparse.csr_matrix([[1.0, 1, 0], [0, 1, 1], [1, 1, 0]])
    return Statistics(
        items=ItemIndex.from_ids(["a", "b", "ü"]),
        counts={"persons": np.array([2, 3, 1])},
        gram=gram_statistics(histories, row_exponent=0.25, min_persons=min_persons, threads=1),
        attributes={"region": {"": 1, "north": 2}, "age": {0.1: 1, 30.0: 2}, "empty": {}},
        fingerprints=prints(p1=11, p2=2**64 - 1),
        devices=np.array([5], dtype=np.uint64),
    )


def everything(kept: Statistics) -> list[Any]:
    gram = kept.gram
    return [
        kept.items.ids(np.arange(len(kept.items))),
        {name: counts.tolist() for name, counts in kept.counts.items()},
        None if gram is None else (gram.digest(), gram.row_exponent, gram.min_persons, gram.truncated),
        [(name, list(counts.items())) for name, counts in kept.attributes.items()],
        kept.fingerprints.key,
        kept.fingerprints.persons.tolist(),
        kept.fingerprints.rows.tolist(),
        kept.devices.tolist(),
    ]


@pytest.mark.parametrize("min_persons", [1, 2])
def test_what_is_read_is_what_was_written(tmp_path: Path, min_persons: int) -> None:
    path = tmp_path / "deep" / "crm"
    write_statistics(path, statistics(min_persons), bundle_digest="sha256:1", facts={"cutoff": None})
    kept = read_statistics(path)
    assert everything(kept.statistics) == everything(statistics(min_persons))
    assert (kept.bundle_digest, kept.facts) == ("sha256:1", {"cutoff": None})
    assert path.stat().st_mode & 0o077 == 0


def test_writing_again_replaces_and_clears_what_an_interrupted_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "crm"
    remnant = tmp_path / ".crm.0123456789abcdef"
    remnant.mkdir()
    (remnant / "persons.npy").write_bytes(b"personal")
    for digest in ("sha256:1", "sha256:2"):
        write_statistics(path, statistics(), bundle_digest=digest, facts={})
    assert read_statistics(path).bundle_digest == "sha256:2"
    assert [each.name for each in tmp_path.iterdir()] == ["crm"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "crm"
    write_statistics(path, statistics(), bundle_digest="sha256:1", facts={})

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StatisticsError, match="no space left"):
        write_statistics(path, statistics(), bundle_digest="sha256:2", facts={})
    assert read_statistics(path).bundle_digest == "sha256:1"
    assert [each.name for each in tmp_path.iterdir()] == ["crm"]


def files() -> list[str]:
    return ["manifest.json", "gram_values.npy", "gram_persons.npy", "counts_persons.npy", "item_ids.npy"]


@pytest.mark.parametrize("name", files())
def test_every_altered_file_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / "crm"
    write_statistics(path, statistics(), bundle_digest="sha256:1", facts={"note": "x"})
    payload = bytearray((path / name).read_bytes())
    for position in range(len(payload)):
        payload[position] ^= 1
        (path / name).write_bytes(bytes(payload))
        with pytest.raises(StatisticsError):
            read_statistics(path)
        payload[position] ^= 1
    (path / name).write_bytes(bytes(payload[:-3]))
    with pytest.raises(StatisticsError):
        read_statistics(path)
    (path / name).unlink()
    with pytest.raises(StatisticsError, match=r"there are none|cannot be read"):
        read_statistics(path)


def test_an_array_of_objects_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "crm"
    write_statistics(path, statistics(), bundle_digest="sha256:1", facts={})
    np.save(path / "persons.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StatisticsError, match=r"persons\.npy was altered"):
        read_statistics(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "crm"
    write_statistics(path, statistics(), bundle_digest="sha256:1", facts={})
    document = json.loads((path / "manifest.json").read_text("utf-8"))
    (path / "manifest.json").write_text(json.dumps({**document, "format": 2}), "utf-8")
    with pytest.raises(StatisticsError, match="format 2 is not read"):
        read_statistics(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_an_alteration_like_others(tmp_path: Path, number: str) -> None:
    path = tmp_path / "crm"
    write_statistics(path, statistics(), bundle_digest="sha256:1", facts={"share": 0.5})
    text = (path / "manifest.json").read_text("utf-8")
    (path / "manifest.json").write_text(text.replace('"share":0.5', f'"share":{number}'), "utf-8")
    with pytest.raises(StatisticsError, match="is malformed"):
        read_statistics(path)


def test_fingerprints_know_who_was_counted_and_with_what() -> None:
    counted = prints(p1=10, p3=30, p5=50)
    assert counted.holds(np.array([1, 2, 5, 9], dtype=np.uint64)).tolist() == [True, False, True, False]
    assert counted.matches(prints(p1=10, p5=50))
    assert counted.matches(prints())
    assert not counted.matches(prints(p1=10, p3=31))  # other rows
    assert not counted.matches(prints(p1=10, p2=20))  # another person
    assert not counted.matches(prints(p9=90))  # beyond all
    after = counted.exchanged(prints(p1=10, p3=30), prints(p2=20, p3=33))
    assert (after.persons.tolist(), after.rows.tolist()) == ([2, 3, 5], [20, 33, 50])
