"""Bundles as one MLflow model, for ``mlflow models serve`` and for Spark.

The model is a script of a few lines and the bundles beside it: nothing in it is a pickle. A copy does not
hear of withdrawals that come after it was made. Therefore all of its bundles have a deadline from the
beginning, in the revocation list that goes with them: past it the copy stops answering, and is made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consentier.consent import Tier
from consentier.errors import DataError
from consentier.models.bundle import open_bundle
from consentier.serving.mlflow_store import prepare_mlflow
from consentier.serving.pyfunc import INPUTS, OUTPUTS, load
from consentier.serving.revocation import revoke
from consentier.training.config import TrackingConfig
from consentier.training.track import opened_store
from consentier.training.withdrawal import DEFAULT_DEADLINE
from consentier.writing import put_directory, scratch, workplace

__all__ = ["LoggedModel", "PackagedModel", "log_model", "signature", "write_model"]

_SCRIPT = '''"""The model, made anew wherever it is loaded."""

from mlflow.models import set_model

from consentier.serving.pyfunc import router_model

set_model(router_model())
'''
_SCRIPT_NAME = "router.py"
_LIST = "revocations.json"

_EXAMPLE: Mapping[str, list[Any]] = {
    "permission": ["none", "both"],
    "channel": ["shop", "email"],
    "linked": [False, True],
    "session": ['["i00012"]', None],
    "online_history": [None, '["i00012", {"item_id": "i00040", "ts": "2026-01-31T12:00:00+00:00"}]'],
    "crm_history": [None, '[{"item_id": "i00031", "event_type": "order", "quantity": 1}]'],
    "attributes": [None, '{"region": "north"}'],
    "n": [5, 5],
}


@dataclasses.dataclass(frozen=True, slots=True)
class PackagedModel:
    """What a model directory holds.

    Attributes
    ----------
    path
        The directory.
    digests
        Bundle digest by tier.
    problems
        Why a tier has no bundle in it.
    answers_until
        When it stops answering.
    """

    path: Path
    digests: Mapping[str, str]
    problems: Mapping[str, str]
    answers_until: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedModel:
    """Where MLflow has a model: ``models:/m-…``, and its number if it was registered."""

    uri: str
    version: str | None


def signature() -> Any:
    """The model's signature, column by column: MLflow does not infer it."""
    prepare_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    types = {
        "string": DataType.string,
        "strings": Array(DataType.string),
        "doubles": Array(DataType.double),
    }
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=required) for name, required in INPUTS.items()]),
        outputs=Schema([ColSpec(types[kind], name) for name, kind in OUTPUTS.items()]),
    )


def write_model(
    bundles: Path,
    out: Path,
    *,
    policy: Path | None = None,
    catalogue: Path | None = None,
    rules: Path | None = None,
    answers_for: dt.timedelta = DEFAULT_DEADLINE,
    force: bool = False,
) -> PackagedModel:
    """Write a directory that MLflow loads as a model of the whole router.

    Parameters
    ----------
    bundles
        What ``consentier train --out`` wrote. Of each bundle, all but the facts of its run is copied,
        and the revocation list.
    out
        The directory. It is written beside its place and renamed.
    policy, catalogue, rules
        Files that the model is to answer with: as in `Recommender.load`.
    answers_for
        How long the copy answers, from now on.
    force
        Replace `out` if it is there.

    Raises
    ------
    BundleMissing, DataError, PolicyError, ConfigError
        If the bundles cannot be used, or a file cannot be read.
    DataError
        If `out` is there, and is not to be replaced.
    ValueError
        If `answers_for` is not positive.

    Notes
    -----
    Copies the bundles, and reads each twice for its digests.
    """
    if answers_for <= dt.timedelta(0):
        raise ValueError("answers_for must be a positive length of time")
    if out.exists() and not force:
        raise DataError(f"{out}: exists already: choose another directory, or use --force to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    until = dt.datetime.now(dt.UTC) + answers_for
    given = {"policy": policy, "catalogue": catalogue, "rules": rules}
    files = {name: path for name, path in given.items() if path is not None}
    loaded = load(bundles, **files)
    tiers = [*loaded.scorers, *([] if loaded.popular is None else [Tier.POPULAR])]
    with scratch("package") as folder, workplace(out) as place:
        digests = _copied(bundles, folder / "bundles", tiers, until)
        _save(place / out.name, folder, {"bundles": folder / "bundles", **files})
        former = put_directory(place / out.name, out)
    if former is not None:
        shutil.rmtree(former, ignore_errors=True)
    problems = {str(tier): problem for tier, problem in loaded.problems.items()}
    return PackagedModel(out, digests, problems, until)


def log_model(
    model: PackagedModel, tracking: TrackingConfig, folder: Path, *, name: str, register: str | None = None
) -> LoggedModel:
    """Put a model into MLflow, with the digests of its bundles as tags.

    Parameters
    ----------
    model
        What `write_model` wrote.
    tracking
        Which store and experiment.
    folder
        Where the SQLite file is, if `tracking` names no store.
    name
        What the model is called among those of the experiment.
    register
        Register it as the next version of this model, too.
    """
    client, experiment = opened_store(tracking, folder)
    tags = {f"bundle_digest.{tier}": digest for tier, digest in model.digests.items()}
    tags["answers_until"] = model.answers_until.isoformat()
    logged = client.create_logged_model(experiment, name=name, tags=tags)
    try:
        client.log_model_artifacts(logged.model_id, str(model.path))
    except BaseException:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    if register is None:
        return LoggedModel(logged.model_uri, None)
    if not client.search_registered_models(f"name = '{register}'", max_results=1):
        client.create_registered_model(register)
    version = client.create_model_version(register, logged.artifact_location, tags=tags)
    return LoggedModel(logged.model_uri, str(version.version))


def _copied(bundles: Path, target: Path, tiers: Sequence[Tier], until: dt.datetime) -> dict[str, str]:
    """Copy bundles, and the deadlines that they have, or get; digests of the copies by tier.

    Not of what was loaded: a training may have put another bundle in its place since.
    """
    target.mkdir()
    for tier in tiers:
        shutil.copytree(bundles / tier, target / tier, ignore=shutil.ignore_patterns("run.json"))
    digests = {str(tier): open_bundle(target / tier).digest for tier in tiers}
    if (bundles / _LIST).exists():
        shutil.copyfile(bundles / _LIST, target / _LIST)
    revoke(target, digests.values(), until, "age of a packaged copy")
    return digests


def _save(path: Path, staging: Path, artifacts: Mapping[str, Path]) -> None:
    prepare_mlflow()
    import mlflow
    import pandas as pd
    from mlflow.pyfunc import save_model

    script = staging / _SCRIPT_NAME
    script.write_text(_SCRIPT, "utf-8")
    save_model(
        path=str(path),
        python_model=str(script),
        artifacts={name: str(file) for name, file in artifacts.items()},
        signature=signature(),
        input_example=pd.DataFrame(dict(_EXAMPLE)),
        pip_requirements=[
            f"consentier=={importlib.metadata.version('consentier')}",
            f"mlflow=={mlflow.__version__}",
        ],
    )
    _without_paths(path / "MLmodel")


def _without_paths(description: Path) -> None:
    """Take out of a model's description where its parts lay on the machine that wrote it."""
    from mlflow.models import Model

    model = Model.load(str(description))
    flavour = model.flavors["python_function"]
    flavour["model_code_path"] = _SCRIPT_NAME
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(description))
