"""GPP strings of the IAB Tech Lab Global Privacy Platform, which can only lower a permission here.

A GPP string bundles the signals of several jurisdictions. Those of the United States are objections to
selling, sharing and targeted advertising; that somebody did not object is no consent. The European section is
read as a TC string is, but only its refusals count: to grant, hand in the TC string itself.

Format: IAB Tech Lab, "Global Privacy Platform String", and the section specifications beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from consentier.consent.signals.bits import BitReader
from consentier.consent.signals.reading import Decision, Signal, SignalContext
from consentier.consent.signals.tcf import TcfSettings, tcf_decisions
from consentier.errors import SignalError

__all__ = ["GPP", "sections_of"]

TCF_EU = 2
US_PRIVACY = 6

_OPTED_OUT = 1
_NO_CONSENT = 1
_GPC_SEGMENT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """How many two-bit fields the core of a US section has, in their order, after its version.

    notices, SaleOptOut, SharingOptOut (some), TargetedAdvertisingOptOut (some), SensitiveDataProcessing,
    KnownChildSensitiveDataConsents, consent to further processing (some), three on the MSPA.
    """

    notices: int
    sensitive: int
    children: int
    sharing: bool = False
    targeted: bool = True
    further: bool = True

    @property
    def bits(self) -> int:
        fields = self.notices + 1 + self.sharing + self.targeted
        return 6 + 2 * (fields + self.sensitive + self.children + self.further + 3)


_US_SECTIONS: Mapping[int, tuple[_Layout, ...]] = MappingProxyType(
    {
        7: (_Layout(6, 16, 3, sharing=True), _Layout(6, 12, 2, sharing=True)),  # usnat, from 2024 and before
        8: (_Layout(3, 9, 2, sharing=True, targeted=False),),  # usca
        9: (_Layout(3, 8, 1, further=False),),  # usva
        10: (_Layout(3, 7, 1, further=False),),  # usco
        11: (_Layout(4, 8, 1, further=False),),  # usut
        12: (_Layout(3, 8, 3, further=False),),  # usct
        13: (_Layout(3, 8, 3),),  # usfl
        14: (_Layout(3, 8, 3),),  # usmt
        15: (_Layout(3, 11, 3),),  # usor
        16: (_Layout(3, 8, 1),),  # ustx
        17: (_Layout(3, 9, 5),),  # usde
        18: (_Layout(4, 8, 1, further=False),),  # usia
        19: (_Layout(3, 8, 1),),  # usne
        20: (_Layout(3, 8, 3),),  # usnh
        21: (_Layout(3, 10, 5),),  # usnj
        22: (_Layout(3, 8, 1),),  # ustn
        23: (_Layout(3, 8, 1),),  # usmn
    }
)
"""The sections that are read, newest layout first. The form of 24 to 27 is not settled: they are not read."""


def sections_of(text: str) -> list[tuple[int, str]]:
    """Split a GPP string into its sections, by id in ascending order.

    Raises
    ------
    SignalError
        If the header is malformed, or names other sections than there are.
    """
    header, *sections = text.split("~")
    ids = _section_ids(BitReader(header, "the header"), len(sections))
    if len(ids) != len(sections):
        raise SignalError(f"the header names {len(ids)} sections, and there are {len(sections)}")
    return list(zip(ids, sections, strict=True))


def _section_ids(bits: BitReader, most: int) -> list[int]:
    kind, version = bits.integer(6, "Type"), bits.integer(6, "Version")
    if (kind, version) != (3, 1):
        raise SignalError(f"the string is no GPP string of version 1 (type {kind}, version {version})")
    ids: list[int] = []
    last = 0
    for _ in range(bits.integer(12, "Sections")):
        is_range = bits.flag("Sections")
        start = last + bits.fibonacci("Sections")
        last = start + bits.fibonacci("Sections") if is_range else start
        if len(ids) + last - start >= most:
            raise SignalError("the header names more sections than there are")
        ids.extend(range(start, last + 1))
    bits.finish()
    return ids


def _read(text: str, context: SignalContext[TcfSettings]) -> Iterator[Decision]:
    """Deny what any section refuses; one decision a permission, with all reasons."""
    reasons: dict[str, list[str]] = {}
    for section_id, section in sections_of(text):
        for permission, reason in _refusals(section_id, section, context):
            reasons.setdefault(permission, []).append(f"section {section_id}: {reason}")
    for permission in sorted(reasons):
        yield Decision(permission=permission, state="denied", reason="; ".join(reasons[permission]))


def _refusals(
    section_id: int, section: str, context: SignalContext[TcfSettings]
) -> Iterable[tuple[str, str]]:
    if section_id == TCF_EU:
        return [
            (decision.permission, decision.reason or decision.state)
            for decision in tcf_decisions(section, context)
            if decision.state != "granted"
        ]
    if section_id == US_PRIVACY:
        return _us_privacy(section)
    if section_id in _US_SECTIONS:
        return _us_section(section, _US_SECTIONS[section_id])
    raise SignalError(f"section {section_id} is none that can be read, so what it refuses is not known")


def _us_privacy(section: str) -> Iterator[tuple[str, str]]:
    """The US Privacy string: version, notice given, opted out of sale, LSPA; such as 1YNN, or 1---."""
    if len(section) != 4 or section[0] != "1" or not set(section[1:]) <= set("YN-"):
        raise SignalError("section 6 is no US Privacy string of version 1")
    if section[2] == "Y":
        yield from _objection("SaleOptOut")


def _objection(name: str) -> Iterator[tuple[str, str]]:
    """Whoever objects to the sale or sharing of data objects to advertising and to joining sources."""
    yield "ads", name
    yield "fusion", name


def _us_section(section: str, layouts: tuple[_Layout, ...]) -> Iterator[tuple[str, str]]:
    core, *others = section.split(".")
    bits = BitReader(core, "the section's core")
    layout = next((layout for layout in layouts if layout.bits <= len(bits)), layouts[-1])
    # Each layout came with a version of its own, which an older layout cannot have: such a core was cut off.
    # In a newer layout older versions are met, as some writers kept them.
    yield from _us_core(bits, layout, newest_version=len(layouts) - layouts.index(layout))
    for other in others:
        yield from _us_subsection(BitReader(other, "a subsection"))


def _us_core(bits: BitReader, layout: _Layout, newest_version: int) -> Iterator[tuple[str, str]]:
    version = bits.integer(6, "Version")
    if not 1 <= version <= newest_version:
        raise SignalError(f"the section is of version {version}, which is not known here in this length")
    _choices(bits, layout.notices, "notices")
    if _OPTED_OUT in _choices(bits, 1, "SaleOptOut"):
        yield from _objection("SaleOptOut")
    if _OPTED_OUT in _choices(bits, layout.sharing, "SharingOptOut"):
        yield from _objection("SharingOptOut")
    if _OPTED_OUT in _choices(bits, layout.targeted, "TargetedAdvertisingOptOut"):
        yield "ads", "TargetedAdvertisingOptOut"
    # Sensitive items enter nothing in this engine, whatever is permitted.
    _choices(bits, layout.sensitive, "SensitiveDataProcessing")
    if _NO_CONSENT in _choices(bits, layout.children, "KnownChildSensitiveDataConsents"):
        yield "parental", "a known child, without consent"
    if _NO_CONSENT in _choices(bits, layout.further, "consent to further processing"):
        yield "fusion", "no consent to further processing"
        yield "model", "no consent to further processing"
    _choices(bits, 3, "MSPA")
    bits.finish()


def _us_subsection(bits: BitReader) -> Iterator[tuple[str, str]]:
    if bits.integer(2, "SubsectionType") != _GPC_SEGMENT:
        raise SignalError("the section has a subsection of a type that is not known here")
    if bits.flag("Gpc"):
        for permission in ("online", "ads", "fusion"):
            yield permission, "Global Privacy Control"
    bits.finish()


def _choices(bits: BitReader, count: int, field: str) -> list[int]:
    """Fields of two bits: 0 not applicable, 1 and 2 a choice, 3 nothing that may be."""
    values = [bits.integer(2, field) for _ in range(count)]
    if 3 in values:
        raise SignalError(f"{field} has a value that it may not have")
    return values


def _decides(settings: TcfSettings) -> frozenset[str]:  # noqa: ARG001 - the same under all settings
    return frozenset({"online", "ads", "fusion", "model"})


GPP = Signal(
    kind="gpp", settings=TcfSettings, decides=_decides, read=_read, structured=False, only_lowers=True
)
"""GPP strings, as text. The settings are those of the European section."""
