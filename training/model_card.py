"""The model card of one tier in one run, as Markdown (Mitchell et al., "Model cards for model reporting",
FAccT 2019).

Generated from the bundle's manifest, the facts of the run and its measurement, so that it says what was done.
It names no person; groups of fewer than ``MINIMUM_GROUP`` persons are counted and not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from consentier.consent import Side, Source, Switches, Tier, sources_of
from consentier.models.bundle import Manifest
from consentier.serving.disclosures import PERMISSION_WORDS, markdown_rows, purpose_of, trained_on
from consentier.serving.main_parameters import SOURCE_WORDS, main_parameters
from consentier.training.drift_result import DRIFT_COLUMNS, DriftResult, drift_rows
from consentier.training.evaluation_result import MINIMUM_GROUP, mean_with_bounds
from consentier.training.measure import CHAMPION, MODEL, POPULAR, Measurement, PeriodFigures

__all__ = ["model_card"]

_NAMES: Mapping[str, str] = {
    MODEL: "this model",
    POPULAR: "popular list",
    CHAMPION: "model in use before",
}

_TARGETS: Mapping[Tier, str] = {
    Tier.SESSION: "every prefix of every session that began in the period predicts its next item",
    Tier.ONLINE: "one request per visitor at the beginning of the period; wanted are the items that the "
    "visitor showed interest in during it",
    Tier.CRM: "one request per customer at the beginning of the period; wanted are the items ordered in it",
    Tier.FUSED: "one request per customer at the beginning of the period; wanted are the items ordered in it",
}

_LIMITS = (
    "The figures hold for persons who permit what this tier reads. Those who do not cannot be measured, and "
    "may differ.",
    "The figures are those of models with the same configuration that were fitted on what was before each "
    "period. The bundle is fitted on everything up to the cut-off and has not been judged itself.",
    "What was looked at or ordered depends on what the shop showed then. Only an experiment with live "
    "traffic tells what a recommendation causes.",
    "Parameters that were chosen by looking at a period flatter themselves there.",
    "The bundle holds nothing per person, but rests on rows of persons: it is not shown to be anonymous.",
)


def model_card(
    manifest: Manifest,
    digest: str,
    facts: Mapping[str, Any],
    measurement: Measurement,
    switches: Switches,
    drift: DriftResult,
    *,
    first_day: str | None,
) -> str:
    """Write the card.

    Parameters
    ----------
    manifest, digest
        Of the bundle.
    facts
        Of the run, as they stand beside it.
    measurement
        What was measured.
    switches
        Of the policy under which it was trained.
    drift
        How the data of the run differ from those of the models in use.
    first_day
        Day of the oldest row; None where there are none of persons.
    """
    tier = Tier(manifest.tier)
    lines = [
        f"# Model card: {tier} tier",
        "",
        f"Purpose: {purpose_of(tier)}.",
        "",
        *markdown_rows(("", ""), _facts(manifest, digest, facts, switches, first_day)),
        "",
        "## What the consent gate kept out",
        "",
        *_exclusions(facts["funnel"]),
        "",
        "## What it is worth",
        "",
        *_worth(tier, measurement),
        "## Drift since the model in use before",
        "",
        *_drift(tier, drift),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in _limits(manifest)),
        "",
        "## Main parameters",
        "",
        *(f"- {sentence}" for sentence in main_parameters(manifest)),
        "",
    ]
    return "\n".join(lines)


def _facts(
    manifest: Manifest, digest: str, facts: Mapping[str, Any], switches: Switches, first_day: str | None
) -> list[tuple[str, str]]:
    tier = Tier(manifest.tier)
    needed = [PERMISSION_WORDS[Source(name)] for name in manifest.permission]
    read = [SOURCE_WORDS[source] for source in Source if source in sources_of(tier, Side.ONLINE)]
    window = f"to {manifest.cutoff}" if first_day is None else f"{first_day} to {manifest.cutoff}"
    return [
        ("permission needed to be answered", " and ".join(needed) or "none"),
        ("sources read of the person asked for", ", ".join(read) or "none"),
        ("trained on", trained_on(manifest, switches)),
        ("training window", window),
        ("algorithm", f"`{manifest.algorithm}`, {manifest.item_count:,} items"),
        ("bundle", f"`{digest}`"),
        ("configuration", f"`{facts['config_hash']}`"),
        ("consent ledger", f"position {facts['ledger_position']}, head `{facts['ledger_head']}`"),
        ("permitted rows", f"`{facts['rows_digest']}`"),
        ("code", f"`{facts['git_commit'] or 'no git commit'}`"),
    ]


def _exclusions(funnel: Iterable[Mapping[str, Any]]) -> list[str]:
    rows: list[tuple[str, str, str, str, str]] = []
    for each in funnel:
        head = (each["source"], f"{each['rows_in']:,}", f"{each['rows_kept']:,}")
        ordered = sorted(each["excluded"].items(), key=lambda entry: (-entry[1], entry[0]))
        rows += [(*head, reason, f"{count:,}") for reason, count in ordered] or [(*head, "-", "0")]
    return markdown_rows(("source", "rows in", "rows kept", "kept out because of", "rows"), rows)


def _worth(tier: Tier, measurement: Measurement) -> list[str]:
    lines: list[str] = []
    if tier is Tier.POPULAR:
        return ["It is the baseline of the other tiers, and is not measured itself.", ""]
    lines += [
        f"Requests: {_TARGETS[tier]}. All items are ranked. Brackets hold 95 % intervals over persons.",
        "",
    ]
    for period in measurement["periods"]:
        lines += [*_period(period), ""]
    lines += [*_differences(measurement), *_groups(measurement)]
    for note in measurement["notes"]:
        lines += [note, ""]
    return lines


def _period(period: PeriodFigures) -> list[str]:
    metrics = list(period["figures"][MODEL])
    rows = [
        (metric, *(mean_with_bounds(found[metric]) for found in period["figures"].values()))
        for metric in metrics
    ]
    return [
        f"### {period['name'].capitalize()} period, {period['start']} to {period['end']}",
        "",
        f"{period['persons']:,} persons, {period['requests']:,} requests.",
        "",
        *markdown_rows(("metric", *(_NAMES[what] for what in period["figures"])), rows),
    ]


def _differences(measurement: Measurement) -> list[str]:
    rows = [
        (
            _NAMES[each["against"]],
            each["metric"],
            mean_with_bounds(each["difference"], sign="+"),
            f"{each['p_value']:.4f}",
        )
        for each in measurement["differences"]
    ]
    single = measurement["single_source"]
    if single is not None:
        rows.append(
            (
                f"{single['best']} tier",
                single["metric"],
                mean_with_bounds(single["difference"], sign="+"),
                f"{single['p_value']:.4f}",
            )
        )
    if not rows:
        return []
    lines = [
        "### Lift, on the same requests of the test period",
        "",
        *markdown_rows(("over", "metric", "difference", "p (randomisation)"), rows),
        "",
    ]
    champion = measurement["champion"]
    if champion is not None:
        how = (
            "as it is"
            if champion["how"] == "as it is"
            else "its configuration, fitted again on the same rows"
        )
        lines += [f"The model in use before: version {champion['version']}, {how}.", ""]
    if single is not None:
        lines += [
            f"The {single['best']} tier is the best of a single source for the {single['customers']:,} "
            "linked customers of that comparison.",
            "",
        ]
    return lines


def _groups(measurement: Measurement) -> list[str]:
    metric = measurement["metric"]
    lines: list[str] = []
    for title, key, rows in (
        ("By length of history (items)", "bucket", measurement["by_history_length"]),
        ("By popularity of the wanted item", "band", measurement["by_popularity"]),
    ):
        if rows:
            names = list(dict.fromkeys(row["tier"] for row in rows))
            found: Sequence[Mapping[str, Any]] = rows
            groups = dict.fromkeys(str(row[key]) for row in found)
            table = [
                _group_row(group, names, [row for row in found if row[key] == group], metric)
                for group in groups
            ]
            head = (metric, "persons", *(_NAMES[name] for name in names))
            lines += [f"### {title}", "", *markdown_rows(head, table), ""]
    return lines


def _group_row(
    group: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], metric: str
) -> tuple[str, ...]:
    if rows[0]["customers"] < MINIMUM_GROUP:
        return (group, f"fewer than {MINIMUM_GROUP}", *("not shown" for _ in names))
    by_name = {row["tier"]: row["metrics"][metric] for row in rows}
    return (group, f"{rows[0]['customers']:,}", *(mean_with_bounds(by_name[name]) for name in names))


def _drift(tier: Tier, drift: DriftResult) -> list[str]:
    if tier in drift["not_judged"]:
        return [drift["not_judged"][tier]]
    rows = drift_rows(check for check in drift["checks"] if check["tier"] == tier)
    breaches = sum(check["breached"] for check in drift["checks"] if check["tier"] == tier)
    return [
        "What this tier might read up to the cut-off, against what the model in use before was fitted on. "
        f"{breaches} of {len(rows)} checks are beyond their threshold.",
        "",
        *markdown_rows(DRIFT_COLUMNS[1:], [row[1:] for row in rows]),
    ]


def _limits(manifest: Manifest) -> list[str]:
    persons = manifest.parameters.get("min_persons")
    return [
        *_LIMITS,
        f"At least {persons} distinct {'person stands' if persons == 1 else 'persons stand'} behind each "
        "published weight or count.",
    ]
