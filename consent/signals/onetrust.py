"""OneTrust: a consent receipt, or a list of receipts of one person (their history).

Which of the shop's purposes a permission needs is a setting. Of a purpose the latest transaction governs, and
a tie refuses. Only ``CONFIRMED`` grants: ``IMPLICIT``, ``PENDING``, ``NO_CHOICE`` and the like are no
consent. ``EXTEND`` and ``CHANGE_PREFERENCES`` say nothing on whether there is one.

A receipt speaks only of the purposes that it lists, so a permission none of whose purposes it lists is left
as it is. Refusing is simpler than granting: a withdrawal of a purpose that the settings do not know refuses
all.

Receipts may arrive late. A grant takes effect when it is received, so one that is older than `longest_delay`
is not taken: it could outrank a withdrawal given since. Set `rely_on_interaction_dates` to read older ones.

Source: developer.onetrust.com, Create Consent Receipts.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from consentier.consent.records import PARENTAL, PERMISSIONS
from consentier.consent.signals.fields import (
    among,
    instant,
    names,
    needed,
    objects,
    refusals,
    require_delay,
)
from consentier.consent.signals.reading import Decision, Signal, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["ONETRUST", "OneTrustSettings"]

_DECIDABLE = PERMISSIONS - {PARENTAL}
_SILENT = frozenset({"EXTEND", "CHANGE_PREFERENCES"})
_WITHDRAWING = frozenset({"WITHDRAWN", "OPT_OUT", "HARD_OPT_OUT", "CANCEL"})
_ALWAYS = dt.datetime.max.replace(tzinfo=dt.UTC)
_TIMES = ("interactionDate", "consentDate", "withdrawnDate")
_PURPOSE_KEYS = ("Id", "Version", "TransactionType", "ExpiryDate")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OneTrustSettings(SignalSettings):
    """How consent receipts are read.

    Attributes
    ----------
    purposes
        For each permission the ids of the purposes that it needs, all of them. Without it nothing is granted.
    unrelated
        Ids of purposes that concern no permission here: withdrawing one of them refuses nothing.
    rely_on_interaction_dates
        Whether a decision takes effect at its ``interactionDate`` (and ``consentDate``), instead of when it
        was received. For shops to whom these dates are evidence, and for reading a history. A refusal is then
        dated to the earliest and to the latest date of the receipts that it rests on.
    longest_delay
        A grant that was older when it arrived is not taken, unless dates are relied on.
    """

    purposes: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    unrelated: Collection[str] = frozenset()
    rely_on_interaction_dates: bool = False
    longest_delay: dt.timedelta = dt.timedelta(hours=1)

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        object.__setattr__(self, "purposes", needed(self.purposes, _DECIDABLE, "purposes"))
        object.__setattr__(self, "unrelated", names(self.unrelated, "unrelated"))
        for permission, ids in self.purposes.items():
            for purpose in ids:
                if purpose in self.unrelated:
                    raise ValueError(f"unrelated names {purpose!r}, which {permission} needs")
        rely: object = self.rely_on_interaction_dates
        if not isinstance(rely, bool):
            raise TypeError(f"rely_on_interaction_dates must be true or false, not {rely!r}")
        require_delay(self.longest_delay)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Transaction:
    """What one receipt says on one purpose.

    Where its two dates differ, a grant counts from the earlier and a refusal from the later: on doubt the
    refusal is the later of the two.
    """

    purpose: str
    latest: dt.datetime
    """Of all dates of the receipt; `_ALWAYS` if it lacks that of the interaction."""
    counts_from: dt.datetime
    at: dt.datetime | None
    until: dt.datetime | None = None
    refusal: str | None = None
    withdraws: bool = False


def _relevant(payload: Any) -> list[dict[str, Any]]:
    """The decisions, without who made them: identifiers, tokens and what else a receipt carries."""
    receipts = objects([payload] if isinstance(payload, dict) else payload, "the payload")
    if not receipts or not all(receipt.get("purposes") for receipt in receipts):
        raise SignalError("there is no receipt, or one without purposes")
    return [
        {
            **{name: receipt[name] for name in (*_TIMES, "test") if name in receipt},
            "purposes": [
                {key: purpose[key] for key in _PURPOSE_KEYS if key in purpose}
                for purpose in objects(receipt.get("purposes"), "purposes")
            ],
        }
        for receipt in receipts
    ]


def _read(payload: Any, context: SignalContext[OneTrustSettings]) -> Iterable[Decision]:
    transactions = [found for receipt in payload for found in _transactions(receipt, dated=len(payload) > 1)]
    governing: dict[str, _Transaction] = {}
    for found in transactions:
        governing[found.purpose] = max(
            governing.get(found.purpose, found),
            found,
            key=lambda each: (each.counts_from, each.refusal is not None),
        )
    settings = context.settings
    known = frozenset[str]().union(settings.unrelated, *settings.purposes.values())
    unknown = [found for found in governing.values() if found.withdraws and found.purpose not in known]
    for permission in sorted(_decides(settings)):
        again_at = _taken_back(permission, transactions, settings)
        if unknown:
            yield from _refused(permission, unknown, "withdrawn, and not known to the settings", again_at)
        else:
            yield from _decision(permission, governing, again_at, context)


def _taken_back(
    permission: str, transactions: Iterable[_Transaction], settings: OneTrustSettings
) -> dt.datetime | None:
    """To when a refusal is dated again, where dates are relied on; None: to its receipt.

    A grant is dated to the last of its dates, so a refusal of the same purposes must come no earlier than the
    last of all dates, whatever it says itself. Where a purpose or a date is missing, that is not known.
    """
    purposes = frozenset(settings.purposes.get(permission, ()))
    found = [each for each in transactions if each.purpose in purposes or each.withdraws]
    if not settings.rely_on_interaction_dates or not purposes <= {each.purpose for each in found}:
        return None
    latest = max((each.latest for each in found), default=_ALWAYS)
    return None if latest == _ALWAYS else latest


def _decision(
    permission: str,
    governing: Mapping[str, _Transaction],
    again_at: dt.datetime | None,
    context: SignalContext[OneTrustSettings],
) -> Iterable[Decision]:
    """What the governing transactions of its purposes say on a permission; nothing if there are none."""
    purposes = context.settings.purposes.get(permission, frozenset())
    concerned = [governing[purpose] for purpose in sorted(purposes) if purpose in governing]
    refusing = [found for found in concerned if found.refusal is not None]
    if refusing:
        return _refused(permission, refusing, refusing[0].refusal or "", again_at)
    if not concerned:
        return []
    if len(concerned) < len(purposes):
        return refusals(permission, "not all purposes that it needs are confirmed")
    return _granted(permission, concerned, context)


def _granted(
    permission: str, transactions: Sequence[_Transaction], context: SignalContext[OneTrustSettings]
) -> Iterator[Decision]:
    """Grant from when the last purpose was confirmed until the first expires, if that is no old news."""
    rely = context.settings.rely_on_interaction_dates
    at = max((found.at for found in transactions if found.at is not None), default=None)
    if at is not None and not rely and context.received_at - at > context.settings.longest_delay:
        return
    until = min((found.until for found in transactions if found.until is not None), default=None)
    yield Decision(permission=permission, state="granted", at=at, at_is_proven=rely, until=until)


def _refused(
    permission: str, transactions: Sequence[_Transaction], reason: str, again_at: dt.datetime | None
) -> list[Decision]:
    at = min((found.at for found in transactions if found.at is not None), default=None)
    state = "withdrawn" if any(found.withdraws for found in transactions) else "denied"
    reason = f"purpose {transactions[0].purpose!r}: {reason}"
    return refusals(permission, reason, at=at, again_at=again_at, state=state)


def _transactions(receipt: dict[str, Any], *, dated: bool) -> Iterator[_Transaction]:
    """Read one receipt. In a history each must be dated, or no transaction could be the latest."""
    if receipt.get("test") not in (None, False):
        raise SignalError("a test receipt")
    interaction, consent, withdrawal = (instant(receipt.get(name), name) for name in _TIMES)
    given = [time for time in (interaction, consent) if time is not None]
    if dated and not given:
        raise SignalError("a receipt of a history has no interactionDate")
    withdrawn = withdrawal if withdrawal is not None and (not given or withdrawal >= min(given)) else None
    dates = [*given, *([] if withdrawn is None else [withdrawn])]
    latest = _ALWAYS if interaction is None else max(dates)
    for purpose in receipt["purposes"]:
        identifier = purpose.get("Id")
        if not isinstance(identifier, str) or not identifier:
            raise SignalError("a purpose has no Id")
        until = instant(purpose.get("ExpiryDate"), "ExpiryDate")
        kind = purpose.get("TransactionType")
        if withdrawn is not None:
            yield _withdrawal(identifier, "withdrawnDate is set", [withdrawn], latest)
        elif among(kind, _WITHDRAWING):
            yield _withdrawal(identifier, "withdrawn", given, latest)
        elif kind == "CONFIRMED":
            yield _Transaction(
                purpose=identifier,
                latest=latest,
                counts_from=min(given, default=_ALWAYS),
                at=max(given, default=None),
                until=until,
            )
        elif not among(kind, _SILENT):
            yield _Transaction(
                purpose=identifier,
                latest=latest,
                refusal="TransactionType is not CONFIRMED",
                counts_from=max(given, default=_ALWAYS),
                at=min(given, default=None),
            )


def _withdrawal(purpose: str, reason: str, times: Sequence[dt.datetime], latest: dt.datetime) -> _Transaction:
    return _Transaction(
        purpose=purpose,
        latest=latest,
        refusal=reason,
        withdraws=True,
        counts_from=max(times, default=_ALWAYS),
        at=min(times, default=None),
    )


def _decides(settings: OneTrustSettings) -> frozenset[str]:
    return frozenset(settings.purposes) or frozenset({"online", "crm"})


ONETRUST = Signal(
    kind="onetrust",
    settings=OneTrustSettings,
    decides=_decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""Consent receipts of OneTrust's."""
