"""Whether today's permitted data still look like those that the bundles were fitted on.

Checking is a use of the data like training: today's rows come through the gate of today, and what they are
compared with are shares and counts that the training run left beside its bundle (`data_summary`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import BundleMissing
from consentier.features.gate import HOLDERS, ConsentGate, PermittedRows, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import open_bundle, read_run
from consentier.serving.loading import none_usable
from consentier.training.bundles import TRAINED_TIERS, permitted_to
from consentier.training.config import DriftConfig
from consentier.training.data_summary import SUMMARY_VERSION, DataSummary, data_summary, window_rows
from consentier.training.drift_result import DRIFT_VERSION, DriftCheck, DriftResult
from consentier.training.evaluate_judge import items_of
from consentier.training.evaluation_result import MINIMUM_GROUP

__all__ = ["compared", "drift"]


def drift(
    shop: ShopTables,
    bundles: Path,
    settings: DriftConfig,
    *,
    at: dt.datetime,
    policy: Policy | None = None,
    ledger: Ledger | None = None,
) -> DriftResult:
    """Compare today's permitted data with those of the bundles in a directory.

    Parameters
    ----------
    shop
        The shop's tables as they are today.
    bundles
        Directory of the bundles, ``bundles/TIER``.
    settings
        The thresholds.
    at
        The instant up to which rows count, and permissions must hold.
    policy
        Its switches decide which rows may be used; the default policy otherwise.
    ledger
        Consents and links; by default those of the shop's tables.

    Raises
    ------
    BundleError
        If there is no bundle, or one is damaged.

    Notes
    -----
    As much as a training run takes before it fits anything.
    """
    policy = Policy.default() if policy is None else policy
    ledger = ledger_of(shop) if ledger is None else ledger
    tiers = [tier for tier in TRAINED_TIERS if (bundles / tier / "manifest.json").is_file()]
    if not tiers:
        raise none_usable(bundles, dict.fromkeys(TRAINED_TIERS, "there is no manifest.json"))
    gate = ConsentGate(shop, ledger, at, policy)
    return compared({tier: bundles / tier for tier in tiers}, gate, settings)


def compared(bundles: Mapping[Tier, Path], gate: ConsentGate, settings: DriftConfig) -> DriftResult:
    """Compare what a gate lets through with what bundles were fitted on.

    Parameters
    ----------
    bundles
        Where the bundle of each tier is.
    gate
        What is permitted now.
    settings
        The thresholds.

    Raises
    ------
    BundleError
        If a bundle is damaged.
    """
    checks: list[DriftCheck] = []
    not_judged: dict[str, str] = {}
    for tier, bundle in bundles.items():
        then = _summary_of(tier, bundle)
        if isinstance(then, str):
            not_judged[str(tier)] = then
            continue
        permitted = permitted_to(tier, gate)
        now = data_summary(permitted, gate.standing_counts(tier), then["window_days"])
        known = items_of(open_bundle(bundle))
        if now is None:
            checks.append(_too_few(tier, then, gate.cutoff))
            continue
        checks += _checks(tier, then, now, _new_items(permitted, known, then["window_days"]), settings)
    return {
        "version": DRIFT_VERSION,
        "at": gate.cutoff.isoformat(),
        "window_days": settings.window_days,
        "checks": checks,
        "breached": any(check["breached"] for check in checks),
        "not_judged": not_judged,
    }


def _summary_of(tier: Tier, bundle: Path) -> DataSummary | str:
    """What a bundle says of its data, or why that is nothing and what to do."""
    try:
        facts = read_run(bundle)
    except BundleMissing:
        facts = {}
    found: Any = facts.get("data_summary")
    if isinstance(found, dict) and found.get("version") == SUMMARY_VERSION:
        return found  # type: ignore[return-value]
    if "data_summary" in facts and found is None:
        return (
            f"The {tier} bundle says nothing about its data: fewer than {MINIMUM_GROUP} persons had rows in "
            "the window before its cut-off. Train again when there are more, or with more window_days in "
            "[drift]."
        )
    return (
        f"The {tier} bundle says nothing about its data that this release reads: it was made by another one, "
        "or its run.json is gone. Train it again: 'consentier retrain' or 'consentier train --force'."
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _NewItems:
    """Share of the rows that are on items that a bundle does not know, and how many persons these are of."""

    share: float
    persons: int


def _new_items(permitted: tuple[PermittedRows, ...], known: list[str], window_days: int) -> _NewItems:
    rows = window_rows(permitted, window_days)
    unknown = rows.filter(pc.invert(pc.is_in(rows["item_id"], value_set=pa.array(known, pa.string()))))
    share = round(unknown.num_rows / rows.num_rows, 3) if rows.num_rows else 0.0
    return _NewItems(share, pc.count_distinct(unknown["person"]).as_py())


def _too_few(tier: Tier, then: DataSummary, at: dt.datetime) -> DriftCheck:
    says = (
        f"fewer than {MINIMUM_GROUP} persons have permitted rows in the {then['window_days']} days before "
        f"{at.date().isoformat()}; --cutoff names another time"
    )
    return _check(tier, "volume", then["rows_per_day"], None, None, None, says, breached=True)


def _checks(
    tier: Tier, then: DataSummary, now: DataSummary, new: _NewItems, settings: DriftConfig
) -> list[DriftCheck]:
    most = max(now["rows_per_day"], then["rows_per_day"])
    least = min(now["rows_per_day"], then["rows_per_day"])
    ratio = round(most / least, 3) if least else None
    checks = [
        _check(
            tier,
            "volume",
            then["rows_per_day"],
            now["rows_per_day"],
            ratio,
            settings.volume_ratio,
            "rows per day, and how many times one is the other",
            breached=ratio is None or ratio > settings.volume_ratio,
        ),
        _new_item_check(tier, new, settings.new_item_share),
        _mix(tier, "event mix", then["event_mix"], now["event_mix"], settings.event_mix_distance),
    ]
    for kind in HOLDERS[tier]:
        before, after = (summary["permission_mix"].get(kind, {}) for summary in (then, now))
        name = f"permissions of {kind}s"
        checks.append(_mix(tier, name, before, after, settings.permission_mix_distance))
    return [*checks, _columns(tier, then["columns"], now["columns"])]


def _new_item_check(tier: Tier, new: _NewItems, threshold: float) -> DriftCheck:
    """The share is told only where there are enough persons behind it; a breach always."""
    says = "share of the rows on items that the bundle does not know"
    figure: float | None = new.share
    if 0 < new.persons < MINIMUM_GROUP:
        figure, says = None, f"{says}: of fewer than {MINIMUM_GROUP} persons, not shown"
    return _check(tier, "new items", None, figure, figure, threshold, says, breached=new.share > threshold)


def _mix(
    tier: Tier, name: str, then: Mapping[str, float], now: Mapping[str, float], threshold: float
) -> DriftCheck:
    """Total variation distance between two sets of shares."""
    changes = {part: now.get(part, 0.0) - then.get(part, 0.0) for part in sorted({*then, *now})}
    distance = round(sum(abs(change) for change in changes.values()) / 2, 3)
    largest = sorted(changes, key=lambda part: (-abs(changes[part]), part))[:3]
    says = ", ".join(
        f"{part} {then.get(part, 0.0):.1%} → {now.get(part, 0.0):.1%}" for part in largest if changes[part]
    )
    return _check(tier, name, None, None, distance, threshold, says or "no change")


def _columns(tier: Tier, then: Mapping[str, str], now: Mapping[str, str]) -> DriftCheck:
    """Missing columns, and columns of another type, change what a model is fitted on; new ones do not yet."""
    missing = [name for name in then if name not in now]
    other = [
        f"{name} ({then[name]} → {now[name]})" for name in then if now.get(name, then[name]) != then[name]
    ]
    new = [name for name in now if name not in then]
    parts = [("missing", missing), ("other type", other), ("new", new)]
    says = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
    return _check(
        tier, "columns", None, None, None, None, says or "no change", breached=bool(missing or other)
    )


def _check(
    tier: Tier,
    check: str,
    then: float | None,
    now: float | None,
    distance: float | None,
    threshold: float | None,
    says: str,
    *,
    breached: bool | None = None,
) -> DriftCheck:
    if breached is None:
        breached = distance is not None and threshold is not None and distance > threshold
    return {
        "tier": str(tier),
        "check": check,
        "then": then,
        "now": now,
        "distance": distance,
        "threshold": threshold,
        "breached": breached,
        "says": says,
    }
