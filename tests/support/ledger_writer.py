"""A process that appends to a ledger, batch after batch, and says after each that it was acknowledged.

    python ledger_writer.py URL NAME BATCHES SIZE

Batch b of NAME holds SIZE records, NAME/b/0 and so on: the same, whoever writes it.
"""

from __future__ import annotations

import datetime as dt
import sys

from consentier.consent import ConsentRecord, Ledger

__all__ = ["AT", "batch"]

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def batch(name: str, number: int, size: int) -> list[ConsentRecord]:
    """The records of one batch."""
    ids = (f"{name}/{number}/{each}" for each in range(size))
    return [ConsentRecord(name, name, "visitor", "online", "granted", AT, AT) for name in ids]


def main(url: str, name: str, batches: str, size: str) -> None:
    """Append, and print the number of each batch once it was acknowledged."""
    with Ledger.open(url) as ledger:
        for number in range(int(batches)):
            ledger.append(batch(name, number, int(size)))
            print(number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
