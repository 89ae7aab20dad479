"""The whole router as one MLflow model: what a row of its input says, and what a row of its output.

Each row is a request of its own. It declares its permission; whatever is not exactly one of the known words
counts as none. There is no ledger and no store: the histories stand in the row, and only a tier that may read
a history ever parses it. So what the permission does not cover cannot change an answer, not even by being
malformed. What is wrong with a row is told in its own output; no row fails the others.

Importing this needs neither MLflow nor pandas. `training.package` writes the model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from consentier.consent import Channel, Permission, Side, Tier
from consentier.models.attribute_encoding import AttributeValue
from consentier.serving.answer import Answer
from consentier.serving.profiles import Profiles
from consentier.serving.recommender import Recommender
from consentier.serving.request import (
    MAX_EVENTS,
    MAX_N,
    Event,
    Request,
    attributes_of,
    events_from_json,
    events_of,
)

__all__ = ["INPUTS", "INPUT_KEY", "OUTPUTS", "PERMISSIONS", "answer_row", "load", "router_model"]

PERMISSIONS: Mapping[str, Permission] = {
    "none": Permission.NONE,
    "online": Permission.ONLINE,
    "crm": Permission.CRM,
    "both": Permission.ONLINE | Permission.CRM,
}
"""The words of the column ``permission``."""

_DEFAULT_N = 10
"""How many items where a row does not say."""

INPUTS: Mapping[str, bool] = {
    "permission": True,
    "channel": True,
    "linked": False,
    "session": False,
    "online_history": False,
    "crm_history": False,
    "attributes": False,
    "n": False,
}
"""Columns of the input, and whether the column must be there.

All are of MLflow's type ``any`` and looked at row by row. MLflow refuses a whole table whose column has
another type, and in pandas a column gets another type by having gaps, or nothing but gaps.
"""

OUTPUTS: Mapping[str, str] = {
    "items": "strings",
    "scores": "doubles",
    "tier": "string",
    "reason": "string",
    "bundle_digest": "string",
    "basis": "string",
}
"""Columns of the output. None has gaps: Spark would get ``nan`` for a missing text."""

INPUT_KEY = "CONSENTIER_INPUT_KEY"
"""Environment variable: the key of the input digests, to compare those of several processes."""

_HISTORY = "told by the row"
_PATIENCE = 3600.0  # seconds: parsing is no store that one could leave off waiting for

_T = TypeVar("_T")


class _RowError(Exception):
    """What is wrong with a row, in words that quote nothing of it."""


class _Told(Mapping[str, _T]):
    """What a row tells of the person, parsed when a tier that may read it asks; whoever it asks about."""

    answers_within = 0.0  # seconds: it lies in memory

    def __init__(self, parse: Callable[[], _T]) -> None:
        self._parse = parse

    def __getitem__(self, _: str) -> _T:
        return self._parse()

    def __iter__(self) -> Iterator[str]:
        return iter((_HISTORY,))

    def __len__(self) -> int:
        return 1


def load(
    bundles: str | Path,
    *,
    policy: str | Path | None = None,
    catalogue: str | Path | None = None,
    rules: str | Path | None = None,
) -> Recommender:
    """The recommender of a model: without ledger and stores.

    Parameters
    ----------
    bundles, policy, catalogue, rules
        As in `Recommender.load`.

    Raises
    ------
    BundleMissing, DataError, PolicyError, ConfigError
        As in `Recommender.load`.
    """
    key = os.environ.get(INPUT_KEY)
    return Recommender.load(
        bundles,
        policy=policy,
        catalogue=catalogue,
        rules=rules,
        audit_key=key.encode() if key else None,
    )


def answer_row(recommender: Recommender, row: Mapping[str, Any]) -> dict[str, Any]:
    """Answer one row.

    Parameters
    ----------
    recommender
        Bundles and policy. Its ledger, profiles and audit are left out: the row says all there is.
    row
        The columns of `INPUTS`; further ones are not read. A missing value is None, NaN or absent.

    Returns
    -------
    dict
        The columns of `OUTPUTS`. A row that cannot be answered has no items, tier ``none`` and the reason.
    """
    try:
        request, profiles = _asked(row)
    except _RowError as error:
        return _nothing(str(error))
    engine = dataclasses.replace(recommender, ledger=None, profiles=profiles, audit=None)
    return _output(engine.recommend(request))


def _asked(row: Mapping[str, Any]) -> tuple[Request, Profiles]:
    channel = _channel(row.get("channel"))
    # There is no running session in an e-mail: what the column holds there is not looked at.
    session = _history(row, "session") if channel.side is Side.ONLINE else ()
    request = Request(
        session=session,
        permission=_permission(row.get("permission")),
        linked=_is_true(row.get("linked")),
        channel=channel,
        visitor_id=_HISTORY,
        customer_id=_HISTORY,
        n=_number(row.get("n")),
    )
    profiles = Profiles(
        online=_Told(lambda: _events(row, "online_history")),
        crm=_Told(lambda: _events(row, "crm_history")),
        attributes=_Told(lambda: _attributes(row)),
        deadline=_PATIENCE,
    )
    return request, profiles


def _permission(value: object) -> Permission | None:
    """None, which without a ledger permits nothing, for whatever is not one of the words."""
    return PERMISSIONS.get(value) if isinstance(value, str) else None


def _is_true(value: object) -> bool:
    return isinstance(value, bool | np.bool_) and bool(value)


def _channel(value: object) -> Channel:
    if not isinstance(value, str) or value not in Channel.__members__.values():
        raise _RowError(f"channel is none of {', '.join(Channel)}")
    return Channel(value)


def _number(value: object) -> int:
    if _is_missing(value):
        return _DEFAULT_N
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if is_number and 1 <= value <= MAX_N and float(value).is_integer():  # type: ignore[operator, arg-type]
        return int(value)  # type: ignore[call-overload,no-any-return]
    raise _RowError(f"n is no whole number from 1 to {MAX_N}")


def _history(row: Mapping[str, Any], name: str) -> tuple[Event, ...]:
    try:
        return events_of(_events(row, name), name, most=MAX_EVENTS)
    except Exception as error:
        raise _RowError(f"{name} is no history in JSON: {type(error).__name__}") from error


def _events(row: Mapping[str, Any], name: str) -> tuple[Event, ...]:
    value = _json(row.get(name))
    return () if value is None else events_from_json(name, value)


def _attributes(row: Mapping[str, Any]) -> Mapping[str, AttributeValue]:
    value = _json(row.get("attributes"))
    return {} if value is None else attributes_of(value)


def _json(value: object) -> Any:
    if _is_missing(value):
        return None
    if not isinstance(value, str):
        raise TypeError("expected JSON in a text")
    return json.loads(value, parse_constant=_refused)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _is_missing(value: object) -> bool:
    """None, NaN, or what pandas has for a missing value."""
    return (
        value is None
        or (isinstance(value, float | np.floating) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def _output(answer: Answer) -> dict[str, Any]:
    return {
        "items": list(answer.items),
        "scores": list(answer.scores),
        "tier": str(answer.tier),
        "reason": answer.basis.reason,
        "bundle_digest": answer.basis.bundle_digest or answer.basis.fill_digest or "",
        "basis": json.dumps(dataclasses.asdict(answer.basis), sort_keys=True),
    }


def _nothing(problem: str) -> dict[str, Any]:
    return {
        "items": [],
        "scores": [],
        "tier": str(Tier.NONE),
        "reason": f"the row was not answered: {problem}",
        "bundle_digest": "",
        "basis": "{}",
    }


def router_model() -> Any:
    """The model that MLflow's script makes known: see `training.package`.

    Raises
    ------
    ModuleNotFoundError
        If MLflow is not installed.
    """
    import pandas as pd
    from mlflow.pyfunc import PythonModel

    def answer_table(self: Any, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG001
        """One row of output for each of input, in the same order."""
        rows = model_input.to_dict("records")
        return pd.DataFrame([answer_row(self.recommender, row) for row in rows], columns=list(OUTPUTS))

    # MLflow reads it when the class is made, and warns where there is none; the signature says the columns.
    answer_table.__annotations__["model_input"] = pd.DataFrame

    class Router(PythonModel):  # type: ignore[misc]
        """Answers a table of rows."""

        recommender: Recommender

        def load_context(self, context: Any) -> None:
            """Open what stands beside the model."""
            self.recommender = load(**context.artifacts)

        predict = answer_table

    return Router()
