"""``consentier tune``: which parameters serve a tier best, on a validation period before the cut-off."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from consentier.addresses import shown_url
from consentier.cli.ledgers import TrainingLedgerUrl, shop_and_ledger
from consentier.cli.options import (
    AsJson,
    BadRows,
    ConfigPath,
    Cutoff,
    LifetimesPath,
    OnBadRowsOption,
    PersonTier,
    PolicyPath,
    ReplaceFile,
    ShopData,
)
from consentier.cli.output import name_of, note, print_json, print_table, require_file, say, written_beside
from consentier.consent import Policy, Tier
from consentier.errors import suggestion

if TYPE_CHECKING:
    from consentier.training.config import Config
    from consentier.training.tune import TuningResult


def tune(
    data: ShopData,
    out: Annotated[
        Path, typer.Option("--out", help="The configuration to write (TOML), for train --config.")
    ],
    tier: Annotated[
        list[PersonTier] | None,
        typer.Option("--tier", help="What to tune; may be given more than once. By default all."),
    ] = None,
    config: ConfigPath = None,
    cutoff: Cutoff = None,
    horizon: Annotated[
        int | None,
        typer.Option("--horizon", min=1, max=3650, help="Days of the validation period before the cut-off."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, max=10_000, help="Configurations to try per tier.")
    ] = None,
    algorithms: Annotated[
        str | None,
        typer.Option(
            "--algorithms",
            metavar="NAMES",
            help="Algorithms to try besides the current one: local_ridge,als. By default those that the "
            "configuration names, or else the linear ones.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the search.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0,
            help="Seconds after which no further trial of a tier begins; the best so far is taken.",
        ),
    ] = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    force: ReplaceFile = False,
    as_json: AsJson = False,
) -> None:
    """Search for better parameters of the tiers, on a validation period before the cut-off."""
    from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
    from consentier.training.config import load_config
    from consentier.training.tune import TUNED_TIERS, tuned_toml
    from consentier.training.tune import tune as search

    require_file(out)
    if out.exists() and not force:
        raise FileExistsError(f"{out}: there is a file already; use --force to replace it")
    base = load_config(config, data=data, environ=os.environ)
    settings = _for_this_search(base, horizon, trials, _names(algorithms), seed)
    if cutoff is not None:
        settings = settings.with_cutoff(cutoff)
    wanted = {Tier(each.value) for each in tier or PersonTier}
    with shop_and_ledger(data, on_bad_rows, ledger, lifetimes) as (shop, opened):
        result = search(
            shop,
            settings,
            tiers=[each for each in TUNED_TIERS if each in wanted],
            policy=None if policy is None else Policy.load(policy),
            ledger=opened,
            timeout=timeout,
            tracking_folder=_store_folder(out, data),
        )
    if Tier.SESSION in wanted and FACTOR_ALGORITHMS.intersection(settings.tuning.algorithms):
        note(
            f"{', '.join(sorted(FACTOR_ALGORITHMS))} are not tried in the session tier, which knows no person"
        )
    with written_beside(out) as beside:
        beside.write_text(tuned_toml(result, base, name=name_of(data)), "utf-8")
    if as_json:
        print_json(_plain(result, out))
        return
    print_tuning(result)
    say(f"\nwritten to {out}")
    shown = shown_url(data) if "://" in data else data
    note(f"next: consentier train {shown} --config {out} --out bundles")


def print_tuning(result: TuningResult) -> None:
    """Print what each tier gained, and on what."""
    from consentier.training.evaluation_result import mean_with_bounds
    from consentier.training.tune import popular_ahead

    say(f"{result.metric} from {result.start.isoformat()} to {result.end.isoformat()}\n")
    rows = []
    for each in result.tiers:
        difference = each.figures.get("difference")
        rows.append(
            [
                str(each.tier),
                each.persons,
                each.requests,
                each.figures["popular"].mean,
                each.figures["current"].mean if "current" in each.figures else None,
                each.figures["chosen"].mean,
                None if difference is None else mean_with_bounds(difference.to_dict(), sign="+"),
                f"{each.best} of {len(each.trials)}",
            ]
        )
    print_table(
        ["tier", "persons", "requests", "popular", "before", "chosen", "chosen over before", "trial"], rows
    )
    for each in result.tiers:
        say()
        _print_changes(each.tier, dict(each.trials[each.best].parameters))
        say(f"search ended: {each.stopped}")
        ahead = popular_ahead(each, result.metric)
        if ahead is not None:
            say(ahead, style="yellow")
    for name, reason in result.skipped.items():
        say(f"\n{name} was not tuned: {reason}", style="yellow")
    say(
        "\nThese are values of the validation period, by which the parameters were chosen: they flatter. "
        "What they are worth on time that nothing has seen, consentier evaluate says."
    )


def _print_changes(tier: Tier, changes: dict[str, Any]) -> None:
    if not changes:
        say(f"{tier}: nothing was better than the configuration before")
        return
    print_table(["parameter", "chosen"], [[name, str(value)] for name, value in changes.items()], title=tier)


def _names(algorithms: str | None) -> tuple[str, ...] | None:
    """The algorithms that an option names.

    Raises
    ------
    typer.BadParameter
        If one of them is none.
    """
    from consentier.training.config import Algorithm

    if algorithms is None:
        return None
    names, known = tuple(name.strip() for name in algorithms.split(",")), get_args(Algorithm)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r}{suggestion(name, known)}", param_hint="'--algorithms'")
    return names


def _for_this_search(
    base: Config,
    horizon: int | None,
    trials: int | None,
    algorithms: tuple[str, ...] | None,
    seed: int | None,
) -> Config:
    """What the options change; the file that is written does not say it."""
    changes = {"horizon_days": horizon, "trials": trials, "algorithms": algorithms}
    tuning = base.tuning.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    training = base.training if seed is None else base.training.model_copy(update={"seed": seed})
    return base.model_copy(update={"tuning": tuning, "training": training})


def _store_folder(out: Path, data: str) -> Path:
    """Where a local MLflow store is: beside the file, but not among the shop's tables."""
    folder = out.absolute().parent
    return Path.cwd() if "://" not in data and folder == Path(data).absolute() else folder


def _plain(result: TuningResult, out: Path) -> dict[str, Any]:
    from consentier.training.tune import popular_ahead

    ahead = [popular_ahead(each, result.metric) for each in result.tiers]
    tiers = {
        str(each.tier): {
            "config": each.config.model_dump(mode="json"),
            "figures": {name: interval.to_dict() for name, interval in each.figures.items()},
            "persons": each.persons,
            "requests": each.requests,
            "best": each.best,
            "stopped": each.stopped,
            "trials": [dataclasses.asdict(trial) for trial in each.trials],
        }
        for each in result.tiers
    }
    return {
        "out": str(out),
        "metric": result.metric,
        "start": result.start.isoformat(),
        "end": result.end.isoformat(),
        "seed": result.seed,
        "tiers": tiers,
        "skipped": dict(result.skipped),
        "notes": [text for text in ahead if text is not None],
    }
