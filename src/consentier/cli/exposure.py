"""``consentier exposure``: what rested on a state of consent that turned out wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.ledgers import LedgerUrl, ledger_at
from consentier.cli.options import AsJson, KeyringPath, LifetimesPath, PolicyPath, RestrictedPath
from consentier.cli.output import note, print_json, print_table, say, short
from consentier.cli.replay import keyring_beside
from consentier.errors import DataError

if TYPE_CHECKING:
    from consentier.serving.exposure import Cause, ExposureReport, LineageLookup


def exposure(
    ledger: LedgerUrl,
    audit: Annotated[
        Path | None, typer.Option("--audit", help="The directory of the audit log, or one of its files.")
    ] = None,
    bundles: Annotated[Path | None, typer.Option("--bundles", help="The directory of bundles.")] = None,
    restricted: RestrictedPath = None,
    keys: KeyringPath = None,
    names: Annotated[
        bool, typer.Option("--names", help="Show ids of subjects, not their keyed digests.")
    ] = False,
    policy: PolicyPath = None,
    lifetimes: LifetimesPath = None,
    as_json: AsJson = False,
) -> None:
    """List the answers and bundles that late consent records show to rest on too much.

    A record is late for what was decided after it took effect and before it was on the ledger.
    """
    from consentier.consent import Policy
    from consentier.consent.keyring import Keyring
    from consentier.serving.exposure import exposure as find_exposure

    if audit is None and bundles is None:
        raise DataError("name what to look at: --audit, --bundles or both")
    if keys is None and audit is not None:
        keys = keyring_beside(audit)
    with ledger_at(ledger, lifetimes) as opened:
        report = find_exposure(
            opened,
            # Without audit lines there is nothing that a subject's digest could be compared with.
            keyring=Keyring.ephemeral() if keys is None else Keyring.open(keys, create=False),
            policy=Policy.default() if policy is None else Policy.load(policy),
            audit=audit,
            bundles=() if bundles is None else (bundles,),
            lineage=None if bundles is None else _lineage(bundles, restricted),
            show_subjects=names,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


def _lineage(bundles: Path, restricted: Path | None) -> LineageLookup | None:
    from consentier.training.restricted import Restricted

    if not bundles.is_dir():
        raise DataError(f"{bundles}: there is no such directory of bundles")
    place = Restricted.beside(bundles) if restricted is None else Restricted(restricted)
    if not place.path.is_dir():
        note(f"there is no lineage index ({place.path}): every bundle counts as holding everybody")
        return None
    index = place.lineage()
    return lambda kind, subject: [held.digest for held in index.bundles_of(kind, subject)]


def _print(report: ExposureReport) -> None:
    for problem in report.unreadable:
        note(f"left out: {problem}")
    say(f"{len(report.answers)} of {report.lines:,} audit lines, {len(report.bundles)} bundles are exposed")
    if report.answers:
        say()
        print_table(
            ["answer", "at", "tier", "channel", "why not", "late entries"],
            [
                [
                    Path(answer.where).name,
                    answer.at.isoformat(),
                    str(answer.tier),
                    answer.channel,
                    answer.reason if answer.certain else f"{answer.reason} (not certain)",
                    _positions(answer.causes),
                ]
                for answer in report.answers
            ],
        )
    if report.bundles:
        say()
        print_table(
            ["bundle", "digest", "training cut-off", "persons", "late entries"],
            [
                [
                    bundle.path,
                    short(bundle.digest),
                    bundle.cutoff.isoformat(),
                    f"{len(bundle.subjects)}" if bundle.certain else f"up to {len(bundle.subjects)}",
                    _positions(bundle.causes),
                ]
                for bundle in report.bundles
            ],
        )


def _positions(causes: tuple[Cause, ...]) -> str:
    return ", ".join(str(cause.position) for cause in causes)
