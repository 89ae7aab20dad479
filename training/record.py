"""The record of a training run in MLflow: one parent, and for each tier a child and a version of its model.

A child holds the resolved configuration, the facts of the run, what went in (a fingerprint and counts of the
permitted rows), the measurement of `training.measure` with its plots, the model card, and the bundle. The
parent holds the comparison of the tiers on one cohort, where fused is among them. Nothing in it is about a
person: only counts, figures over groups, digests, and what the bundle holds.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import ConsentierError, TrainingError
from consentier.features.gate import ConsentGate, PermittedRows
from consentier.features.tables import ShopTables
from consentier.models.bundle import Bundle, open_bundle, read_run
from consentier.progress import progress
from consentier.serving.loading import problem_of
from consentier.serving.registry import CHAMPION, DIGEST_TAG
from consentier.serving.revocation import Revocations
from consentier.training.bundles import TrainingResult, train_bundles
from consentier.training.config import Config, config_hash
from consentier.training.consent_now import ConsentNow
from consentier.training.drift import compared
from consentier.training.drift_result import DriftResult
from consentier.training.evaluate import evaluate_bundles
from consentier.training.evaluation_result import EvaluationResult, IntervalFigures
from consentier.training.measure import (
    MODEL,
    POPULAR,
    Champion,
    Measurement,
    Periods,
    SingleSource,
    empty_measurement,
    measure,
)
from consentier.training.model_card import model_card
from consentier.training.model_registry import CHALLENGER, ModelRegistry, version_tags
from consentier.training.plots import difference_figure, learning_figure, to_svg
from consentier.training.report import render_report
from consentier.training.restricted import Restricted
from consentier.training.run_facts import git_commit
from consentier.training.stale_runs import end_stale_runs, trainer_tags
from consentier.training.track import ended, opened_store
from consentier.writing import scratch

__all__ = ["MEASUREMENT_FILE", "record_run", "unrecorded"]

MEASUREMENT_FILE = "measurement.json"
"""The artifact of a tier's run that promotion reads."""

_DIGESTS_TAG = "bundle_digests"
"""On the parent: the bundles that the run is about, so that a run that was killed is known again."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SINGLE_SOURCE = (Tier.ONLINE, Tier.CRM)


def record_run(
    shop: ShopTables,
    config: Config,
    trained: TrainingResult,
    *,
    policy: Policy,
    ledger: Ledger,
    restricted: Restricted | None,
    name: str,
    show_progress: bool,
) -> TrainingResult:
    """Measure what was trained, record it, and register each bundle as the challenger of its tier.

    Parameters
    ----------
    shop, config, policy, ledger, restricted
        What the bundles were trained with. The configuration's ``tracking`` says where to.
    trained
        The bundles.
    name
        What to call the data.
    show_progress
        Say on standard error what is being done.

    Returns
    -------
    TrainingResult
        With the ids of the runs and the versions of the models.

    Notes
    -----
    Three further fits of each tier, and one more where the model in use is fitted again. What cannot be
    measured is noted in the record, and ends nothing. A run that is interrupted leaves a parent marked as
    killed; one that is ended by force is marked so by the next, and `unrecorded` finds what it had not
    recorded.
    """
    with progress("opening the MLflow store", None, enabled=show_progress):
        client, experiment = opened_store(config.tracking, trained.out)
    registry = ModelRegistry(client, config.tracking.experiment)
    run = _Run(shop, config, trained, policy, ledger, restricted, name, show_progress)
    end_stale_runs(client, experiment, restricted)
    digests = " ".join(sorted(trained.digests.values()))
    tags = {
        "mlflow.source.name": "consentier train", _DIGESTS_TAG: digests, **_commit_tag(),
        **trainer_tags(restricted),
    }  # fmt: skip
    parent = client.create_run(experiment, run_name="train", tags=tags).info.run_id
    run_ids, versions = {"run": parent}, {}
    with ended(client, parent), scratch("record") as folder:
        champions, notes = _champions(run, registry, folder)
        found = _measured(run, champions, folder)
        found.drift["not_judged"].update(_without_champion(run, champions, notes))
        client.log_dict(parent, config.recorded(), "config.json")
        client.log_param(parent, "config_hash", config_hash(config))
        client.log_param(parent, "cutoff", trained.cutoff.isoformat())
        client.log_dict(parent, dict(found.drift), "drift.json")
        if found.evaluation is not None:
            client.log_dict(parent, dict(found.evaluation), "evaluation.json")
            client.log_text(parent, render_report(found.evaluation, found.drift), "report.html")
        with progress("recording the run in MLflow", len(trained.digests), enabled=show_progress) as advance:
            for tier in map(Tier, trained.digests):
                if tier in notes:
                    found.tiers[tier]["notes"].append(notes[tier])
                child_tags = {"mlflow.parentRunId": parent, "tier": str(tier), **_commit_tag()}
                child_tags |= {DIGEST_TAG: trained.digests[tier], **trainer_tags(restricted)}
                child = client.create_run(experiment, run_name=str(tier), tags=child_tags).info
                run_ids[str(tier)] = child.run_id
                with ended(client, child.run_id):
                    _record_tier(client, child.run_id, run, tier, found)
                    bundle = open_bundle(trained.out / tier, verify=False)
                    told = version_tags(bundle.manifest, bundle.digest, read_run(trained.out / tier))
                    made = registry.register(tier, child.run_id, f"{child.artifact_uri}/bundle", told)
                    versions[str(tier)] = made.number
                    registry.note_deadlines(tier, Revocations.open(trained.out).current())
                advance()
    return dataclasses.replace(trained, run_ids=run_ids, versions=versions)


def unrecorded(config: Config, out: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Which bundles have no version in the registry, because the run that wrote them did not come to that.

    What a run that was killed left half done is ended: a version without its alias gets it, and runs that
    nobody goes on with are marked as killed. Nobody else may be recording the same bundles meanwhile.

    Parameters
    ----------
    config
        Its ``tracking`` says where to look.
    out
        The directory of the bundles.
    digests
        Their digests by tier.

    Returns
    -------
    dict
        Those among them that `record_run` has yet to record.
    """
    client, experiment = opened_store(config.tracking, out)
    registry = ModelRegistry(client, config.tracking.experiment)
    versions = {tier: registry.versions(Tier(tier)) for tier in digests}
    made_by = {version.run_id: version for found in versions.values() for version in found}
    for info in _abandoned(client, experiment, set(digests.values())):
        version = made_by.get(info.run_id)
        if version is not None:
            if version == versions[version.tier][0]:
                registry.point(version.tier, CHALLENGER, version.number)
            registry.note_deadlines(version.tier, Revocations.open(out).current())
        client.set_terminated(info.run_id, status="KILLED" if version is None else "FINISHED")
    return {
        tier: digest
        for tier, digest in digests.items()
        if all(version.digest != digest for version in versions[tier])
    }


def _abandoned(client: Any, experiment: str, digests: set[str]) -> list[Any]:
    """Runs about some bundles that have not ended."""
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    names = (DIGEST_TAG, _DIGESTS_TAG)
    return [
        run.info
        for run in running
        if digests & {digest for name in names for digest in run.data.tags.get(name, "").split()}
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """What a run was made with."""

    shop: ShopTables
    config: Config
    trained: TrainingResult
    policy: Policy
    ledger: Ledger
    restricted: Restricted | None
    name: str
    show_progress: bool

    @property
    def tiers(self) -> list[Tier]:
        """The tiers with a bundle that are measured."""
        return [tier for tier in map(Tier, self.trained.digests) if tier is not Tier.POPULAR]


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """What was measured: by tier, and of all tiers on one cohort; the rows that went in, and how these differ
    from those of the models in use.
    """

    tiers: Mapping[Tier, Measurement]
    rows: Mapping[Tier, PermittedRows]
    evaluation: EvaluationResult | None
    drift: DriftResult


def _commit_tag() -> dict[str, str]:
    commit = git_commit()
    return {} if commit is None else {"mlflow.source.git.commit": commit}


# ---- The models in use -------------------------------------------------------------------------------------


def _champions(
    run: _Run, registry: ModelRegistry, folder: Path
) -> tuple[dict[Tier, Champion], dict[Tier, str]]:
    """The bundle that each tier has in use, and why one could not be read."""
    champions: dict[Tier, Champion] = {}
    notes: dict[Tier, str] = {}
    for tier in map(Tier, run.trained.digests):
        version = registry.aliased(tier, CHAMPION)
        if version is None:
            continue
        try:
            path = registry.download(version, folder / "champions" / tier)
            bundle = open_bundle(path, expected_digest=version.digest)
        except Exception as error:  # noqa: BLE001 - whatever a registry raises, training goes on and says so
            problem = problem_of(error)
            notes[tier] = f"The model in use, version {version.number}, could not be read: {problem}."
            continue
        champions[tier] = Champion(version.number, bundle, _may_be_asked(run, tier, bundle))
    return champions, notes


def _without_champion(
    run: _Run, champions: Mapping[Tier, Champion], notes: Mapping[Tier, str]
) -> dict[str, str]:
    """Why a tier's data cannot be held against those of its model in use."""
    return {
        tier: notes.get(Tier(tier), f"There is no champion of the {tier} tier to compare its data with.")
        for tier in run.trained.digests
        if Tier(tier) not in champions
    }


def _may_be_asked(run: _Run, tier: Tier, bundle: Bundle) -> bool:
    """Whether a model rests on nothing that may not be used at the cut-off of this run."""
    if run.restricted is None:
        return False
    deadlines = Revocations.open(run.trained.out).current()
    if deadlines.fault or bundle.digest in deadlines.by_digest:
        return False
    now = ConsentNow(run.ledger, run.policy)
    return now.standing(bundle.digest, tier, lineage=run.restricted.lineage(), at=run.trained.cutoff).clean


# ---- Measuring ---------------------------------------------------------------------------------------------


def _measured(run: _Run, champions: Mapping[Tier, Champion], folder: Path) -> _Found:
    periods = Periods.before(run.trained.cutoff, run.config)
    earlier, problem = _earlier(run, periods, folder / "earlier")
    evaluation, fused_problem = None, ""
    if earlier is not None and Tier.FUSED in run.tiers:
        evaluation, fused_problem = _compared(run, earlier, periods)
    gate = ConsentGate(run.shop, run.ledger, run.trained.cutoff, run.policy)
    tiers: dict[Tier, Measurement] = {}
    rows: dict[Tier, PermittedRows] = {}
    with progress("measuring the tiers", len(run.tiers), enabled=run.show_progress) as advance:
        for tier in run.tiers:
            rows[tier] = gate.permitted(tier)
            fitted = None
            if earlier is not None and str(tier) in earlier.digests:
                fitted = open_bundle(earlier.out / tier)
            tiers[tier] = measure(
                tier, rows[tier], run.config, periods, fitted=fitted, champion=champions.get(tier)
            )
            if fitted is None:
                why = problem or ("" if earlier is None else earlier.skipped.get(str(tier), ""))
                tiers[tier]["notes"].append(f"Nothing was measured in the test period: {why}.")
            advance()
    if Tier.FUSED in tiers:
        if evaluation is not None:
            tiers[Tier.FUSED]["single_source"] = _single_source(evaluation, tiers[Tier.FUSED]["metric"])
        if fused_problem:
            tiers[Tier.FUSED]["notes"].append(
                f"Fused was not compared with the tiers of a single source: {fused_problem}."
            )
    if Tier.POPULAR in map(Tier, run.trained.digests):
        tiers[Tier.POPULAR] = empty_measurement(Tier.POPULAR, run.config)
    with progress("comparing the data with those of the models in use", None, enabled=run.show_progress):
        in_use = {tier: champion.bundle.path for tier, champion in champions.items()}
        drift = compared(in_use, gate, run.config.drift)
    return _Found(tiers, rows, evaluation, drift)


def _earlier(run: _Run, periods: Periods, folder: Path) -> tuple[TrainingResult | None, str]:
    """Models of the same configuration, fitted on what was before the test period, under the same gate."""
    wanted = {*run.tiers, Tier.POPULAR}
    if Tier.FUSED in wanted:
        wanted.update(_SINGLE_SOURCE)
    try:
        return train_bundles(
            run.shop,
            run.config.with_cutoff(periods.end),
            folder,
            tiers=[tier for tier in Tier if tier in wanted],
            policy=run.policy,
            until=periods.test,
            ledger=run.ledger,
            show_progress=run.show_progress,
        ), ""
    except TrainingError as error:
        return None, str(error)


def _compared(run: _Run, earlier: TrainingResult, periods: Periods) -> tuple[EvaluationResult | None, str]:
    """All tiers on one cohort, as `evaluate` compares them."""
    try:
        return evaluate_bundles(
            run.shop,
            run.config.evaluation,
            earlier,
            start=periods.test,
            end=periods.end,
            policy=run.policy,
            ledger=run.ledger,
            name=run.name,
            show_progress=run.show_progress,
        ), ""
    except ConsentierError as error:
        return None, str(error)


def _single_source(evaluation: EvaluationResult, metric: str) -> SingleSource | None:
    """Fused against the best tier of a single source, each with its own training rows."""
    rows = [
        row
        for contrast in evaluation["contrasts"]
        if contrast["name"] == "each tier's own training rows"
        for row in contrast["rows"]
        if row["better"] == Tier.FUSED and row["metric"] == metric
    ]
    if not rows:
        return None
    # The same fused lists in all rows: the smallest difference is that to the best tier.
    closest = min(rows, key=lambda row: row["difference"]["mean"])
    return {
        "best": closest["baseline"],
        "metric": metric,
        "customers": evaluation["customers"],
        "difference": closest["difference"],
        "p_value": closest["p_value"],
    }


# ---- Recording ---------------------------------------------------------------------------------------------


def _record_tier(client: Any, run_id: str, run: _Run, tier: Tier, found: _Found) -> None:
    from mlflow.entities import Metric, Param

    facts = read_run(run.trained.out / tier)
    measurement = found.tiers[tier]
    now = int(time.time() * 1000)
    figures = {**_counts(facts), **_scores(measurement)}
    params = _params(run.config, tier, run.trained.cutoff, facts)
    client.log_batch(
        run_id,
        metrics=[Metric(_metric_name(name), value, now, 0) for name, value in figures.items()],
        params=[Param(name, value) for name, value in params.items()],
    )
    client.log_inputs(run_id, [_dataset(run.name, tier, facts)])
    client.log_dict(run_id, run.config.recorded(), "config.json")
    client.log_dict(run_id, facts, "run.json")
    client.log_dict(run_id, dict(measurement), MEASUREMENT_FILE)
    bundle = open_bundle(run.trained.out / tier, verify=False)
    card = model_card(
        bundle.manifest,
        bundle.digest,
        facts,
        measurement,
        run.policy.switches,
        found.drift,
        first_day=_first_day(found.rows.get(tier)),
    )
    client.log_text(run_id, card, "model_card.md")
    for name, svg in _plots(measurement).items():
        client.log_text(run_id, svg, f"plots/{name}.svg")
    client.log_artifacts(run_id, str(run.trained.out / tier), "bundle")


def _params(config: Config, tier: Tier, cutoff: dt.datetime, facts: Mapping[str, Any]) -> dict[str, str]:
    settings = config.resolved()
    names = ("config_hash", "ledger_position", "ledger_head", "lifetimes", "rows_digest")
    return {
        **{name: str(value) for name, value in settings.get(str(tier), {}).items()},
        "min_persons": str(config.training.min_persons),
        "seed": str(config.training.seed),
        "cutoff": cutoff.isoformat(),
        **{name: str(facts[name]) for name in names},
        **{f"version.{package}": version for package, version in facts["versions"].items()},
    }


def _counts(facts: Mapping[str, Any]) -> dict[str, float]:
    counts = {"seconds": float(facts["seconds"])}
    for row in facts["funnel"]:
        counts[f"rows_in.{row['source']}"] = row["rows_in"]
        counts[f"rows_kept.{row['source']}"] = row["rows_kept"]
        counts.update({f"excluded.{row['source']}.{why}": n for why, n in row["excluded"].items()})
    return counts


def _scores(measurement: Measurement) -> dict[str, float]:
    """All scores with their bounds: ``test.ndcg@10``, ``test.ndcg@10.low``, ``test.popular.ndcg@10``, …"""
    found: dict[str, float] = {}
    for period in measurement["periods"]:
        for what, scores in period["figures"].items():
            of = "" if what == MODEL else f"{what}."
            for metric, interval in scores.items():
                found.update(_bounds(f"{period['name']}.{of}{metric}", interval))
    for each in measurement["differences"]:
        name = f"test.over_{each['against']}.{each['metric']}"
        found.update({**_bounds(name, each["difference"]), f"{name}.p": each["p_value"]})
    single = measurement["single_source"]
    if single is not None:
        name = f"test.over_{single['best']}.{single['metric']}"
        found.update({**_bounds(name, single["difference"]), f"{name}.p": single["p_value"]})
    return found


def _bounds(name: str, interval: IntervalFigures) -> dict[str, float]:
    return {name: interval["mean"], f"{name}.low": interval["low"], f"{name}.high": interval["high"]}


def _metric_name(name: str) -> str:
    """MLflow allows no ``@`` in the name of a metric; its own evaluators write ``ndcg_at_10``."""
    return name.replace("@", "_at_").replace(",", "")


def _dataset(name: str, tier: Tier, facts: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest = str(facts["rows_digest"]).removeprefix("sha256:")
    profile = {
        "rows_digest": facts["rows_digest"],
        "rows": {row["source"]: row["rows_kept"] for row in facts["funnel"]},
        "rows_in": {row["source"]: row["rows_in"] for row in facts["funnel"]},
    }
    # The digest of a data set may have 36 characters; the whole one is in the profile.
    dataset = Dataset(
        f"{name}: rows permitted to {tier}",
        digest[:36],
        "consentier",
        json.dumps({"name": name}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _first_day(permitted: PermittedRows | None) -> str | None:
    if permitted is None or not permitted.rows.num_rows:
        return None
    oldest: int = pc.min(permitted.rows["ts"]).as_py()
    return (_EPOCH + dt.timedelta(microseconds=oldest)).date().isoformat()


def _plots(measurement: Measurement) -> dict[str, str]:
    """The lift over the baselines, and the learning curve, as SVG texts by name."""
    metric = measurement["metric"]
    scores = {
        f"{what}, {period['name']}": found[metric]
        for period in measurement["periods"]
        for what, found in period["figures"].items()
    }
    if not scores:
        return {}
    differences = {
        f"model − {each['against']}": each["difference"]
        for each in measurement["differences"]
        if each["metric"] == metric
    }
    single = measurement["single_source"]
    if single is not None:
        differences[f"model − {single['best']} (linked)"] = single["difference"]
    plots = {"lift": to_svg(difference_figure(scores, differences, metric), "lift")}
    if measurement["learning"]:
        points = [(point["share"], point["score"]) for point in measurement["learning"]]
        (baseline,) = [
            period["figures"][POPULAR][metric]["mean"]
            for period in measurement["periods"]
            if period["name"] == "test"
        ]
        plots["learning"] = to_svg(learning_figure(points, baseline, metric), "learning")
    return plots
