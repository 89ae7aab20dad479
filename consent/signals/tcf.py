"""TC strings of the IAB Europe Transparency and Consent Framework, v2.2 and v2.3.

The decoder is strict: a string that ends early, goes on too long, or contradicts itself is refused as a
whole.
(Decoders exist that read the bits a truncated string does not have as consent to every purpose.)

Format: IAB Tech Lab, "Consent string and vendor list formats v2". Policies: IAB Europe TCF Policies.
"""

from __future__ import annotations

import calendar
import dataclasses
import datetime as dt
import re
from collections.abc import Iterable, Iterator

from consentier.consent.signals.bits import BitReader
from consentier.consent.signals.reading import (
    CLOCK_SKEW,
    MAX_CHARACTERS,
    Decision,
    Signal,
    SignalContext,
    SignalSettings,
)
from consentier.errors import SignalError

__all__ = [
    "TCF",
    "PublisherPurposes",
    "Restriction",
    "TCString",
    "TcfSettings",
    "VendorIds",
    "decode",
    "tcf_decisions",
]

POLICIES = range(2, 6)
"""Versions of the TCF policies under which a string is read. 4 is TCF v2.2, 5 is v2.3."""

MAXIMUM_AGE_MONTHS = 13
"""After so long users are to be asked again, so an older string grants nothing (TCF Policies)."""

_PURPOSES = 24
_CONSENT_ONLY = frozenset({3, 4, 5, 6})
"""Purposes for which legitimate interest was abolished in TCF v2.2."""

_REQUIRE_CONSENT = 1

_ONLINE = frozenset({1, 5, 6})
_ADS = frozenset({3, 4})


@dataclasses.dataclass(frozen=True, slots=True)
class VendorIds:
    """A set of vendor ids, kept as ascending, separate ranges (both ends included)."""

    ranges: tuple[tuple[int, int], ...] = ()

    def __contains__(self, vendor_id: int) -> bool:
        return any(start <= vendor_id <= end for start, end in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for start, end in self.ranges:
            yield from range(start, end + 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Restriction:
    """A publisher's restriction of some vendors on one purpose.

    `kind` is 0 (not allowed), 1 (consent required), 2 (legitimate interest required) or 3 (undefined).
    """

    purpose: int
    kind: int
    vendors: VendorIds


@dataclasses.dataclass(frozen=True, slots=True)
class PublisherPurposes:
    """The Publisher TC segment: what the user permitted the publisher itself."""

    consents: frozenset[int]
    legitimate_interests: frozenset[int]
    custom_consents: frozenset[int]
    custom_legitimate_interests: frozenset[int]


@dataclasses.dataclass(frozen=True, slots=True)
class TCString:
    """What a TC string says.

    Attributes
    ----------
    created, last_updated
        Since TCF v2.2 the same, and the start of a day in UTC.
    purpose_consents, purpose_legitimate_interests
        Numbers of purposes, 1 to 24. Legitimate interest in purposes 3 to 6 is left out from policy 4 on.
    purpose_one_treatment
        Purpose 1 was *not* disclosed, because the publisher's country does not ask for it.
    disclosed_vendors, allowed_vendors, publisher
        The optional segments. None: the string does not have it.
    """

    created: dt.datetime
    last_updated: dt.datetime
    cmp_id: int
    cmp_version: int
    consent_screen: int
    consent_language: str
    vendor_list_version: int
    policy_version: int
    service_specific: bool
    non_standard_texts: bool
    special_feature_opt_ins: frozenset[int]
    purpose_consents: frozenset[int]
    purpose_legitimate_interests: frozenset[int]
    purpose_one_treatment: bool
    publisher_country: str
    vendor_consents: VendorIds
    vendor_legitimate_interests: VendorIds
    restrictions: tuple[Restriction, ...]
    disclosed_vendors: VendorIds | None = None
    allowed_vendors: VendorIds | None = None
    publisher: PublisherPurposes | None = None


def decode(text: str) -> TCString:
    """Decode a TC string of version 2, strictly.

    Nothing is decided here: a string may be well formed, and still too old, or of global scope.

    Raises
    ------
    SignalError
        If it is of another version, has a character that is not base64url, ends within a field, has bits
        other than zeros beyond its end, names vendors or letters that cannot be, or has a segment twice.
        Segments of unknown type are passed over.
    """
    if not isinstance(text, str):
        raise TypeError(f"a TC string is text, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise SignalError(f"{len(text)} characters: longer than the {MAX_CHARACTERS} that are read")
    core, *others = text.split(".")
    decoded = _core(BitReader(core, "the core segment"))
    segments: dict[str, VendorIds | PublisherPurposes] = {}
    for number, other in enumerate(others, start=2):
        bits = BitReader(other, f"segment {number}")
        name, segment = _segment(bits)
        if segment is None:
            continue
        if name in segments:
            raise SignalError(f"segment {number} is a second one of its type")
        bits.finish()
        segments[name] = segment
    return dataclasses.replace(decoded, **segments)  # type: ignore[arg-type]


def _core(bits: BitReader) -> TCString:
    version = bits.integer(6, "Version")
    if version != 2:
        raise SignalError(f"the string is of TC string version {version}, not 2")
    created, last_updated = bits.instant("Created"), bits.instant("LastUpdated")
    cmp_id, cmp_version = bits.integer(12, "CmpId"), bits.integer(12, "CmpVersion")
    consent_screen = bits.integer(6, "ConsentScreen")
    consent_language = bits.letters(2, "ConsentLanguage")
    vendor_list_version = bits.integer(12, "VendorListVersion")
    policy_version = bits.integer(6, "TcfPolicyVersion")
    service_specific, non_standard_texts = bits.flag("IsServiceSpecific"), bits.flag("UseNonStandardTexts")
    special_feature_opt_ins = bits.numbers(12, "SpecialFeatureOptIns")
    purpose_consents = bits.numbers(_PURPOSES, "PurposesConsent")
    legitimate_interests = bits.numbers(_PURPOSES, "PurposesLITransparency")
    if policy_version >= 4:
        legitimate_interests -= _CONSENT_ONLY
    decoded = TCString(
        created=created,
        last_updated=last_updated,
        cmp_id=cmp_id,
        cmp_version=cmp_version,
        consent_screen=consent_screen,
        consent_language=consent_language,
        vendor_list_version=vendor_list_version,
        policy_version=policy_version,
        service_specific=service_specific,
        non_standard_texts=non_standard_texts,
        special_feature_opt_ins=special_feature_opt_ins,
        purpose_consents=purpose_consents,
        purpose_legitimate_interests=legitimate_interests,
        purpose_one_treatment=bits.flag("PurposeOneTreatment"),
        publisher_country=bits.letters(2, "PublisherCC"),
        vendor_consents=_vendors(bits, "VendorConsents"),
        vendor_legitimate_interests=_vendors(bits, "VendorLegitimateInterests"),
        restrictions=_restrictions(bits),
    )
    bits.finish()
    return decoded


def _segment(bits: BitReader) -> tuple[str, VendorIds | PublisherPurposes | None]:
    kind = bits.integer(3, "SegmentType")
    if kind == 0:
        raise SignalError("the string has a second core segment")
    if kind == 1:
        return "disclosed_vendors", _vendors(bits, "DisclosedVendors")
    if kind == 2:
        return "allowed_vendors", _vendors(bits, "AllowedVendors")
    if kind == 3:
        return "publisher", _publisher(bits)
    return "unknown", None


def _publisher(bits: BitReader) -> PublisherPurposes:
    consents = bits.numbers(_PURPOSES, "PubPurposesConsent")
    legitimate_interests = bits.numbers(_PURPOSES, "PubPurposesLITransparency")
    custom = bits.integer(6, "NumCustomPurposes")
    return PublisherPurposes(
        consents=consents,
        legitimate_interests=legitimate_interests,
        custom_consents=bits.numbers(custom, "CustomPurposesConsent"),
        custom_legitimate_interests=bits.numbers(custom, "CustomPurposesLITransparency"),
    )


def _vendors(bits: BitReader, field: str) -> VendorIds:
    """A vendor section: a bit field, or ranges, up to the highest vendor id."""
    highest = bits.integer(16, f"{field}.MaxVendorId")
    if bits.flag(f"{field}.IsRangeEncoding"):
        return _ranges(bits, field, highest)
    return _joined((number, number) for number in bits.numbers(highest, field))


def _ranges(bits: BitReader, field: str, highest: int) -> VendorIds:
    ranges = []
    for _ in range(bits.integer(12, f"{field}.NumEntries")):
        is_range = bits.flag(f"{field}.IsARange")
        start = bits.integer(16, f"{field}.StartOrOnlyVendorId")
        end = bits.integer(16, f"{field}.EndVendorId") if is_range else start
        if not 1 <= start <= end <= highest:
            raise SignalError(f"{field} names vendors {start} to {end} of {highest}")
        ranges.append((start, end))
    return _joined(ranges)


def _joined(ranges: Iterable[tuple[int, int]]) -> VendorIds:
    """Sort ranges and join those that touch, so that a few bits cannot stand for endless work."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return VendorIds(tuple(joined))


def _restrictions(bits: BitReader) -> tuple[Restriction, ...]:
    return tuple(
        Restriction(
            purpose=bits.integer(6, "PubRestrictions.PurposeId"),
            kind=bits.integer(2, "PubRestrictions.RestrictionType"),
            vendors=_ranges(bits, "PubRestrictions", 0xFFFF),
        )
        for _ in range(bits.integer(12, "NumPubRestrictions"))
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TcfSettings(SignalSettings):
    """Whose purposes are read, and which.

    Attributes
    ----------
    vendor_id
        None (the shop runs the engine for itself): the purposes of the Publisher TC segment decide. A vendor
        id of the Global Vendor List (a registered vendor runs it): the purposes and vendors of the core
        segment decide, within the publisher's restrictions; under TCF v2.3 the vendor must also have been
        disclosed.
    model_purpose
        The purpose that permits contributing to shared models: 10 (develop and improve services) or 8
        (measure content performance). Check what the shop's notice says.
    purpose_one_exempt_in
        Countries (PublisherCC) in which purpose 1 counts as given if the string says that it was not
        disclosed there (PurposeOneTreatment). None by default: what was not asked was not permitted. Name a
        country only if access to the device has another basis there.
    """

    vendor_id: int | None = None
    model_purpose: int = 10
    purpose_one_exempt_in: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        vendor_id: object = self.vendor_id
        if vendor_id is not None and (isinstance(vendor_id, bool) or not isinstance(vendor_id, int)):
            raise TypeError(f"vendor_id must be an integer or None, not {vendor_id!r}")
        if self.vendor_id is not None and not 1 <= self.vendor_id <= 0xFFFF:
            raise ValueError(f"vendor_id must be between 1 and 65535, not {self.vendor_id}")
        if self.model_purpose not in (8, 10):
            raise ValueError(f"model_purpose must be 10 or 8, not {self.model_purpose!r}")
        countries: object = self.purpose_one_exempt_in
        if isinstance(countries, str):
            raise TypeError("purpose_one_exempt_in must be a set of country codes, not one string")
        object.__setattr__(self, "purpose_one_exempt_in", frozenset(self.purpose_one_exempt_in))
        for country in self.purpose_one_exempt_in:
            if not re.fullmatch("[A-Z]{2}", country):
                raise ValueError(f"purpose_one_exempt_in has {country!r}, which is no code like 'DE'")


def tcf_decisions(text: str, context: SignalContext[TcfSettings]) -> list[Decision]:
    """Decide on ``online`` (purposes 1, 5 and 6), ``ads`` (3 and 4) and ``model`` (10 or 8), by consent only.

    A string says nothing on CRM data, and nothing on joining them with online data: Feature 1 is disclosed by
    the notice, not by a bit, and purpose 9 is no permission to join.

    Raises
    ------
    SignalError
        If the string cannot be read, or may not be relied on: of global scope, under unknown policies, dated
        ahead, older than 13 months, or without the segment that decides.
    """
    string = decode(text)
    _require_reliable(string, context.received_at)
    consented = _consented(string, context.settings)
    until = _months_later(string.last_updated, MAXIMUM_AGE_MONTHS)
    decisions = []
    for permission, needed in (
        ("online", _ONLINE),
        ("ads", _ADS),
        ("model", frozenset({context.settings.model_purpose})),
    ):
        missing = ", ".join(str(purpose) for purpose in sorted(needed - consented))
        if missing:
            reason = f"no consent to purposes {missing}"
            decisions.append(Decision(permission=permission, state="denied", reason=reason))
        else:
            decisions.append(Decision(permission=permission, state="granted", until=until))
    return decisions


def _require_reliable(string: TCString, received_at: dt.datetime) -> None:
    if string.policy_version not in POLICIES:
        raise SignalError(f"the string is under TCF policy {string.policy_version}, which is not known here")
    if not string.service_specific:
        raise SignalError("the string is of global scope, which ended on 2021-09-01")
    if string.created > string.last_updated:
        raise SignalError("the string was updated before it was created")
    if string.last_updated - received_at > CLOCK_SKEW:
        raise SignalError(f"the string is dated ahead: LastUpdated is {string.last_updated.isoformat()}")
    if received_at >= _months_later(string.last_updated, MAXIMUM_AGE_MONTHS):
        raise SignalError(f"the string is older than {MAXIMUM_AGE_MONTHS} months")


def _consented(string: TCString, settings: TcfSettings) -> frozenset[int]:
    """The purposes to which the shop, or the vendor, has consent."""
    if settings.vendor_id is None:
        if string.publisher is None:
            raise SignalError("the string has no Publisher TC segment")
        return _with_purpose_one(string.publisher.consents, string, settings)
    _require_vendor(string, settings.vendor_id)
    return frozenset(
        purpose
        for purpose in _with_purpose_one(string.purpose_consents, string, settings)
        if not _forbidden(string, purpose, settings.vendor_id)
    )


def _with_purpose_one(consents: frozenset[int], string: TCString, settings: TcfSettings) -> frozenset[int]:
    if not string.purpose_one_treatment:
        return consents
    if string.publisher_country in settings.purpose_one_exempt_in:
        return consents | {1}
    return consents - {1}


def _require_vendor(string: TCString, vendor_id: int) -> None:
    if vendor_id not in string.vendor_consents:
        raise SignalError(f"no consent to vendor {vendor_id}")
    # Before policy 5 the segment was optional and decided nothing. To heed it where it happens to be there
    # would let a string that was cut before it grant more than the whole one.
    if string.policy_version >= 5 and vendor_id not in (string.disclosed_vendors or VendorIds()):
        raise SignalError(f"vendor {vendor_id} was not disclosed")


def _forbidden(string: TCString, purpose: int, vendor_id: int) -> bool:
    """Whether the publisher restricts the vendor to anything but consent."""
    return any(
        restriction.purpose == purpose
        and restriction.kind != _REQUIRE_CONSENT
        and vendor_id in restriction.vendors
        for restriction in string.restrictions
    )


def _months_later(instant: dt.datetime, months: int) -> dt.datetime:
    """The same day some months later, or the last day of that month if it is shorter."""
    years, month = divmod(instant.month - 1 + months, 12)
    year = instant.year + years
    day = min(instant.day, calendar.monthrange(year, month + 1)[1])
    return instant.replace(year=year, month=month + 1, day=day)


def _decides(settings: TcfSettings) -> frozenset[str]:  # noqa: ARG001 - the same under all settings
    return frozenset({"online", "ads", "model"})


TCF = Signal(kind="tcf", settings=TcfSettings, decides=_decides, read=tcf_decisions, structured=False)
"""TC strings, as text."""
