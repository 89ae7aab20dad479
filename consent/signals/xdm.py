"""Adobe Experience Platform: the XDM data type "Consents and Preferences", with or without ``xdm:``.

=============  ===========================================================================================
online         ``collect`` and ``personalize.content`` (and ``personalize.any``, where it is stated)
ads            ``collect``, ``share`` and ``adID``: advertising hands data and an advertiser id to others
contact:email  ``marketing.email``, unless ``marketing.any`` refuses
contact:push   ``marketing.push``, unless ``marketing.any`` refuses
=============  ===========================================================================================

Only the value ``y`` grants. The others are refusals (``n``), defaults that nobody chose (``dy``, ``dn``),
open (``p``, ``u``), or legal bases that are not consent (``LI``, ``CT``, ``CP``, ``VI``, ``PI``). ``share``
is about second and third parties, so it says nothing on joining the shop's own data (``fusion``), and there
is no CRM permission in it. What ``idSpecific`` says for any identity can only lower: it is not known which
one is meant. Times serve to date refusals; a conflict is not resolved by the time of ingestion.

Source: experienceleague.adobe.com, XDM, data types, Consents and Preferences; github.com/adobe/xdm,
components/datatypes/consent/consent-preferences.schema.json.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from consentier.consent.signals.fields import among, answers, instant
from consentier.consent.signals.reading import Decision, Signal, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["XDM"]

_NEEDS = {
    "online": (("collect",), ("personalize", "content")),
    "ads": (("collect",), ("share",), ("adID",)),
    "contact:email": (("marketing", "email"),),
    "contact:push": (("marketing", "push"),),
}
_LOWERING = {
    "online": ("personalize", "any"),
    "contact:email": ("marketing", "any"),
    "contact:push": ("marketing", "any"),
}
_NO_REFUSAL = {"personalize": frozenset({"y"}), "marketing": frozenset({"y", "dy", "p", "u"})}
_FIELDS = ("collect", "share", "adID", "personalize", "marketing")


def _relevant(payload: Any) -> dict[str, Any]:
    """The general statement, and the identity-specific ones without the identities."""
    consents = _field(payload, "consents")
    if consents is None:
        raise SignalError("the payload has no consents")
    return {
        "consents": {name: _field(consents, name) for name in _FIELDS},
        "time": _field(_field(consents, "metadata"), "time"),
        "idSpecific": [
            {name: _field(statement, name) for name in _FIELDS}
            for identities in _values(_field(consents, "idSpecific"))
            for statement in _values(identities)
        ],
    }


def _field(value: Any, *path: str) -> Any:
    """The value at a path, whether its names have the prefix or not; None where it is missing or null."""
    for name in path:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise SignalError(f"what should hold {name} is no object")
        prefixed = f"xdm:{name}"
        if name in value and prefixed in value:
            raise SignalError(f"{name} is stated twice, with and without the prefix xdm")
        value = value.get(name, value.get(prefixed))
    return value


def _values(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise SignalError("idSpecific is no map of maps")
    return list(value.values())


def _read(payload: Any, context: SignalContext[SignalSettings]) -> Iterable[Decision]:  # noqa: ARG001
    for permission, paths in _NEEDS.items():
        yield from answers(permission, list(_unmet(payload, permission)), at=_time(payload, paths[-1]))


def _unmet(payload: Any, permission: str) -> Iterator[str]:
    """What a permission needs and one of the statements does not grant."""
    for path in _NEEDS[permission]:
        if _field(payload["consents"], *path, "val") != "y":
            yield f"{'.'.join(path)} is not y"
    lowering = _LOWERING.get(permission)
    for statement in (payload["consents"], *payload["idSpecific"]):
        if lowering is not None and _refuses(_field(statement, *lowering, "val"), _NO_REFUSAL[lowering[0]]):
            yield f"{'.'.join(lowering)} refuses"
    for statement in payload["idSpecific"]:
        for path in _NEEDS[permission]:
            if _refuses(_field(statement, *path, "val"), frozenset({"y"})):
                yield f"{'.'.join(path)} is not y for one identity"


def _refuses(value: Any, accepted: frozenset[str]) -> bool:
    """Whether a value is stated and none of those accepted."""
    return value is not None and not among(value, accepted)


def _time(payload: Any, path: Sequence[str]) -> dt.datetime | None:
    """When it was said: the field's own time, else that of the whole."""
    own = instant(_field(payload["consents"], *path, "time"), f"time of {'.'.join(path)}")
    return own or instant(payload["time"], "metadata.time")


def _decides(_: SignalSettings) -> frozenset[str]:
    return frozenset(_NEEDS)


XDM = Signal(
    kind="xdm",
    settings=SignalSettings,
    decides=_decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""Consents and preferences in XDM."""
