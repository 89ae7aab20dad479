"""Attacks on the bundle format: whatever is done to the files, opening refuses by name and reason.

Two attackers: one changes files but not the manifest's hashes (an accident, a bad disk, a clumsy hand); the
other `forge`s, that is, rewrites the manifest so that it is consistent again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.errors import (
    BundleAltered,
    BundleError,
    BundleMalformed,
    BundleMissing,
    BundleUnsupported,
)
from consentier.models.bundle import open_bundle, read_run, verify_bundle, write_bundle
from consentier.models.item_index import ItemIndex

ARRAYS: dict[str, np.ndarray] = {
    **ItemIndex.from_ids(["apple", "pear", "plum"]).arrays(),
    "indptr": np.array([0, 2, 2, 3]),
    "indices": np.array([1, 2, 0], dtype=np.int32),
    "data": np.array([0.5, 0.25, 1.0], dtype=np.float32),
}
ARRAY_FILES = [f"{name}.npy" for name in sorted(ARRAYS)]


def write(path: Path) -> str:
    return write_bundle(
        path,
        tier="online",
        sources=("online", "session"),
        permission=("online",),
        algorithm="local_ridge",
        parameters={"neighbours": 100},
        scoring={"half_life": 3.0},
        item_count=3,
        cutoff=datetime(2025, 1, 31, tzinfo=UTC),
        arrays=ARRAYS,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "b")
    return tmp_path / "b"


def manifest_of(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
    return document


def put_manifest(path: Path, document: Any) -> None:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (path / "manifest.json").write_bytes(text.encode())


def forge(path: Path, file_name: str, payload: bytes, **entry: Any) -> None:
    """Replace an array file and make the manifest agree with it."""
    (path / file_name).write_bytes(payload)
    document = manifest_of(path)
    hashes = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    document["files"][file_name.removesuffix(".npy")] |= hashes | entry
    put_manifest(path, document)


def forge_array(path: Path, file_name: str, array: np.ndarray) -> None:
    np.save(path / "forged.npy", array)
    payload = (path / "forged.npy").read_bytes()
    (path / "forged.npy").unlink()
    forge(path, file_name, payload, dtype=array.dtype.str, shape=list(array.shape))


def refused(path: Path, names: str, error: type[BundleError] = BundleError, **options: Any) -> None:
    """Opening raises `error` with a message that holds `names`, and so does the full inspection."""
    with pytest.raises(error) as caught:
        open_bundle(path, **options)
    assert names in str(caught.value)
    try:
        findings = verify_bundle(path)
    except BundleError as raised:
        findings = [str(raised)]
    if "expected_digest" not in options:
        assert any(names in finding for finding in findings)


def flipped(payload: bytes, position: int, bit: int = 0) -> bytes:
    changed = bytearray(payload)
    changed[position] ^= 1 << bit
    return bytes(changed)


# --- Changed bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file_name", ARRAY_FILES)
def test_a_flip_of_any_byte_of_an_array_is_refused(path: Path, file_name: str) -> None:
    original = (path / file_name).read_bytes()
    for position in range(len(original)):
        (path / file_name).write_bytes(flipped(original, position, position % 8))
        with pytest.raises(BundleError, match=file_name):
            open_bundle(path)
    (path / file_name).write_bytes(original)
    assert verify_bundle(path) == []


def test_a_flip_of_any_byte_of_the_manifest_is_refused_where_the_digest_is_pinned(tmp_path: Path) -> None:
    digest = write(tmp_path / "b")
    manifest = tmp_path / "b" / "manifest.json"
    original = manifest.read_bytes()
    for position in range(len(original)):
        manifest.write_bytes(flipped(original, position, position % 8))
        with pytest.raises(BundleAltered, match=r"manifest\.json has the digest"):
            open_bundle(tmp_path / "b", expected_digest=digest)
        try:
            unpinned = open_bundle(tmp_path / "b").digest
        except BundleError:
            continue
        assert unpinned != digest  # a consistent manifest, such as another parameter: another bundle


edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 3),
        st.sampled_from([b"", b"-", b"9", b"{", b"]", b'"', b"null", b"\xff", b"1e9", b"\\u"]),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(edits)
def test_no_manifest_makes_opening_fail_in_another_way(edits: list[tuple[float, int, bytes]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "b"
        digest = write(path)
        original = (path / "manifest.json").read_bytes()
        manifest = bytearray(original)
        for where, length, text in edits:
            start = round(where * len(manifest))
            manifest[start : start + length] = text
        (path / "manifest.json").write_bytes(manifest)
        try:
            opened = open_bundle(path)
        except BundleError:  # any other error fails the test
            return
        assert (opened.digest == digest) == (manifest == original)


@pytest.mark.parametrize("file_name", ARRAY_FILES)
@pytest.mark.parametrize("length", [0, 5, 64, 127, 128, -1])
def test_a_cut_array_is_refused(path: Path, file_name: str, length: int) -> None:
    payload = (path / file_name).read_bytes()
    (path / file_name).write_bytes(payload[:length])
    refused(path, file_name, BundleAltered, verify=False)


@pytest.mark.parametrize("file_name", [*ARRAY_FILES, "manifest.json"])
def test_an_extended_file_is_refused(path: Path, file_name: str) -> None:
    with (path / file_name).open("ab") as file:
        file.write(b"\n")
    refused(path, file_name, BundleAltered, verify=False)


def test_exchanged_arrays_are_refused(path: Path) -> None:
    shutil.move(path / "data.npy", path / "kept")
    shutil.move(path / "indices.npy", path / "data.npy")
    shutil.move(path / "kept", path / "indices.npy")
    refused(path, "data.npy has a header (<i4, shape (3,)) that differs", verify=False)


def test_an_array_of_the_same_form_from_another_bundle_is_refused(path: Path) -> None:
    payload = (path / "data.npy").read_bytes()
    (path / "data.npy").write_bytes(payload[:128] + np.float32([1, 2, 3]).tobytes())
    refused(path, "data.npy does not have the SHA-256", BundleAltered)


def test_without_verification_the_payload_is_trusted(path: Path) -> None:
    payload = (path / "data.npy").read_bytes()
    (path / "data.npy").write_bytes(payload[:128] + np.float32([1, 2, 3]).tobytes())
    assert open_bundle(path, verify=False).arrays["data"].tolist() == [1, 2, 3]


# --- Files that are none, too many or too few --------------------------------------------------------


def to_symlink(file: Path) -> None:
    target = file.parent.parent / "target"
    file.rename(target)
    file.symlink_to(target)


def to_dangling_symlink(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def to_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def to_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def to_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def to_socket(file: Path) -> None:
    file.unlink()
    folder = os.open(file.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:  # the short path keeps below the limit of 108 bytes
        server.bind(f"/proc/self/fd/{folder}/{file.name}")
    os.close(folder)


@pytest.mark.parametrize("file_name", ["manifest.json", "run.json", "item_ids.npy", "data.npy"])
@pytest.mark.parametrize(
    "replace", [to_symlink, to_dangling_symlink, to_device, to_pipe, to_directory, to_socket]
)
def test_what_is_not_a_regular_file_is_refused(
    path: Path, file_name: str, replace: Callable[[Path], None]
) -> None:
    if file_name == "run.json":
        (path / file_name).write_text("{}")
    replace(path / file_name)
    refused(path, f"{file_name} is not a regular file", BundleMalformed, verify=False)
    if file_name == "run.json":
        with pytest.raises(BundleMalformed, match=r"run\.json is not a regular file"):
            read_run(path)


@pytest.mark.parametrize(
    "extra", ["code.pkl", "more.npy", ".hidden", "manifest.json~", "run.json.bak", "WEIGHTS.npy", "a\x1b[2J"]
)
def test_an_extra_file_is_refused(path: Path, extra: str) -> None:
    (path / extra).write_bytes(b"")
    refused(path, ascii(extra), BundleMalformed, verify=False)


def test_an_extra_folder_is_refused(path: Path) -> None:
    (path / "folder").mkdir()
    refused(path, "'folder' does not belong to the bundle", BundleMalformed, verify=False)


@pytest.mark.parametrize("file_name", ARRAY_FILES)
def test_a_missing_array_is_refused(path: Path, file_name: str) -> None:
    (path / file_name).unlink()
    refused(path, f"{file_name} is missing", BundleMalformed, verify=False)


def test_a_missing_manifest_is_a_missing_bundle(path: Path) -> None:
    (path / "manifest.json").unlink()
    refused(path, "manifest.json is missing", BundleMissing)


def test_paths_that_are_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "there is no such directory", BundleMissing)
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "not a directory", BundleMissing)
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "loop")


def test_a_half_written_bundle_is_refused_though_complete(tmp_path: Path) -> None:
    partial = tmp_path / ".b.0123456789abcdef.partial"
    write(partial)
    refused(partial, "half-written", BundleMalformed)
    (tmp_path / "link").symlink_to(partial.name)
    refused(tmp_path / "link", "half-written", BundleMalformed)


def test_the_directory_itself_may_be_a_link(path: Path) -> None:
    (path.parent / "current").symlink_to(path.name)
    assert open_bundle(path.parent / "current").digest == open_bundle(path).digest


# --- Pinned digests ----------------------------------------------------------------------------------


def test_another_bundle_is_refused_before_it_is_parsed(path: Path) -> None:
    digest = open_bundle(path).digest
    (path / "manifest.json").write_bytes(b"[" * 100_000)
    refused(path, f"expected {digest}", BundleAltered, expected_digest=digest)


@pytest.mark.parametrize("digest", ["", "sha256:", "md5:" + "0" * 64, "sha256:" + "A" * 64, "0" * 64])
def test_a_malformed_pin_is_a_wrong_argument(path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="expected_digest must be"):
        open_bundle(path, expected_digest=digest)


# --- Hostile manifests -------------------------------------------------------------------------------


def test_a_huge_manifest_is_refused_before_it_is_parsed(path: Path) -> None:
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    refused(path, "manifest.json is larger than 1048576 bytes", BundleMalformed)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "not the JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 500_000, "nested deeper than 32 levels"),
        (b'{"a":' * 170_000, "nested deeper than 32 levels"),
        (b"[" * 40 + b"]" * 40, "nested deeper than 32 levels"),
        (b'{"tier":"online","tier":"fused"}', "the key 'tier' stands twice"),
        (b'{"a":NaN}', "NaN is not a number"),
        (b'{"a":-Infinity}', "-Infinity is not a number"),
        (b'{"a":1e999}', "is inf"),
        (b'{"a":' + b"9" * 10_000 + b"}", "not the JSON"),
        (b'{"a":18446744073709551616}', "64-bit"),
        (b'{"a":"\xff"}', "can't decode"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"\\ud800":1}', "keys must be strings of Unicode text"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{}", "no integer format_version"),
        (b'{"format_version":true}', "no integer format_version"),
    ],
)
def test_a_hostile_document_is_refused(path: Path, raw: bytes, reason: str) -> None:
    (path / "manifest.json").write_bytes(raw)
    refused(path, "manifest.json", BundleMalformed)
    refused(path, reason, BundleMalformed)


def test_many_equal_keys_are_refused_in_linear_time(path: Path) -> None:
    distinct = ",".join(f'"{number}":0' for number in range(90_000))
    (path / "manifest.json").write_text("{" + distinct + ',"89999":0}')
    refused(path, "the key '89999' stands twice", BundleMalformed)


@pytest.mark.parametrize("change", [b" ", b"\n", b"\t"])
def test_a_manifest_in_another_spelling_is_refused(path: Path, change: bytes) -> None:
    raw = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(raw.replace(b",", b"," + change, 1))
    refused(path, "manifest.json is not in canonical form", BundleAltered)


def test_another_format_version_is_unsupported(path: Path) -> None:
    put_manifest(path, {"format_version": 2, "whatever": []})
    refused(path, "format version 2; this release reads 1", BundleUnsupported)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tier": "gold"}, "declares the tier 'gold'"),
        ({"tier": ["online"]}, "declares the tier ['online']"),
        ({"tier": "session"}, "declares tier 'session' but sources ['online', 'session']"),
        ({"sources": ["crm", "online", "session"]}, "declares tier 'online' but sources"),
        ({"sources": ["session", "online"]}, "declares tier 'online' but sources"),
        ({"permission": []}, "declares tier 'online' but permission []"),
        ({"permission": ["crm"]}, "declares tier 'online' but permission ['crm']"),
        ({"permission": "online"}, "declares tier 'online' but permission 'online'"),
        ({"algorithm": "two words"}, "algorithm must be"),
        ({"algorithm": None}, "algorithm must be"),
        ({"parameters": []}, "parameters must be an object"),
        ({"scoring": None}, "scoring must be an object"),
        ({"files": []}, "files must be an object"),
        ({"item_count": -1}, "item_count must be an integer"),
        ({"item_count": 3.0}, "item_count must be an integer"),
        ({"item_count": True}, "item_count must be an integer"),
        ({"item_count": 4}, "announces 4 items, but item_offsets"),
        ({"cutoff": "2025-01-31"}, "cutoff must be a time"),
        ({"cutoff": "2025-01-31T00:00:00+00:00"}, "cutoff must be a time"),
        ({"cutoff": "0001-01-01T00:00:00+14:00"}, "cutoff must be a time"),
        ({"cutoff": "9999-12-31T23:59:59-14:00"}, "cutoff must be a time"),
        ({"cutoff": "2025-02-31T00:00:00.000000Z"}, "cutoff must be a time"),
        ({"cutoff": 0}, "cutoff must be a time"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_a_wrong_field_is_refused(path: Path, changes: dict[str, Any], reason: str) -> None:
    put_manifest(path, manifest_of(path) | changes)
    refused(path, "manifest.json", BundleMalformed)
    refused(path, reason, BundleMalformed)


def test_every_field_is_required(path: Path) -> None:
    complete = manifest_of(path)
    for field in complete.keys() - {"format_version"}:
        put_manifest(path, {key: value for key, value in complete.items() if key != field})
        refused(path, f"manifest.json lacks {field}", BundleMalformed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(({"dtype": dtype}, ".dtype is") for dtype in ("|O", ">f4", "<f2", "<c8", "<M8[s]", "|S4", "|V4")),
        ({"dtype": ["<f4"]}, ".dtype is"),
        ({"dtype": "f4"}, ".dtype is"),
        ({"shape": []}, "must be a list of 1 to 4"),
        ({"shape": [1, 1, 1, 1, 3]}, "must be a list of 1 to 4"),
        ({"shape": 3}, "must be a list of 1 to 4"),
        ({"shape": [-3]}, "must be an integer of at least 0"),
        ({"shape": [3.0]}, "must be an integer of at least 0"),
        ({"shape": [True]}, "must be an integer of at least 0"),
        ({"shape": [2**62]}, "larger than any array"),
        ({"shape": [2**33, 2**33]}, "larger than any array"),
        ({"shape": [0, 2**62]}, "larger than any array"),
        ({"shape": [2**31, 2**31]}, "larger than any array"),
        ({"shape": [4]}, ".bytes is 140; its dtype and shape make 144"),
        ({"bytes": 139}, ".bytes is 139"),
        ({"bytes": "140"}, "must be an integer"),
        ({"sha256": "0" * 63}, ".sha256 must be"),
        ({"sha256": "A" * 64}, ".sha256 must be"),
        ({"sha256": None}, ".sha256 must be"),
        ({"mode": "r"}, "unknown key files['data'].'mode'"),
    ],
)  # fmt: skip
def test_a_wrong_file_entry_is_refused(path: Path, changes: dict[str, Any], reason: str) -> None:
    document = manifest_of(path)
    document["files"]["data"] |= changes
    put_manifest(path, document)
    refused(path, "data", BundleMalformed, verify=False)
    refused(path, reason, BundleMalformed, verify=False)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "a\\b", "..", "", "A", "1a", "a.npy", "a\n", "é", "x" * 65]
)
def test_a_file_name_outside_the_directory_or_pattern_is_refused(path: Path, name: str) -> None:
    document = manifest_of(path)
    document["files"][name] = document["files"].pop("data")
    put_manifest(path, document)
    refused(path, "array names match", BundleMalformed)


# --- Hostile arrays under a consistent manifest ------------------------------------------------------


def npy(header: bytes, payload: bytes, version: bytes = b"\x01\x00") -> bytes:
    padded = header.ljust(128 - 10 - 1) + b"\n"
    return b"\x93NUMPY" + version + len(padded).to_bytes(2, "little") + padded + payload


PAYLOAD = np.float32([0.5, 0.25, 1.0]).tobytes()


@pytest.mark.parametrize(
    ("header", "version", "reason"),
    [
        (b"{'descr': '<f4', 'fortran_order': True, 'shape': (3,), }", b"\x01\x00", "Fortran order"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", b"\x01\x00", "has dtype '|O'"),
        (b"{'descr': '>f4', 'fortran_order': False, 'shape': (3,), }", b"\x01\x00", "has dtype '>f4'"),
        (b"{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }", b"\x01\x00", "<i4, shape (3,)"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }", b"\x01\x00", "shape (1, 3)"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (99,), }", b"\x01\x00", "shape (99,)"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", b"\x02\x00", "does not start with"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,),  }", b"\x01\x00", "does not start with"),
        (b"(" * 117, b"\x01\x00", "does not start with"),
        (b"__import__('os').abort()", b"\x01\x00", "does not start with"),
    ],
)
def test_a_forged_header_is_refused(path: Path, header: bytes, version: bytes, reason: str) -> None:
    forge(path, "data.npy", npy(header, PAYLOAD, version))
    refused(path, "data.npy", BundleMalformed, verify=False)
    refused(path, reason, BundleMalformed, verify=False)


def test_more_arrays_than_a_process_has_file_descriptors_for_are_refused(path: Path) -> None:
    document = manifest_of(path)
    entry = document["files"]["data"]
    document["files"] |= {f"more{number}": entry for number in range(62)}
    put_manifest(path, document)
    refused(path, "lists 67 arrays; at most 64 are allowed", BundleMalformed, verify=False)


def test_a_file_that_is_renamed_into_place_during_the_check_is_never_mapped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = hashlib.file_digest

    def exchange(file: Any, algorithm: str) -> Any:
        found = hashed(file, algorithm)
        name = Path(f"/proc/self/fd/{file.fileno()}").readlink().name
        if name == "data.npy":
            payload = (path / name).read_bytes()
            (path.parent / "other").write_bytes(payload[:128] + np.float32([9, 9, 9]).tobytes())
            (path.parent / "other").rename(path / name)
        return found

    monkeypatch.setattr(hashlib, "file_digest", exchange)
    assert open_bundle(path).arrays["data"].tolist() == [0.5, 0.25, 1.0]
    monkeypatch.undo()
    refused(path, "data.npy does not have the SHA-256", BundleAltered)


def test_a_file_that_is_written_to_during_the_check_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = hashlib.file_digest

    def overwrite(file: Any, algorithm: str) -> Any:
        found = hashed(file, algorithm)
        if Path(f"/proc/self/fd/{file.fileno()}").readlink().name == "indices.npy":
            with (path / "indices.npy").open("r+b") as same:
                same.seek(128)
                same.write(np.int32([9**8, 9**8, 9**8]).tobytes())
            os.utime(path / "indices.npy", ns=(1, 1))  # a clock that stood still would tell nothing
        return found

    monkeypatch.setattr(hashlib, "file_digest", overwrite)
    with pytest.raises(BundleAltered, match=r"indices\.npy was written to while it was read"):
        open_bundle(path)


def test_the_forging_helper_can_make_a_good_file(path: Path) -> None:
    """Otherwise the test above would refuse for another reason than it says."""
    forge(
        path,
        "data.npy",
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", PAYLOAD),
    )
    assert verify_bundle(path) == []


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_no_pickle_is_ever_loaded(path: Path) -> None:
    target = path.parent / "exploded"
    np.save(path / "data.npy", np.array([Bomb(target)], dtype=object), allow_pickle=True)
    payload = (path / "data.npy").read_bytes()
    np.load(path / "data.npy", allow_pickle=True)
    assert target.exists()  # the bomb works
    target.unlink()
    forge(path, "data.npy", payload)
    refused(path, "data", BundleMalformed)
    document = manifest_of(path)
    document["files"]["data"] |= {"dtype": "|u1", "shape": [len(payload) - 128]}
    put_manifest(path, document)
    refused(path, "data.npy has dtype '|O'", BundleMalformed)
    assert not target.exists()


def test_a_huge_sparse_file_is_refused_before_it_is_read(path: Path) -> None:
    with (path / "data.npy").open("r+b") as file:
        file.truncate(1 << 40)
    refused(path, "data.npy has 1099511627776 bytes", BundleAltered)


@pytest.mark.parametrize(
    ("file_name", "array", "reason"),
    [
        ("item_ids.npy", np.frombuffer(b"applepearpea\xff", np.uint8), "UTF-8 in item 2"),
        ("item_ids.npy", np.frombuffer(b"applepearaaaa", np.uint8), "items 1 and 2"),
        ("item_offsets.npy", np.array([0, 5, 9, 99]), "expected 0 to 13"),
        ("item_offsets.npy", np.array([0, 9, 5, 13]), "item_offsets do not ascend"),
        ("item_offsets.npy", np.array([0, 5, 9, 13], np.int32), "item_offsets must be"),
        ("indices.npy", np.array([1, 3, 0]), "indices holds column 3 in row 0"),
        ("indices.npy", np.array([2, 1, 0]), "indices of row 0"),
        ("indices.npy", np.array([1.0, 2.0, 0.0]), "indices must be"),
        ("indptr.npy", np.array([0, 2, 2, 300]), "indptr runs from 0 to 300"),
        ("indptr.npy", np.array([0, 2, -2, 3]), "indptr descends at row 1"),
        ("data.npy", np.array([0.5, np.nan, 1.0], np.float32), "data holds nan in row 0"),
        ("data.npy", np.ones(2, np.float32), "data has 2 entries"),
    ],
)
def test_forged_content_that_would_read_out_of_bounds_is_refused(
    path: Path, file_name: str, array: np.ndarray, reason: str
) -> None:
    forge_array(path, file_name, array)
    refused(path, reason, BundleMalformed)


@pytest.fixture
def of_factors(tmp_path: Path) -> Path:
    factors = np.array([[1, 0], [0, 2], [0, 0], [1, 0]], dtype=np.float32)
    write_bundle(
        tmp_path / "f",
        tier="crm",
        sources=("crm",),
        permission=("crm",),
        algorithm="als",
        parameters={},
        scoring={},
        item_count=3,
        cutoff=datetime(2025, 1, 31, tzinfo=UTC),
        arrays={
            **ItemIndex.from_ids(["apple", "pear", "plum"]).arrays(),
            "factors": factors,
            "factor_gram": np.array([2.0, 4.0]),
        },
    )
    return tmp_path / "f"


@pytest.mark.parametrize(
    ("file_name", "array", "reason"),
    [
        ("factors.npy", np.ones((2, 2), np.float32), "factor_gram is 4.0 for factor 1"),
        ("factors.npy", np.array([[1, 0], [0, 2]], np.float32) * np.sqrt([2, 1]), "factors must be float32"),
        ("factors.npy", np.sqrt(np.array([[2, 0], [0, 4]])).astype(np.float32), "2 rows for 3 items"),
        ("factors.npy", np.ones(4, np.float32), "factors must be float32"),
        ("factors.npy", np.ones((4, 2), np.int32), "factors must be float32"),
        ("factors.npy", np.ones((4, 0), np.float32), "factors must be float32"),
        ("factors.npy", np.full((4, 2), np.nan, np.float32), "factors of row 0"),
        ("factors.npy", np.array([[1, 0], [0, 2], [np.inf, 0], [1, 0]], np.float32), "factors of row 2"),
        ("factor_gram.npy", np.array([2.0, 4.0, 0.0]), "factor_gram must be float64"),
        ("factor_gram.npy", np.array([2.0, 4.0], np.float32), "factor_gram must be float64"),
        ("factor_gram.npy", np.array([2.0, np.nan]), "factor_gram is nan for factor 1"),
        ("factor_gram.npy", np.array([-2.0, 4.0]), "factor_gram is -2.0 for factor 0"),
        ("factor_gram.npy", np.array([2.0, 4.1]), "factor_gram is 4.1 for factor 1"),
    ],
)
def test_forged_factors_are_refused(of_factors: Path, file_name: str, array: np.ndarray, reason: str) -> None:
    assert verify_bundle(of_factors) == []
    forge_array(of_factors, file_name, array)
    refused(of_factors, reason, BundleMalformed)


@pytest.mark.parametrize(
    ("file_name", "array", "reason"),
    [
        ("prior_factors.npy", np.ones((2, 3), np.float32), "prior_factors must be float32 of shape (2, 2)"),
        ("prior_factors.npy", np.ones((2, 2)), "prior_factors must be float32 of shape (2, 2)"),
        ("prior_factors.npy", np.ones(2, np.float32), "prior_factors must be float32 of shape (2, 2)"),
        ("prior_factors.npy", np.ones((0, 2), np.float32), "prior_factors must be float32 of shape (0, 2)"),
        ("prior_factors.npy", np.full((2, 2), np.inf, np.float32), "prior_factors hold a number that is not"),
        ("factors.npy", np.array([[1, 0], [0, 2], [0, 0], [1, 0]], np.float32), "4 rows for 3 items"),
    ],
)
def test_forged_prior_factors_are_refused(
    tmp_path: Path, file_name: str, array: np.ndarray, reason: str
) -> None:
    write_bundle(
        tmp_path / "f",
        tier="crm",
        sources=("crm",),
        permission=("crm",),
        algorithm="spectral",
        parameters={},
        scoring={},
        item_count=3,
        cutoff=datetime(2025, 1, 31, tzinfo=UTC),
        arrays={
            **ItemIndex.from_ids(["apple", "pear", "plum"]).arrays(),
            "factors": np.array([[1, 0], [0, 2], [1, 0]], dtype=np.float32),
            "factor_gram": np.array([2.0, 4.0]),
            "prior_factors": np.ones((2, 2), np.float32),
        },
    )
    assert verify_bundle(tmp_path / "f") == []
    forge_array(tmp_path / "f", file_name, array)
    refused(tmp_path / "f", reason, BundleMalformed)


# --- Inspection and the side-car ---------------------------------------------------------------------


def test_inspection_goes_on_after_a_finding(path: Path) -> None:
    (path / "item_ids.npy").unlink()
    (path / "stray").write_text("")
    forge_array(path, "indices.npy", np.array([1, 3, 0]))
    payload = (path / "item_offsets.npy").read_bytes()
    (path / "item_offsets.npy").write_bytes(flipped(payload, 130))
    findings = verify_bundle(path)
    assert len(findings) == 4
    for name, finding in zip(["stray", "item_ids.npy", "item_offsets.npy", "indices"], findings, strict=True):
        assert name in finding


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"a":NaN}', b'{"a":1,"a":2}', b"[" * 500_000, b"\xff"])
def test_a_damaged_side_car_is_refused_and_does_not_touch_the_bundle(path: Path, raw: bytes) -> None:
    (path / "run.json").write_bytes(raw)
    with pytest.raises(BundleMalformed, match=r"run\.json"):
        read_run(path)
    assert verify_bundle(path) == []


def test_an_unreadable_disk_is_a_bundle_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(BundleError, match="Input/output error"):
        open_bundle(path)
