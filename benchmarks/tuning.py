"""TPE against successive halving and random search, at the cost of about as many fits: which tunes better?

All search the same space on the same validation period, and the current configuration is among what each one
tries. What they choose is then judged on the test period, which none of them has seen. Successive halving is
scikit-learn's; its resource is the number of persons that a model is fitted on, in three rungs of a factor
of 3 (its other resource, requests to judge by, saves little where a fit takes longer than the answers). Run::

    python benchmarks/tuning.py DATA --tier crm --seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import sys
import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.base import BaseEstimator
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingRandomSearchCV

from consentier.consent import Policy, Tier
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.tables import read_shop
from consentier.training.bootstrap import paired_difference
from consentier.training.config import Algorithm, TierConfig, load_config
from consentier.training.search_space import Parameter, configured, facts_of, space_of
from consentier.training.tune import Objective, search
from consentier.training.validation import validation_set

Chosen = tuple[TierConfig, int]
"""A configuration, and after how many fits it was chosen."""


def tpe(objective: Objective, base: TierConfig, space: list[Parameter], fits: int, seed: int) -> Chosen:
    found = search(objective, base, space, seed=seed, trials=fits, patience=fits)
    return found.config, len(found.trials)


def _drawn(base: TierConfig, space: list[Parameter], count: int, seed: int) -> list[TierConfig]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [base, *(configured(space, base, study.ask()) for _ in range(count - 1))]


def random(objective: Objective, base: TierConfig, space: list[Parameter], fits: int, seed: int) -> Chosen:
    configs = _drawn(base, space, fits, seed)
    return max(configs, key=lambda config: float(objective.values(config).mean())), fits


class _Candidate(BaseEstimator):  # type: ignore[misc]
    """One configuration, fitted on the rows of some persons."""

    def __init__(self, objective: Objective, config: TierConfig, persons: int = 1) -> None:
        self.objective, self.config, self.persons = objective, config, persons

    def fit(self, X: object, y: object = None) -> _Candidate:
        return self

    def score(self, X: object, y: object = None) -> float:
        return float(_on_persons(self.objective, self.persons).values(self.config).mean())

    def __sklearn_clone__(self) -> _Candidate:
        return _Candidate(self.objective, self.config, self.persons)  # the data are not copied


def _persons_of(objective: Objective) -> pa.Array:
    everybody = sorted(pc.unique(objective.data.rows.rows["person"]).to_pylist())
    return pa.array(np.random.default_rng(0).permutation(everybody).tolist(), pa.string())


def _on_persons(objective: Objective, count: int) -> Objective:
    """The same requests, answered by a model of fewer persons."""
    rows = objective.data.rows.rows
    everybody = _persons_of(objective)
    if count >= len(everybody):
        return objective
    some = dataclasses.replace(
        objective.data.rows, rows=rows.filter(pc.is_in(rows["person"], everybody.slice(0, count)))
    )
    data = dataclasses.replace(objective.data, rows=some)
    return Objective(
        data, objective.metric, min_persons=objective.rows.min_persons, threads=objective.threads
    )


def halving(objective: Objective, base: TierConfig, space: list[Parameter], fits: int, seed: int) -> Chosen:
    candidates = round(fits / (1 + 1 / 3 + 1 / 9))
    configs = _drawn(base, space, candidates, seed)
    persons = len(_persons_of(objective))
    found = HalvingRandomSearchCV(
        _Candidate(objective, base),
        {"config": configs},
        n_candidates=candidates,
        factor=3,
        resource="persons",
        min_resources=persons // 9,
        max_resources=persons,
        cv=[([0, 1], [0, 1])],
        refit=False,
        random_state=seed,
        error_score=0.0,
    ).fit(np.zeros((2, 1)), np.zeros(2))
    return found.best_params_["config"], len(found.cv_results_["params"])


METHODS: dict[str, Callable[[Objective, TierConfig, list[Parameter], int, int], Chosen]] = {
    "TPE": tpe,
    "halving": halving,
    "random": random,
}


def main() -> int:
    """Print one row per method and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--tier", default="crm", choices=["session", "online", "crm", "fused"])
    parser.add_argument("--fits", type=int, default=40)
    parser.add_argument("--halving-fits", type=int, help="By default as many as the others have.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-persons", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument(
        "--algorithms", nargs="*", choices=get_args(Algorithm), help="By default those of tune."
    )
    options = parser.parse_args()
    config, shop, tier = load_config(data=options.data), read_shop(options.data), Tier(options.tier)
    cutoff = config.training.cutoff
    if cutoff is None:
        raise SystemExit("the data have no cut-off")
    horizon = dt.timedelta(days=config.evaluation.horizon_days)

    def objective_from(start: dt.datetime) -> Objective:
        gate = ConsentGate(shop, ledger_of(shop), start + horizon, Policy.default())
        data = validation_set(
            tier, gate.permitted(tier), start, start + horizon, max_persons=options.max_persons, seed=0
        )
        return Objective(data, config.tuning.metric, min_persons=1, threads=options.threads)

    validation, test = objective_from(cutoff - horizon), objective_from(cutoff)
    base: TierConfig = getattr(config, tier)
    algorithms = options.algorithms or config.tuning.algorithms
    space: Any = space_of(facts_of(tier, validation.data.rows), base, algorithms)
    current: dict[str, np.ndarray[Any, Any]] = {
        "validation": validation.values(base), "test": test.values(base),
    }  # fmt: skip
    print(f"{options.data} {tier}: {len(validation.data.requests)} requests, {len(space)} parameters")
    print(f"current: validation {current['validation'].mean():.4f}, test {current['test'].mean():.4f}")
    print("| method | seed | fits | CPU s | validation | test | test over current |")
    print("|---|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        for name in options.methods:
            fits = options.halving_fits or options.fits if name == "halving" else options.fits
            started = time.process_time()
            chosen, done = METHODS[name](validation, base, space, fits, seed)
            seconds = time.process_time() - started
            judged = test.values(chosen)
            gain = paired_difference(judged, current["test"], test.data.persons, rng=0)
            print(
                f"| {name} | {seed} | {done} | {seconds:.0f} | {validation.values(chosen).mean():.4f} "
                f"| {judged.mean():.4f} | {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
