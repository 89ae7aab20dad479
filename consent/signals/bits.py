"""A strict reader for the bit strings of TCF and GPP: it ends in an error where the bits end too early."""

from __future__ import annotations

import datetime as dt

from consentier.errors import SignalError

__all__ = ["BitReader"]

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_BITS = {ord(letter): f"{value:06b}" for value, letter in enumerate(_ALPHABET)}
_LONGEST_FIBONACCI = 24
"""Bits of the largest number that is read: beyond any id in use, and cheap."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class BitReader:
    """The bits of one base64url segment, from left to right, six a character. Final ``=`` are ignored.

    Parameters
    ----------
    text
        The segment.
    name
        What to call it in messages.

    Raises
    ------
    SignalError
        By every method, if a character is not of the alphabet, or fewer bits are left than are asked for.
    """

    def __init__(self, text: str, name: str) -> None:
        text = text.rstrip("=")
        for position, character in enumerate(text):
            if ord(character) not in _BITS:
                raise SignalError(f"{name}: character {position} is none of base64url")
        self._bits = text.translate(_BITS)
        self._position = 0
        self._name = name

    def __len__(self) -> int:
        return len(self._bits)

    def bits(self, count: int, field: str) -> str:
        """The next bits, as characters 0 and 1."""
        end = self._position + count
        if end > len(self._bits):
            raise SignalError(f"{self._name} ends within {field}")
        found = self._bits[self._position : end]
        self._position = end
        return found

    def integer(self, count: int, field: str) -> int:
        """An unsigned integer, its highest bit first."""
        return int(self.bits(count, field), 2)

    def flag(self, field: str) -> bool:
        """One bit."""
        return self.bits(1, field) == "1"

    def numbers(self, count: int, field: str) -> frozenset[int]:
        """The numbers, from 1, of the bits that are set."""
        return frozenset(number for number, bit in enumerate(self.bits(count, field), start=1) if bit == "1")

    def instant(self, field: str) -> dt.datetime:
        """A time: 36 bits, tenths of a second since the Unix epoch."""
        return _EPOCH + dt.timedelta(milliseconds=100 * self.integer(36, field))

    def letters(self, count: int, field: str) -> str:
        """Capital letters, six bits each."""
        values = [self.integer(6, field) for _ in range(count)]
        if max(values) >= 26:
            raise SignalError(f"{self._name}: {field} is no letters")
        return "".join(chr(ord("A") + value) for value in values)

    def fibonacci(self, field: str) -> int:
        """A positive integer in Fibonacci coding, which ends with two ones."""
        value, smaller, larger, before = 0, 1, 2, "0"
        for _ in range(_LONGEST_FIBONACCI):
            bit = self.bits(1, field)
            if bit == before == "1":
                return value
            if bit == "1":
                value += smaller
            smaller, larger, before = larger, smaller + larger, bit
        raise SignalError(f"{self._name}: {field} has a number that is too large")

    def finish(self) -> None:
        """Require that nothing but zeros is left: what pads a segment says nothing."""
        if "1" in self._bits[self._position :]:
            raise SignalError(f"{self._name} goes on where it should end")
