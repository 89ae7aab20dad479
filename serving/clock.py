"""What time it is."""

from __future__ import annotations

import datetime as dt

__all__ = ["utc_now"]


def utc_now() -> dt.datetime:
    """The time by this machine's clock, in UTC."""
    return dt.datetime.now(dt.UTC)
