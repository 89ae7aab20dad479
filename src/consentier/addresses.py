"""Addresses of databases and servers, as messages, records and representations may tell them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode

__all__ = ["shown_url", "without_credentials"]

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_PLACES = frozenset({"host", "port", "db"})
"""Options that say where a database is. Any other may hold a password."""


def shown_url(url: str) -> str:
    """A URL without user and password, and with no options but those that say where it leads.

    The path of a file, and the URL of one (``sqlite``, ``file``), stay as they are. Where a user is named,
    all that stands before the last ``@`` goes: an unescaped ``/`` or ``?`` in a password keeps no part of it.
    """
    scheme, separator, place = url.partition("://")
    if not separator:
        before, _, rest = url.rpartition("@")
        return f"…@{rest}" if ":" in before else url  # USER:PASSWORD@HOST is no path
    if scheme.startswith(("sqlite", "file")):
        return url
    where, _, options = place.rpartition("@")[2].partition("?")
    kept = urlencode([option for option in parse_qsl(options) if option[0] in _PLACES], safe="/")
    return f"{scheme}://{where}" + (f"?{kept}" if kept else "")


def without_credentials(text: str, url: str) -> str:
    """What somebody else says, without user and password of a URL, or of others in it."""
    return _CREDENTIALS.sub("", text.replace(url, shown_url(url)))
