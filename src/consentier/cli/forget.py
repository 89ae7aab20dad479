"""``consentier forget``: subjects out of the bundles, exactly."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consentier.cli.ledgers import TrainingLedgerUrl, opened_ledger
from consentier.cli.options import (
    AsJson,
    BadRows,
    ConfigPath,
    EngineChoice,
    EngineOption,
    Kind,
    KindOption,
    LifetimesPath,
    MasterUrl,
    OnBadRowsOption,
    RestrictedPath,
)
from consentier.cli.output import CHECK_FAILED, note, print_json, print_table, say, short
from consentier.cli.spark import require_no_master, spark_shop
from consentier.consent import Policy
from consentier.errors import BundleMissing, DataError

if TYPE_CHECKING:
    from consentier.training.forget import ForgetResult, Subject
    from consentier.training.forgotten_versions import RegisteredTier


def forget(
    subjects: Annotated[list[str], typer.Argument(metavar="SUBJECT...", help="Ids of those to forget.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="The shop's tables, with the subjects' rows: a directory or the URL of a database."
        ),
    ],
    bundles: Annotated[
        Path,
        typer.Option(
            "--bundles",
            "--bundle",
            help="The directory that 'consentier train' wrote, or the bundle of one tier in it.",
        ),
    ],
    kind: KindOption = Kind.CUSTOMER,
    restricted: RestrictedPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            help="Routing policy (TOML) that the bundles were fitted under. By default what the kept "
            "statistics say, else the strict one.",
        ),
    ] = None,
    config: ConfigPath = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    engine: EngineOption = EngineChoice.EMBEDDED,
    master: MasterUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take subjects out of the bundles: each becomes, byte for byte, what a fit without them gives.

    It says per tier whether the subjects were subtracted or the tier had to be fitted again, and why.
    Run it before the subjects' rows are deleted. Where bundles are registered, the new ones are too, take the
    place of a champion that they were made from, and versions that hold the subjects are revoked. Exit with 1
    if a tier lost its bundle because a fit without them has no stable solution.
    """
    from consentier.training.bundles import TRAINED_TIERS
    from consentier.training.config import load_config
    from consentier.training.forget import ForgetResult
    from consentier.training.restricted import Restricted
    from consentier.training.track import has_store

    tiers = list(TRAINED_TIERS)
    out = bundles
    if (bundles / "manifest.json").is_file():
        out = bundles.absolute().parent
        tiers = [tier for tier in TRAINED_TIERS if tier == bundles.absolute().name]
        if not tiers:
            raise DataError(
                f"{bundles}: the bundle lies under no tier's name, so nothing is kept by which it could "
                "forget: name the directory that 'consentier train' wrote"
            )
    settings = load_config(config, data=data, environ=os.environ)
    chosen: list[Subject] = [(kind.value, subject) for subject in subjects]
    place = Restricted.beside(out) if restricted is None else Restricted(restricted.absolute())
    run: dict[str, Any] = {"tiers": tiers, "policy": None if policy is None else Policy.load(policy)}
    told = has_store(settings.tracking, out)
    try:
        with opened_ledger(ledger, lifetimes) as opened:
            forget_in = _way(engine, data, on_bad_rows, master)
            result = forget_in(chosen, out, place, ledger=opened, **run)
    except BundleMissing:
        # A run may have been killed when the last bundle was gone, and before the registry knew.
        if not (told and place.path.is_dir()):
            raise
        result = ForgetResult(())
    registered = []
    if told:
        from consentier.training.forgotten_versions import register_forgotten

        now = dt.datetime.now(dt.UTC)
        registered = register_forgotten(settings, out, place, chosen, result, tiers=tiers, at=now)
    if not (result.tiers or registered):
        raise BundleMissing(f"{out}: there is no bundle to forget anybody in; train first")
    _print(result, registered, kind, as_json=as_json)
    if any(each.how == "unsolved" for each in result.tiers):
        raise typer.Exit(CHECK_FAILED)


def _way(
    engine: EngineChoice, data: str, on_bad_rows: BadRows, master: str | None
) -> Callable[..., ForgetResult]:
    """Forgetting in a shop's bundles on the one engine or the other, once its tables are read."""
    if engine is EngineChoice.SPARK:
        session_and_shop = spark_shop(data, master, on_bad_rows)
        from consentier.training.spark_forgetting import forget_on_spark

        return functools.partial(forget_on_spark, *session_and_shop)
    require_no_master(master)
    from consentier.features.tables import read_shop
    from consentier.training.forget import forget as forget_in_bundles

    return functools.partial(forget_in_bundles, read_shop(data, on_bad_rows=on_bad_rows.value))


def _print(result: ForgetResult, registered: Sequence[RegisteredTier], kind: Kind, *, as_json: bool) -> None:
    if as_json:
        versions = [dataclasses.asdict(each) for each in registered]
        print_json({**dataclasses.asdict(result), "registry": versions})
        return
    touched = any(each.how != "unchanged" for each in result.tiers)
    told = [each for each in registered if each.version or each.revoked or each.deadline]
    if touched:
        _print_tiers(result)
    else:
        say(
            "No bundle holds any of them, nor do the statistics kept for forgetting: nothing was changed. If "
            "one should: check the id, and --kind",
            style="yellow",
        )
    if touched or told:
        _print_registry(registered if touched else told)
    if kind is Kind.CUSTOMER:
        note("devices are subjects of their own: --kind visitor forgets what they did in the online models")


def _print_tiers(result: ForgetResult) -> None:
    print_table(
        ["tier", "how", "before", "after", "items solved", "seconds"],
        [
            [each.tier, each.how, short(each.before), short(each.after), each.solved, each.seconds]
            for each in result.tiers
        ],
    )
    for each in result.tiers:
        if each.reason is not None and each.how != "unchanged":
            bad = each.how == "unsolved"
            how = "has no bundle any more" if bad else f"was {each.how}"
            say(f"\n{each.tier} {how}: {each.reason}", style="red" if bad else "yellow")


def _print_registry(registered: Sequence[RegisteredTier]) -> None:
    say()
    print_table(
        ["registered model", "new version", "made from", "champion", "hold them, or may: revoked"],
        [
            [each.tier, each.version, each.made_from, each.champion, ", ".join(each.revoked) or None]
            for each in registered
        ],
    )
    for each in registered:
        if each.deadline is not None:
            until = each.deadline.isoformat(timespec="seconds")
            say(
                f"\nversion {each.champion} is the champion of {each.tier} and holds, or may hold, who was "
                f"to be forgotten: it stops answering at {until}. Train and promote before that.",
                style="red",
            )
