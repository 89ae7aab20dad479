"""Headers by which a browser objects: Global Privacy Control (Sec-GPC) and Do Not Track.

Both can only say no. A header that is absent says nothing, and nothing that a header says grants anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from consentier.consent.records import PERMISSIONS
from consentier.consent.signals.reading import Decision, Signal, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["DNT", "GPC", "HeaderSettings"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSettings(SignalSettings):
    """What a browser's no is taken to refuse.

    Attributes
    ----------
    lowers
        The permissions that the header denies. GPC is about selling and sharing data, and whether it speaks
        about a shop's own recommendations is for the shop's counsel to say: by default it does.
    """

    lowers: frozenset[str] = frozenset({"online", "ads", "fusion"})

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        lowers: object = self.lowers
        if isinstance(lowers, str):
            raise TypeError("lowers must be a set of permissions, not one string")
        object.__setattr__(self, "lowers", frozenset(self.lowers))
        unknown = self.lowers - PERMISSIONS
        if unknown:
            raise ValueError(f"lowers names unknown permissions: {', '.join(sorted(map(repr, unknown)))}")


def _header(name: str, payload: Any) -> Any:
    """The header's value: from all headers of a request, or as it is given. Empty where it is absent."""
    if payload is None:
        return ""
    if not isinstance(payload, Mapping):
        return payload
    return ",".join(_text(value) for key, value in payload.items() if _header_name(_text(key)) == name)


def _header_name(key: str) -> str:
    """The name in HTTP's own form; WSGI writes ``HTTP_SEC_GPC``."""
    return key.lower().replace("_", "-").removeprefix("http-")


def _text(value: object) -> str:
    """Text of a name or a value; ASGI gives both as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise SignalError(f"a header is a {type(value).__name__}, no text")
    return value


def _decisions(
    name: str, silent: frozenset[str], text: str, context: SignalContext[HeaderSettings]
) -> Iterable[Decision]:
    """Deny if any value of the header is 1, and if any is neither 1 nor known to say nothing."""
    values = {value.strip() for value in text.split(",")} - silent
    if not values:
        return []
    if "1" not in values:
        raise SignalError(f"the header {name} has a value that it may not have")
    return [
        Decision(permission=permission, state="denied", reason=f"{name}: 1")
        for permission in sorted(context.settings.lowers)
    ]


def _read_gpc(text: str, context: SignalContext[HeaderSettings]) -> Iterable[Decision]:
    return _decisions("Sec-GPC", frozenset({"", "0"}), text, context)


def _read_dnt(text: str, context: SignalContext[HeaderSettings]) -> Iterable[Decision]:
    return _decisions("DNT", frozenset({"", "0", "null", "unspecified"}), text, context)


def _lowered(settings: HeaderSettings) -> frozenset[str]:
    return settings.lowers


GPC = Signal(
    kind="gpc",
    settings=HeaderSettings,
    decides=_lowered,
    read=_read_gpc,
    structured=False,
    only_lowers=True,
    relevant=lambda payload: _header("sec-gpc", payload),
)
"""The header ``Sec-GPC``: its value, or a mapping of all headers. Only 1 says anything (W3C GPC)."""

DNT = Signal(
    kind="dnt",
    settings=HeaderSettings,
    decides=_lowered,
    read=_read_dnt,
    structured=False,
    only_lowers=True,
    relevant=lambda payload: _header("dnt", payload),
)
"""The header ``DNT``: 1 asks not to be tracked, 0 allows it, which grants nothing here."""
