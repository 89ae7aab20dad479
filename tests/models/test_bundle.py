"""Writing and opening bundles: what goes in comes out, and the digest depends on nothing else."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consentier import writing
from consentier.errors import BundleError, BundleMalformed, BundleMissing
from consentier.models import bundle_arrays, bundle_writing
from consentier.models.bundle import (
    FORMAT_VERSION,
    open_bundle,
    read_run,
    verify_bundle,
    write_bundle,
    write_run,
)
from consentier.models.bundle_arrays import check_csr
from consentier.models.item_index import ItemIndex

CUTOFF = datetime(2025, 1, 31, 12, 30, tzinfo=UTC)

ARRAYS: dict[str, np.ndarray] = {
    **ItemIndex.from_ids(["apple", "pear", "plum"]).arrays(),
    "indptr": np.array([0, 2, 2, 3]),
    "indices": np.array([1, 2, 0], dtype=np.int32),
    "data": np.array([0.5, 0.25, 1.0], dtype=np.float32),
}


def write(path: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "tier": "session",
        "sources": ("session",),
        "permission": (),
        "algorithm": "local_ridge",
        "parameters": {"neighbours": 100, "regularisation": 1.5, "nested": {"b": [1, None, True], "a": "é"}},
        "scoring": {"half_life": 3.0},
        "item_count": 3,
        "cutoff": CUTOFF,
        "arrays": ARRAYS,
    }
    return write_bundle(path, **(arguments | changes))


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


dtypes = st.sampled_from(["?", "u1", "i1", "u2", "u4", "u8", "i4", "i8", "f4", "f8"])
orders = st.sampled_from(["<", ">"])
stored_arrays = st.tuples(dtypes, orders).flatmap(
    lambda kind: hnp.arrays(
        np.dtype(kind[0]).newbyteorder(kind[1]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    )
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).map(lambda name: f"x_{name}")
texts = st.text(st.characters(codec="utf-8"), max_size=5)
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(names, stored_arrays, max_size=3), st.dictionaries(texts, json_values, max_size=3))
def test_what_goes_in_comes_out(arrays: dict[str, np.ndarray], parameters: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        digest = write(path, arrays=arrays, parameters=parameters)
        opened = open_bundle(path, expected_digest=digest)
        assert opened.digest == digest
        assert dict(opened.manifest.parameters) == parameters
        assert opened.arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            found = opened.arrays[name]
            assert found.shape == array.shape
            assert found.dtype == array.dtype.newbyteorder("<")
            assert found.tobytes() == array.astype(found.dtype).tobytes()
            np.testing.assert_array_equal(np.load(path / f"{name}.npy", allow_pickle=False), found)
        assert verify_bundle(path) == []


def test_the_manifest_says_what_the_bundle_is(tmp_path: Path) -> None:
    write(tmp_path / "b", tier="fused", sources=["session", "online", "crm"], permission={"online", "crm"})
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.format_version == FORMAT_VERSION == 1
    assert (manifest.tier, manifest.sources) == ("fused", ("crm", "online", "session"))
    assert manifest.permission == ("crm", "online")
    assert (manifest.algorithm, manifest.item_count) == ("local_ridge", 3)
    assert manifest.scoring == {"half_life": 3.0}
    assert manifest.cutoff == "2025-01-31T12:30:00.000000Z"
    entry = manifest.files["data"]
    assert (entry.dtype, entry.shape) == ("<f4", (3,))
    assert entry.bytes == (tmp_path / "b" / "data.npy").stat().st_size == 128 + 12


@pytest.mark.parametrize(
    ("tier", "sources", "permission"),
    [
        ("session", ["session"], []),
        ("online", ["online", "session"], ["online"]),
        ("crm", ["crm"], ["crm"]),
        ("fused", ["crm", "online", "session"], ["crm", "online"]),
        ("popular", [], []),
    ],
)
def test_each_tier_has_one_access(
    tmp_path: Path, tier: str, sources: list[str], permission: list[str]
) -> None:
    write(tmp_path / "b", tier=tier, sources=sources, permission=permission)
    manifest = open_bundle(tmp_path / "b").manifest
    assert (manifest.tier, list(manifest.sources), list(manifest.permission)) == (tier, sources, permission)


def test_arrays_are_read_only_and_mapped(tmp_path: Path) -> None:
    write(tmp_path / "b")
    for array in open_bundle(tmp_path / "b").arrays.values():
        assert type(array) is np.ndarray
        assert isinstance(array.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_the_digest_is_pinned(tmp_path: Path) -> None:
    """A change of this value means a new format version: bundles in registries would not be found again."""
    assert write(tmp_path / "b") == "sha256:ded0e607a6eac3f86d8ece57b0823a13e24b7d9dfbb5cb93645143edffa3acf5"


def test_the_digest_depends_on_content_only(tmp_path: Path) -> None:
    digest = write(tmp_path / "one")
    (tmp_path / "elsewhere").mkdir()
    other = write(
        tmp_path / "elsewhere" / "two",
        arrays=dict(reversed(ARRAYS.items())),
        parameters={"nested": {"a": "é", "b": (1, None, True)}, "regularisation": 1.5, "neighbours": 100},
        cutoff=CUTOFF.astimezone(timezone(timedelta(hours=5))),
    )
    assert other == digest
    assert contents(tmp_path / "one") == contents(tmp_path / "elsewhere" / "two")
    fortran = ARRAYS | {"grid": np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f8")}
    plain = ARRAYS | {"grid": np.arange(6.0).reshape(2, 3)}
    assert write(tmp_path / "three", arrays=fortran) == write(tmp_path / "four", arrays=plain)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {}},
        {"scoring": {"half_life": 3.0000000000000004}},
        {"algorithm": "item_knn"},
        {"cutoff": CUTOFF + timedelta(microseconds=1)},
        {"arrays": ARRAYS | {"data": np.array([0.5, 0.25, 1.0000001], dtype=np.float32)}},
        {"arrays": ARRAYS | {"indices": np.array([1, 2, 0], dtype=np.int64)}},
        {"arrays": ARRAYS | {"more": np.empty(0)}},
    ],
)
def test_every_change_of_content_changes_the_digest(tmp_path: Path, change: dict[str, Any]) -> None:
    assert write(tmp_path / "changed", **change) != write(tmp_path / "original")


def test_run_facts_stand_beside_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "b"
    digest = write(path)
    with pytest.raises(BundleMissing, match=r"run\.json"):
        read_run(path)
    write_run(path, {"created_at": "2025-02-01"})
    write_run(path, {"created_at": "2025-02-02", "metrics": {"ndcg@20": 0.152}})
    assert read_run(path) == {"created_at": "2025-02-02", "metrics": {"ndcg@20": 0.152}}
    assert open_bundle(path, expected_digest=digest).digest == digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_run_facts_must_be_plain_json(tmp_path: Path) -> None:
    write(tmp_path / "b")
    with pytest.raises(ValueError, match=r"facts\['loss'\] is nan"):
        write_run(tmp_path / "b", {"loss": float("nan")})
    with pytest.raises(TypeError, match=r"facts\['when'\]\[0\] is of type datetime"):
        write_run(tmp_path / "b", {"when": [CUTOFF]})  # type: ignore[list-item]
    with pytest.raises(BundleMissing, match="no manifest"):
        write_run(tmp_path / "nothing", {})
    assert not (tmp_path / "b" / "run.json").exists()


# --- Replacing and failing ---------------------------------------------------------------------------


def test_an_existing_bundle_is_replaced_only_on_request(tmp_path: Path) -> None:
    old = write(tmp_path / "b")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(tmp_path / "b", parameters={})
    assert open_bundle(tmp_path / "b").digest == old
    mapped = open_bundle(tmp_path / "b").arrays["data"]
    write_run(tmp_path / "b", {"created_at": "then"})
    new = write(tmp_path / "b", arrays={}, overwrite=True)
    assert open_bundle(tmp_path / "b").digest == new != old
    assert not (tmp_path / "b" / "run.json").exists()
    assert mapped.tolist() == [0.5, 0.25, 1.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_nothing_but_a_bundle_is_ever_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letters").write_text("dear")
    (precious / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds 'letters'"):
        write(precious, overwrite=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileExistsError, match="no bundle"):
        write(empty, overwrite=True)
    write(tmp_path / "b")
    (tmp_path / "link").symlink_to("b")
    with pytest.raises(FileExistsError, match="not a bundle directory"):
        write(tmp_path / "link", overwrite=True)
    assert (precious / "letters").read_text() == "dear"


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can let two directories change places in one step."""
    if not request.param:
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    return bool(request.param)


def calls_to(name: str) -> int:
    """How often a complete replacement calls a function of `os`."""
    count = 0
    original = getattr(os, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return original(*arguments, **options)

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        write(Path(folder) / "b")
        patch.setattr(os, name, counting)
        write(Path(folder) / "b", overwrite=True)
    return count


@pytest.mark.parametrize("name", ["fsync", "rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_failure_at_any_step_leaves_what_was_there(
    tmp_path: Path, name: str, error: BaseException, replacing: bool, exchanges: bool
) -> None:
    steps = calls_to(name)
    assert steps >= (1 if name == "rename" and exchanges else 2)
    original = getattr(os, name)
    for failing in range(1 if name == "rename" and not replacing else steps):
        folder = tmp_path / str(failing)
        folder.mkdir()
        old = write(folder / "b") if replacing else None
        made = 0

        def fail(*arguments: Any, failing: int = failing, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == failing + 1:
                raise error
            return original(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(type(error)):
                write(folder / "b", parameters={}, overwrite=True)
        assert [entry.name for entry in folder.iterdir()] == (["b"] if replacing else [])
        if old is not None:
            assert open_bundle(folder / "b", expected_digest=old).digest == old


def test_a_failure_while_run_facts_are_written_keeps_the_former_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "b")
    write_run(tmp_path / "b", {"run": 1})

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_run(tmp_path / "b", {"run": 2})
    assert read_run(tmp_path / "b") == {"run": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


@pytest.mark.usefixtures("exchanges")
def test_readers_get_one_bundle_or_the_other_while_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "b"
    versions = [{"version": number} for number in range(2)]
    digests = {write(path, parameters=version, overwrite=True) for version in versions}
    stop = threading.Event()
    seen: list[str] = []
    failures: list[BundleError] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(open_bundle(path).digest)
            except BundleError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        write(path, parameters=versions[number % 2], overwrite=True)
        time.sleep(0.002)
    stop.set()
    reader.join()
    assert failures == []
    assert seen
    assert set(seen) <= digests


def test_an_interrupted_replacement_says_where_the_former_bundle_is(tmp_path: Path) -> None:
    write(tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / ".b.0123456789abcdef.replaced")
    with pytest.raises(BundleMissing, match=r"0123456789abcdef\.replaced; rename it back"):
        open_bundle(tmp_path / "b")


# --- Wrong arguments ---------------------------------------------------------------------------------


def too_deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(100):
        value = {"deeper": value}
    return value


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"tier": "gold"}, ValueError, "tier 'gold'"),
        ({"sources": ["crm"]}, ValueError, "declares tier 'session' but sources"),
        ({"permission": ["crm"]}, ValueError, "declares tier 'session' but permission"),
        ({"sources": "session"}, TypeError, "sources must be a sequence"),
        ({"permission": [1]}, TypeError, "permission must hold strings"),
        ({"algorithm": ""}, ValueError, "algorithm"),
        ({"algorithm": 7}, ValueError, "algorithm"),
        ({"parameters": []}, ValueError, "parameters must be an object"),
        ({"parameters": {"a": float("nan")}}, ValueError, r"parameters\['a'\] is nan"),
        ({"parameters": {"a": [float("inf")]}}, ValueError, r"parameters\['a'\]\[0\] is inf"),
        ({"parameters": {1: 2}}, TypeError, "keys must be strings"),
        ({"parameters": {"a": {1, 2}}}, TypeError, "type set"),
        ({"parameters": {"a": np.float32(1)}}, TypeError, "type float32"),
        ({"parameters": {"a": 2**63}}, ValueError, "64-bit"),
        ({"parameters": {"a": "\ud800"}}, ValueError, "surrogate"),
        ({"scoring": too_deep()}, ValueError, "nested deeper"),
        ({"scoring": {"a": "x" * (1 << 20)}}, ValueError, "put large values into arrays"),
        ({"item_count": -1}, ValueError, "item_count"),
        ({"item_count": 2}, ValueError, r"announces 2 items, but item_offsets has the shape \(4,\)"),
        ({"cutoff": datetime(2025, 1, 1)}, ValueError, "no time zone"),
        ({"cutoff": "2025-01-01"}, TypeError, "cutoff must be a datetime"),
        ({"arrays": {"x": [1, 2]}}, TypeError, "array x"),
        ({"arrays": {"x": np.ma.masked_array([1, 2])}}, TypeError, "array x"),
        ({"arrays": {"x": np.array(1.0)}}, ValueError, "array x has 0 dimensions"),
        ({"arrays": {"x": np.zeros((1,) * 5)}}, ValueError, "array x has 5 dimensions"),
        ({"arrays": {"x": np.array([object()])}}, ValueError, "array x has dtype object"),
        ({"arrays": {"x": np.array(["text"])}}, ValueError, "array x has dtype"),
        ({"arrays": {"x": np.zeros(1, np.float16)}}, ValueError, "array x has dtype float16"),
        ({"arrays": {"x": np.zeros(1, np.complex64)}}, ValueError, "array x has dtype complex64"),
        ({"arrays": {"x": np.zeros(1, "M8[s]")}}, ValueError, "array x has dtype"),
        ({"arrays": {"x": np.zeros(1, [("a", "f4")])}}, ValueError, "array x has dtype"),
        ({"arrays": {"../x": np.zeros(1)}}, ValueError, "array name '../x'"),
        ({"arrays": {"X": np.zeros(1)}}, ValueError, "array name 'X'"),
        ({"arrays": {"x" * 65: np.zeros(1)}}, ValueError, "array name"),
        ({"arrays": {1: np.zeros(1)}}, ValueError, "array name 1"),
    ],
)
def test_wrong_arguments_write_nothing(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        write(tmp_path / "b", **change)
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = bundle_writing._write_array

    def fail_on_second(path: Path, array: np.ndarray) -> Any:
        if path.name == "data.npy":
            raise MemoryError
        return original(path, array)

    monkeypatch.setattr(bundle_writing, "_write_array", fail_on_second)
    with pytest.raises(MemoryError):
        write(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


# --- Sparse matrices ---------------------------------------------------------------------------------


@st.composite
def csr_parts(draw: st.DrawFn) -> Any:
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(1, 6))
    mask = draw(hnp.arrays(np.bool_, (rows, columns)))
    indptr = np.concatenate(([0], np.cumsum(mask.sum(axis=1)))).astype(
        draw(st.sampled_from(["i4", "i8", "u8"]))
    )
    indices = np.nonzero(mask)[1].astype(draw(st.sampled_from(["i4", "u4", "i8", "u2"])))
    return indptr, indices, np.ones(indices.size, np.float32), (rows, columns)


# Blocks of a check may end anywhere.
BLOCKS = st.sampled_from([1, 2, 3, 1 << 20])


def checked_in_blocks(size: int, *parts: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_arrays, "_ENTRIES_AT_ONCE", size)
        check_csr(*parts)


@given(csr_parts(), BLOCKS)
def test_every_canonical_matrix_passes(parts: Any, block: int) -> None:
    checked_in_blocks(block, *parts)


@given(csr_parts(), BLOCKS, st.data())
def test_a_matrix_with_one_changed_index_passes_only_if_it_is_still_canonical(
    parts: Any, block: int, data: st.DataObject
) -> None:
    indptr, indices, values, (rows, columns) = parts
    if not indices.size:
        return
    changed = indices.astype(np.int64)
    changed[data.draw(st.integers(0, indices.size - 1))] = data.draw(st.integers(-2, columns + 1))
    bounds = indptr.tolist()
    split = [changed[start:stop].tolist() for start, stop in pairwise(bounds)]
    if all(row == sorted({column for column in row if 0 <= column < columns}) for row in split):
        checked_in_blocks(block, indptr, changed, values, (rows, columns))
    else:
        with pytest.raises(BundleMalformed, match=r"^indices"):
            checked_in_blocks(block, indptr, changed, values, (rows, columns))


@pytest.mark.parametrize(
    ("indptr", "indices", "data", "reason"),
    [
        ([], [], [], "2 rows need 3"),
        ([0, 1], [0], [1.0], "2 rows need 3"),
        ([0, 1, 3], [0, 1], [1.0, 1.0], "runs from 0 to 3; expected 0 to 2"),
        ([1, 1, 2], [0, 1], [1.0, 1.0], "runs from 1"),
        ([0, 3, 2], [0, 1], [1.0, 1.0], "descends at row 1"),
        ([0, 1, 2], [0, 1], [1.0], "1 entries"),
        ([0, 1, 2], [0, 3], [1.0, 1.0], "column 3 in row 1"),
        ([0, 1, 2], [-1, 1], [1.0, 1.0], "column -1 in row 0"),
        ([0, 0, 2], [1, 0], [1.0, 1.0], "row 1 do not ascend"),
        ([0, 0, 2], [1, 1], [1.0, 1.0], "row 1 do not ascend"),
        ([0, 1, 2], [0, 1], [1.0, float("nan")], "nan in row 1"),
        ([0, 1, 2], [0, 1], [float("inf"), 1.0], "inf in row 0"),
    ],
)
def test_a_malformed_matrix_is_named(
    indptr: list[int], indices: list[int], data: list[float], reason: str
) -> None:
    with pytest.raises(BundleMalformed, match=reason):
        check_csr(np.array(indptr, np.int64), np.array(indices, np.int64), np.array(data), (2, 3))


def test_a_matrix_of_the_wrong_type_is_named() -> None:
    with pytest.raises(BundleMalformed, match=r"^indices must be one-dimensional integers, got float64"):
        check_csr(np.array([0, 1]), np.array([0.0]), np.array([1.0]), (1, 1))
    with pytest.raises(BundleMalformed, match=r"^indptr must be one-dimensional"):
        check_csr(np.array([[0, 1]]), np.array([0]), np.array([1.0]), (1, 1))


def test_the_manifest_is_canonical_json(tmp_path: Path) -> None:
    write(tmp_path / "b")
    raw = (tmp_path / "b" / "manifest.json").read_bytes()
    document = json.loads(raw)
    assert raw == json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
