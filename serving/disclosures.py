"""What a shop has to say about its recommendations, generated from its policy and its bundles.

Records of processing activities (GDPR 30) and the main parameters of each tier (DSA 27, where it applies:
whether the shop is an online platform is not decided here). Every statement is derived from the matrix, the
switches, the bundles' manifests and the schedules that are given, so that it changes when they do. What they
do not say, the shop must add; it is listed by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from consentier.consent import Channel, Policy, Side, Source, State, Switches, Tier, sources_of
from consentier.consent.lifetimes import Lifetimes
from consentier.errors import BundleError, BundleMissing
from consentier.models.bundle import Manifest, open_bundle
from consentier.serving.main_parameters import (
    LEARNT_FROM,
    SOURCE_WORDS,
    main_parameters,
    rule_parameters,
    trending_parameter,
)
from consentier.serving.routing import read_routing
from consentier.serving.rules import Rules

__all__ = [
    "PERMISSION_WORDS",
    "Kept",
    "disclosures",
    "markdown_rows",
    "purpose_of",
    "to_markdown",
    "trained_on",
]

_FORMAT = 1

_TIERS = tuple(tier for tier in Tier if tier is not Tier.NONE)

_STATE_WORDS: Mapping[State, str] = {
    State.NONE: "no permission",
    State.ONLINE: "online permission only",
    State.CRM: "CRM permission only",
    State.BOTH_LINKED: "both permissions and a lawful link",
    State.BOTH_UNLINKED: "both permissions without a lawful link",
    State.OBJECTED: "an objection, or a minor without parental consent",
}

PERMISSION_WORDS: Mapping[Source, str] = {Source.ONLINE: "online permission", Source.CRM: "CRM permission"}
"""The permission that each source of personal data needs."""

# What every person in a state has given. An objection outranks whatever was given.
_GIVEN: Mapping[State, frozenset[str]] = {
    State.NONE: frozenset(),
    State.ONLINE: frozenset({"online permission"}),
    State.CRM: frozenset({"CRM permission"}),
    State.BOTH_LINKED: frozenset({"online permission", "CRM permission", "lawful link"}),
    State.BOTH_UNLINKED: frozenset({"online permission", "CRM permission"}),
    State.OBJECTED: frozenset(),
}

# What each switch means: on, off.
_SWITCH_WORDS: Mapping[str, tuple[str, str]] = {
    "crm_on_site": (
        "CRM data are used on the online side for customers without a lawful link to the visitor, too.",
        "CRM data are used on the online side only where they are lawfully linked to the visitor.",
    ),
    "shared_device_login": (
        "On the online side a link counts only where the shop vouches for a login in the running session.",
        "On the online side a lawful link counts without a login in the running session.",
    ),
    "ads_purpose": (
        "Advertising channels need a separate consent; without it they count as without permission.",
        "Advertising channels need no separate consent; a recorded refusal counts.",
    ),
    "fusion_purpose": (
        "Joining online and CRM data needs a separate consent.",
        "Joining online and CRM data needs no consent but both permissions; a recorded refusal counts.",
    ),
    "model_purpose": (
        "Contributing to models needs a separate consent.",
        "Contributing to models needs no consent but the source's permission; a recorded refusal counts.",
    ),
    "include_single_source_in_fused": (
        "Persons with one permission, or without a lawful link, contribute unjoined rows to the fused model.",
        "Only persons with both permissions and a lawful link contribute to the fused model.",
    ),
    "anonymous_statistics": (
        "Rows of visitors who were never asked are counted, without any key, for the popular list.",
        "Rows of visitors who were never asked are not used.",
    ),
}

_TO_BE_STATED = (
    "name and contact details of the controller, of a joint controller, a representative and the data "
    "protection officer (GDPR 30(1)(a))",
    "recipients to whom data are disclosed (GDPR 30(1)(d))",
    "transfers to third countries and their safeguards (GDPR 30(1)(e))",
    "technical and organisational measures of the shop's own (GDPR 30(1)(g))",
    "the legal basis of each processing, and the notice under which the permissions are asked for",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """One line of a retention schedule.

    Attributes
    ----------
    what, where
        What it is about.
    how_long
        For how long, in words.
    """

    what: str
    where: str
    how_long: str


def disclosures(
    policy: Policy,
    *,
    bundles: Path | None = None,
    retention: Sequence[Kept] = (),
    lifetimes: Lifetimes | None = None,
    rules: Rules | None = None,
    trending_share: float | None = None,
) -> dict[str, Any]:
    """Collect what can be said.

    Parameters
    ----------
    policy
        The routing policy.
    bundles
        The directory of bundles that answer. Without it the main parameters are not known, nor whether level
        3 is answered by a single source.
    retention
        The retention schedule.
    lifetimes
        How old a grant of consent may grow.
    rules
        The shop's business rules.
    trending_share
        The share of the popular list that goes to trending items, where `Trending` counts them.

    Returns
    -------
    dict
        Plain values for JSON: ``format``, ``policy_version``, ``matrix``, ``switches``, ``tiers`` (each with
        purpose, data, permission, channels and main parameters), ``rules``, ``retention``, ``lifetimes``
        and ``to_be_stated``.

    Raises
    ------
    BundleError
        If a bundle in the directory cannot be read.
    BundleMissing
        If the directory holds none.
    """
    manifests = {} if bundles is None else _manifests(bundles)
    if bundles is not None:
        policy = read_routing(bundles).applied_to(policy)
    return {
        "format": _FORMAT,
        "policy_version": policy.version,
        "matrix": [_cell(policy, state, side) for state in State for side in Side],
        "switches": [
            {"name": name, "on": value, "meaning": _SWITCH_WORDS[name][not value]}
            for name, value in dataclasses.asdict(policy.switches).items()
        ],
        "tiers": [_tier(policy, tier, manifests.get(tier)) for tier in _TIERS],
        "rules": [
            *([] if rules is None else rule_parameters(rules)),
            *([] if trending_share is None else [trending_parameter(trending_share)]),
        ],
        "retention": [dataclasses.asdict(each) for each in retention],
        "lifetimes": None if lifetimes is None else _lifetimes(lifetimes),
        "to_be_stated": [*_TO_BE_STATED, *(() if retention else ("time limits of erasure (GDPR 30(1)(f))",))],
    }


def to_markdown(document: Mapping[str, Any]) -> str:
    """The same as text, in Markdown."""
    lines = [
        "# Records of processing: recommendations",
        "",
        f"Generated from policy `{document['policy_version']}`: change that, not this text.",
        "",
        "## Who answers, and what is read",
        "",
        *markdown_rows(
            ("the person has given", "where", "tiers that may answer, best first", "data about the person"),
            (
                (
                    cell["permission"],
                    f"{cell['side']} side ({', '.join(cell['channels'])})",
                    ", ".join(cell["tiers"]) or "nobody",
                    ", ".join(cell["reads"]) or "none",
                )
                for cell in document["matrix"]
            ),
        ),
        "",
        "A person who gives or withdraws a permission, or objects, changes the row with the next answer.",
        "On the crm side a message is sent only where contact in its channel is permitted too; that decides "
        "whether it is sent, never what is read.",
        "",
        "## Settings of the policy",
        "",
        *markdown_rows(
            ("setting", "state", "meaning"),
            (
                (f"`{switch['name']}`", "on" if switch["on"] else "off", switch["meaning"])
                for switch in document["switches"]
            ),
        ),
        "",
    ]
    for tier in document["tiers"]:
        lines += _tier_section(tier)
    if document["rules"]:
        lines += [
            "## What the shop decides beside the models",
            "",
            *(f"- {each}" for each in document["rules"]),
            "",
        ]
    lines += _retention_section(document["retention"])
    if document["lifetimes"] is not None:
        lines += _lifetimes_section(document["lifetimes"])
    lines += ["## To be stated by the shop", "", *(f"- {each}" for each in document["to_be_stated"]), ""]
    return "\n".join(lines)


def _manifests(bundles: Path) -> dict[Tier, Manifest]:
    found: dict[Tier, Manifest] = {}
    for tier in _TIERS:
        try:
            manifest = open_bundle(bundles / tier, verify=False).manifest
        except BundleMissing:
            continue
        if manifest.tier != tier:
            raise BundleError(f"the bundle in the {tier} slot declares tier {manifest.tier}")
        found[tier] = manifest
    if not found:
        raise BundleMissing(f"{bundles}: holds no bundle; 'consentier train' writes them")
    return found


def _cell(policy: Policy, state: State, side: Side) -> dict[str, Any]:
    read = policy.readable(state, side)
    return {
        "state": str(state),
        "permission": _STATE_WORDS[state],
        "side": str(side),
        "channels": _channels(side),
        "tiers": [str(tier) for tier in policy.tiers(state, side)],
        "reads": [SOURCE_WORDS[source] for source in Source if source in read],
    }


def _tier(policy: Policy, tier: Tier, manifest: Manifest | None) -> dict[str, Any]:
    sides = [_side(policy, tier, side) for side in Side]
    return {
        "tier": str(tier),
        "purpose": purpose_of(tier),
        "sides": [side for side in sides if side is not None],
        "trained_on": None if manifest is None else trained_on(manifest, policy.switches),
        "main_parameters": None if manifest is None else main_parameters(manifest),
    }


def _side(policy: Policy, tier: Tier, side: Side) -> dict[str, Any] | None:
    """Where a tier may answer on one side, and what that takes; None where it may nowhere."""
    states = [state for state in State if tier in policy.tiers(state, side)]
    if not states:
        return None
    needed = frozenset[str].intersection(*(_GIVEN[state] for state in states))
    return {
        "side": str(side),
        "channels": _channels(side),
        "answers": [_STATE_WORDS[state] for state in states],
        "needs": _needs(needed, policy.switches, side),
        "ends_by_objection": State.OBJECTED not in states,
        "reads": [SOURCE_WORDS[source] for source in Source if source in sources_of(tier, side)],
        "filled_up_by_popular": tier is not Tier.POPULAR
        and any(Tier.POPULAR in policy.tiers(state, side) for state in states),
    }


def _needs(given: frozenset[str], switches: Switches, side: Side) -> list[str]:
    needs = sorted(given)
    if "lawful link" in given and side is Side.ONLINE and switches.shared_device_login:
        needs.append("login in the running session")
    if "lawful link" in given and switches.fusion_purpose:
        needs.append("separate consent to joining")
    if given and side is Side.ONLINE and switches.ads_purpose:
        needs.append("for advertising channels, separate consent to it")
    return needs


def purpose_of(tier: Tier) -> str:
    """What a tier is for, in words."""
    read = [SOURCE_WORDS[source] for source in Source if source in sources_of(tier, Side.ONLINE)]
    basis = f"to {', '.join(read)}" if read else "to what is popular, without regard to the person"
    return f"choosing items to show or send, according {basis}"


def trained_on(manifest: Manifest, switches: Switches) -> str:
    """Whose rows a model was fitted on, in words."""
    tier = Tier(manifest.tier)
    given = [PERMISSION_WORDS[source] for source in Source if source in LEARNT_FROM[tier]]
    rows = f"rows of persons with {' or '.join(given)}"
    if tier is Tier.FUSED and not switches.include_single_source_in_fused:
        rows = f"rows of persons with {' and '.join(given)} and a lawful link"
    if tier is Tier.POPULAR and switches.anonymous_statistics:
        rows += ", and of visitors who were never asked"
    consent = ", and separate consent to contributing to models" if switches.model_purpose else ""
    return f"{rows}{consent}, up to {manifest.cutoff}"


def _lifetimes(lifetimes: Lifetimes) -> dict[str, Any]:
    return {
        "version": lifetimes.version,
        "rules": [
            {
                "permissions": sorted(rule.permissions),
                "collected_by": _named(rule.collected_by),
                "jurisdictions": _named(rule.jurisdictions),
                "how_long": "not limited by age" if rule.days is None else f"{rule.days} days",
                "source": rule.source,
            }
            for rule in lifetimes.rules
        ],
    }


def _named(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def _channels(side: Side) -> list[str]:
    return [str(channel) for channel in Channel if channel.side is side]


def _tier_section(tier: Mapping[str, Any]) -> list[str]:
    lines = [f"## The {tier['tier']} tier", "", f"Purpose: {tier['purpose']}.", ""]
    if not tier["sides"]:
        lines += ["Under this policy it answers nowhere.", ""]
    for side in tier["sides"]:
        ends = "; an objection ends it" if side["ends_by_objection"] else ""
        lines += [
            f"- On the {side['side']} side ({', '.join(side['channels'])}) it may answer with: "
            f"{'; '.join(side['answers'])}.",
            f"  - Needed: {', '.join(side['needs']) or 'no permission'}{ends}.",
            f"  - Data about the person: {', '.join(side['reads']) or 'none'}.",
        ]
        if side["filled_up_by_popular"]:
            lines.append("  - Where it has fewer items than asked for, the popular list fills up.")
    if tier["trained_on"] is not None:
        lines += ["", f"Trained on {tier['trained_on']}."]
    if tier["main_parameters"] is not None:
        lines += ["", "Main parameters:", "", *(f"- {sentence}" for sentence in tier["main_parameters"])]
    return [*lines, ""]


def _retention_section(kept: Sequence[Mapping[str, str]]) -> list[str]:
    if not kept:
        return []
    rows = ((each["what"], each["where"], each["how_long"]) for each in kept)
    return ["## Retention", "", *markdown_rows(("what", "where", "how long"), rows), ""]


def _lifetimes_section(lifetimes: Mapping[str, Any]) -> list[str]:
    rows = (
        (
            ", ".join(rule["permissions"]),
            ", ".join(rule["collected_by"] or ["all"]),
            ", ".join(rule["jurisdictions"] or ["all"]),
            rule["how_long"],
            rule["source"],
        )
        for rule in lifetimes["rules"]
    )
    return [
        "## Lifetimes of consent",
        "",
        f"Rules `{lifetimes['version']}`: the first that fits a grant governs it.",
        "",
        *markdown_rows(("permission", "collected by", "jurisdiction", "a grant counts for", "source"), rows),
        "",
    ]


def markdown_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(columns), line("---" for _ in columns), *(line(row) for row in rows)]
