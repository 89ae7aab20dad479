"""Consent signals: what a browser, a consent manager or a customer data platform says, as consent records.

Each kind has a module with its reader, its settings and its mapping. `read_signal` is the way in.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from consentier.consent.records import ConsentRecord, SubjectKind, microseconds
from consentier.consent.signals.browser import DNT, GPC
from consentier.consent.signals.consent_mode import CONSENT_MODE
from consentier.consent.signals.gpp import GPP
from consentier.consent.signals.onetrust import ONETRUST
from consentier.consent.signals.reading import Signal, SignalContext, records_from
from consentier.consent.signals.rudderstack import RUDDERSTACK
from consentier.consent.signals.salesforce import SALESFORCE
from consentier.consent.signals.segment import SEGMENT
from consentier.consent.signals.shopify import SHOPIFY
from consentier.consent.signals.snowplow import SNOWPLOW
from consentier.consent.signals.tcf import TCF
from consentier.consent.signals.usercentrics import USERCENTRICS
from consentier.consent.signals.xdm import XDM
from consentier.errors import suggestion

__all__ = ["SIGNALS", "read_signal"]

SIGNALS: Mapping[str, Signal[Any]] = MappingProxyType(
    {
        signal.kind: signal
        for signal in (
            TCF,
            GPP,
            GPC,
            DNT,
            CONSENT_MODE,
            SHOPIFY,
            SEGMENT,
            RUDDERSTACK,
            SNOWPLOW,
            SALESFORCE,
            XDM,
            ONETRUST,
            USERCENTRICS,
        )
    }
)
"""Every kind of signal that can be read, by name."""


def read_signal(
    kind: str,
    payload: object,
    *,
    subject_id: str,
    received_at: dt.datetime,
    subject_kind: SubjectKind = "visitor",
    **settings: Any,
) -> list[ConsentRecord]:
    """Turn a consent signal into the records that it amounts to.

    Pure: the same call gives the same records, under the same ids, so a signal may be read and appended any
    number of times. Whatever the payload is (malformed, cut off, over-long, of the wrong type, dated ahead),
    the call returns; what cannot be read becomes a denial of everything that signals of the kind decide, with
    the reason in its evidence.

    Parameters
    ----------
    kind
        One of `SIGNALS`.
    payload
        What was received: text or bytes, or, where the signal is JSON, also the parsed object.
    subject_id, subject_kind
        Whom it concerns.
    received_at
        When it was received. Grants take effect then.
    **settings
        Settings of the kind: see its module, or ``SIGNALS[kind].settings``.

    Returns
    -------
    list of ConsentRecord
        To be appended to the ledger. Empty where the signal says nothing, such as a header that is absent.

    Raises
    ------
    TypeError, ValueError
        If an argument other than the payload is wrong.
    """
    if kind not in SIGNALS:
        raise ValueError(f"there is no kind of signal {kind!r}{suggestion(str(kind), list(SIGNALS))}")
    if not isinstance(subject_id, str):
        raise TypeError(f"subject_id must be a string, not {type(subject_id).__name__}")
    if not subject_id:
        raise ValueError("subject_id is empty")
    if subject_kind not in get_args(SubjectKind):
        raise ValueError(f"subject_kind must be 'visitor' or 'customer', not {subject_kind!r}")
    signal = SIGNALS[kind]
    known = [field.name for field in dataclasses.fields(signal.settings)]
    for name in settings:
        if name not in known:
            raise ValueError(f"signals of kind {kind!r} have no setting {name!r}{suggestion(name, known)}")
    context = SignalContext(subject_id, subject_kind, _in_utc(received_at), signal.settings(**settings))
    return records_from(signal, payload, context)


def _in_utc(received_at: dt.datetime) -> dt.datetime:
    microseconds(received_at)
    try:
        return received_at.astimezone(dt.UTC)
    except OverflowError as error:
        raise ValueError(f"received_at {received_at.isoformat()} lies beyond what UTC can say") from error
