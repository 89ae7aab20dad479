"""Item ids of a bundle: strings outside, integers inside.

The ids stand sorted by their UTF-8 bytes in one blob, with an array of offsets beside it. Both arrays can be
memory-mapped, so that a million items open in milliseconds and the processes of one machine share the pages.
There is no dictionary: a look-up is a binary search, first in a list of every 16th id, then in the mapped
bytes between two of these.
"""

from __future__ import annotations

import bisect
import codecs
import contextlib
import operator
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from consentier.errors import BundleMalformed

__all__ = ["MAX_ID_BYTES", "ItemIndex"]

#: Longest item id, in UTF-8 bytes.
MAX_ID_BYTES = 1024

_CHUNK_BYTES = 1 << 20

# A step over mapped bytes costs Python some tenths of a microsecond; all those in a list together cost that.
_FENCE_STEP = 16

_Number = TypeVar("_Number", np.uint8, np.int64)


class ItemIndex:
    """An immutable, sorted set of item ids: position ``i`` is the item's integer in every array of a bundle.

    Parameters
    ----------
    blob
        uint8, shape (b,): the ids as UTF-8, one after the other without separators.
    offsets
        int64, shape (n + 1,): id ``i`` is ``blob[offsets[i]:offsets[i + 1]]``.
    verify
        Check everything: UTF-8, no NUL, strictly ascending by bytes (hence unique). False checks the offsets
        only, for arrays whose content was verified before. A look-up stays within the blob either way.

    Raises
    ------
    TypeError
        `blob` or `offsets` is not an array.
    BundleMalformed
        The arrays are not an item index; the message names the item.

    Notes
    -----
    Opening reads the offsets (8 bytes an item); with `verify` also the blob, in O(b) time and about 200 bytes
    of temporary memory an item. Memory afterwards: that of the two arrays, which are not copied; from the
    first look-up on, which reads every 16th id, some 4 bytes an item more. `models.item_lookup` looks up many
    at once.

    No id contains NUL, so shorter ids can be compared as if they were padded with zeros. UTF-8 bytes sort
    as code points do, so the order is that of Python's ``sorted`` on strings.
    """

    __slots__ = ("_blob", "_blob_view", "_fences", "_offsets", "_offsets_view")

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64], *, verify: bool = True) -> None:
        _check_arrays(blob, offsets)
        # A slice of np.memmap costs microseconds, one of a memoryview over a plain view a fraction of one.
        self._blob: NDArray[np.uint8] = _read_only(blob)
        self._offsets: NDArray[np.int64] = _read_only(offsets.astype(np.int64, copy=False))
        self._blob_view = self._blob.data
        self._offsets_view = self._offsets.data
        _check_offsets(self._offsets, self._blob.size)
        if verify:
            _check_text(self._blob, self._offsets)
            _check_ascending(self._blob, self._offsets)
        self._fences: list[bytes] | None = None

    def _every(self, step: int) -> list[bytes]:
        starts, ends = self._offsets[:-1:step].tolist(), self._offsets[1::step].tolist()
        return [bytes(self._blob_view[start:end]) for start, end in zip(starts, ends, strict=True)]

    @classmethod
    def from_ids(cls, ids: Iterable[str]) -> ItemIndex:
        """Sort the ids and drop duplicates.

        Raises
        ------
        TypeError
            An id is not a string.
        ValueError
            An id is empty, longer than `MAX_ID_BYTES` bytes, or holds NUL or a lone surrogate.
        """
        if isinstance(ids, str):
            raise TypeError("ids must be an iterable of item ids, got a single string; put it into a list")
        unique = set(ids)
        for item_id in unique:
            if not isinstance(item_id, str):
                raise TypeError(
                    f"an item id must be a string, got {item_id!r} of type {type(item_id).__name__}"
                )
        encoded = [_encode(item_id) for item_id in sorted(unique)]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets, verify=False)

    def index(self, item_id: str) -> int:
        """Return the integer of an item, or -1 where the index does not hold it.

        O(log n): about two microseconds among 1,000,000 items.

        Raises
        ------
        TypeError
            `item_id` is not a string.
        """
        if not isinstance(item_id, str):
            raise TypeError(f"an item id must be a string, got {type(item_id).__name__}")
        try:
            key = item_id.encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate: no id holds one
            return -1
        blob, offsets = self._blob_view, self._offsets_view
        fences = self._fences
        if fences is None:
            fences = self._fences = self._every(_FENCE_STEP)
        high = _FENCE_STEP * bisect.bisect_right(fences, key)
        low, high = max(0, high - _FENCE_STEP), min(high, len(offsets) - 1)
        while low < high:
            middle = (low + high) >> 1
            candidate = blob[offsets[middle] : offsets[middle + 1]].tobytes()
            if candidate < key:
                low = middle + 1
            elif candidate == key:
                return middle
            else:
                high = middle
        return -1

    def indices(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the integer of each item (int64, in the order of `item_ids`), -1 for the unknown ones."""
        if isinstance(item_ids, str):
            raise TypeError("item_ids must be an iterable of item ids, got a single string")
        return np.fromiter(map(self.index, item_ids), dtype=np.int64)

    def id(self, index: int) -> str:
        """Return the id of an item.

        Raises
        ------
        IndexError
            `index` is outside ``[0, len(self))``; negative ones do not count from the end, since -1 means
            "unknown" in `index`.
        BundleMalformed
            The id is not UTF-8 (possible only where `verify` was False).
        """
        position = operator.index(index)
        if not 0 <= position < len(self):
            raise IndexError(f"item {position} is outside the index of {len(self)} items")
        start, stop = self._offsets_view[position], self._offsets_view[position + 1]
        try:
            return str(self._blob_view[start:stop], "utf-8")
        except UnicodeDecodeError:  # only where the content was never verified
            raise BundleMalformed(f"item_ids is not valid UTF-8 in item {position}") from None

    def ids(self, indices: NDArray[np.integer]) -> list[str]:
        """Return the ids of an array of items; IndexError as in `id`."""
        numbers = np.asarray(indices).tolist()
        if numbers and min(numbers) >= 0 and max(numbers) < len(self):
            blob, offsets = self._blob_view, self._offsets_view
            with contextlib.suppress(UnicodeDecodeError):  # told below, with the item
                return [str(blob[offsets[number] : offsets[number + 1]], "utf-8") for number in numbers]
        return [self.id(number) for number in numbers]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays under their names in a bundle: ``item_ids`` and ``item_offsets``."""
        return {"item_ids": self._blob, "item_offsets": self._offsets}

    def __len__(self) -> int:
        return len(self._offsets_view) - 1

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and self.index(item_id) >= 0

    def __repr__(self) -> str:
        return f"ItemIndex({len(self)} items)"


def _encode(item_id: str) -> bytes:
    try:
        text = item_id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"item id {item_id!r} holds a lone surrogate at character {error.start}: it is not Unicode text; "
            "decode the source with its true encoding"
        ) from None
    if not text:
        raise ValueError("an item id is empty; give every item an id")
    if len(text) > MAX_ID_BYTES:
        raise ValueError(
            f"item id {item_id[:40]!r}… has {len(text)} bytes; at most {MAX_ID_BYTES} are allowed"
        )
    if b"\0" in text:
        raise ValueError(f"item id {item_id!r} holds a NUL character; remove it")
    return text


def _read_only(array: NDArray[_Number]) -> NDArray[_Number]:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _check_arrays(blob: object, offsets: object) -> None:
    for name, array, dtype in (("item_ids", blob, "uint8"), ("item_offsets", offsets, "int64")):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
        if array.ndim != 1 or array.dtype.newbyteorder("=") != np.dtype(dtype):
            raise BundleMalformed(
                f"{name} must be one-dimensional {dtype}, got {array.dtype} of shape {array.shape}; "
                "write the bundle again"
            )
        if not array.flags.c_contiguous:
            raise BundleMalformed(f"{name} must be contiguous; write the bundle again")


def _check_offsets(offsets: NDArray[np.int64], size: int) -> None:
    if not offsets.size or offsets[0] != 0 or offsets[-1] != size:
        ends = f"run from {offsets[0]} to {offsets[-1]}" if offsets.size else "are empty"
        raise BundleMalformed(f"item_offsets {ends}, expected 0 to {size}, the length of item_ids")
    # Compared, not subtracted: a difference of hostile values could wrap around.
    (bad,) = np.nonzero(offsets[1:] <= offsets[:-1])
    if bad.size:
        raise BundleMalformed(f"item_offsets do not ascend at item {bad[0]}; every id has at least one byte")
    (bad,) = np.nonzero(offsets[1:] - offsets[:-1] > MAX_ID_BYTES)
    if bad.size:
        raise BundleMalformed(f"item_offsets: the id of item {bad[0]} is longer than {MAX_ID_BYTES} bytes")


def _check_text(blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
    """Check that the blob is UTF-8 without NUL and that every id starts at the start of a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, blob.size, _CHUNK_BYTES):
        chunk = blob[start : start + _CHUNK_BYTES].tobytes()
        nul = chunk.find(b"\0")
        if nul >= 0:
            raise BundleMalformed(f"item_ids holds a NUL byte in item {_item_at(offsets, start + nul)}")
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk, final=start + _CHUNK_BYTES >= blob.size)
        except UnicodeDecodeError as error:
            item = _item_at(offsets, start - pending + error.start)
            raise BundleMalformed(f"item_ids is not valid UTF-8 in item {item} ({error.reason})") from None
    (bad,) = np.nonzero((blob[offsets[:-1]] & 0xC0) == 0x80)  # 10xxxxxx continues a character
    if bad.size:
        raise BundleMalformed(f"item_offsets cut a UTF-8 character in two at item {bad[0]}")


def _item_at(offsets: NDArray[np.int64], position: int) -> int:
    return int(np.searchsorted(offsets, position, side="right")) - 1


def _check_ascending(blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
    """Compare neighbours eight bytes at a time; only pairs that are equal so far go on to the next eight."""
    pairs = np.arange(len(offsets) - 2, dtype=np.int64) if len(offsets) > 2 else np.empty(0, dtype=np.int64)
    step = 0
    while pairs.size:
        left = _eight_bytes(blob, offsets, pairs, step)
        right = _eight_bytes(blob, offsets, pairs + 1, step)
        # Both ids at their end (zeros) means equal ids; zeros on one side sort before any byte.
        (bad,) = np.nonzero((left > right) | ((left == right) & (left & 0xFF == 0)))
        if bad.size:
            raise BundleMalformed(
                f"item_ids must ascend by UTF-8 bytes without duplicates, but items {pairs[bad[0]]} and "
                f"{pairs[bad[0]] + 1} do not"
            )
        pairs = pairs[left == right]
        step += 8


def _eight_bytes(
    blob: NDArray[np.uint8], offsets: NDArray[np.int64], items: NDArray[np.int64], step: int
) -> NDArray[np.uint64]:
    """Bytes ``step`` to ``step + 7`` of each id as one big-endian integer, zeros past its end."""
    start, stop = offsets[items] + step, offsets[items + 1]
    packed = np.zeros(items.size, dtype=np.uint64)
    for byte in range(8):
        position = start + byte
        inside = position < stop
        value = np.where(inside, blob[np.minimum(position, blob.size - 1)], np.uint8(0))
        packed = (packed << np.uint64(8)) | value.astype(np.uint64)
    return packed
