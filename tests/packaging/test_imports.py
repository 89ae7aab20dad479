"""What an import costs a shop's service: NumPy and the standard library, and the rest only on demand."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import consentier
import consentier.consent
import consentier.serving

HEAVY = {
    "duckdb", "ibis", "implicit", "joblib", "matplotlib", "mlflow", "numba", "optuna", "pandas",
    "prometheus_client", "psycopg", "pyarrow", "pydantic", "rich", "scipy", "sklearn", "sqlalchemy", "typer",
}  # fmt: skip

PUBLIC = [
    "Answer",
    "AsyncRecommender",
    "Basis",
    "Catalogue",
    "Channel",
    "ConsentRecord",
    "ConsentierError",
    "Event",
    "Experiment",
    "ExperimentRecommender",
    "Ledger",
    "Link",
    "OutcomeLog",
    "Permission",
    "Policy",
    "Profiles",
    "Recommender",
    "ReloadingRecommender",
    "Request",
    "Resolution",
    "__version__",
]


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after some code has run in a fresh interpreter."""
    report = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def modules_of(package: str) -> list[str]:
    """A package and its modules, without importing them here."""
    path = sys.modules[package].__path__
    return [package, *(f"{package}.{module.name}" for module in pkgutil.iter_modules(path))]


def test_the_watch_sees_an_import() -> None:
    assert "pyarrow" in loaded_by("import pyarrow")


def test_import_consentier_loads_nothing_else() -> None:
    loaded = loaded_by("import consentier")
    assert not loaded & (HEAVY | {"numpy"})


@pytest.mark.parametrize(
    "code",
    [
        "import consentier; consentier.Recommender",
        "from consentier import *",
        "import consentier as c; c.Request(session=['a'], permission=c.Permission.ONLINE)",
        "import consentier as c; c.Policy.default()",
    ],
)
def test_what_a_service_uses_loads_numpy_at_most(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def in_a_service() -> list[str]:
    """The modules of serving, but those of batches on a cluster, which no service loads."""
    on_spark = "consentier.serving.spark_"
    return [module for module in modules_of("consentier.serving") if not module.startswith(on_spark)]


@pytest.mark.parametrize("module", in_a_service())
def test_no_serving_module_loads_a_heavy_one(module: str) -> None:
    """All but profiles and batches in databases, which are loaded when such a place is opened."""
    if module in ("consentier.serving.sqlalchemy_profiles", "consentier.serving.batch_table"):
        assert loaded_by(f"import {module}") & HEAVY <= {"psycopg", "sqlalchemy"}
        return
    assert not loaded_by(f"import {module}") & HEAVY


def test_consent_needs_the_standard_library_only() -> None:
    """All but the ledger in PostgreSQL, which is loaded when one is opened."""
    of_postgresql = ("consentier.consent.sqlalchemy_", "consentier.consent.migrations")
    importlib.import_module("consentier.consent.signals")
    everything = modules_of("consentier.consent") + modules_of("consentier.consent.signals")
    modules = [name for name in everything if not name.startswith(of_postgresql)]
    loaded = loaded_by("import " + ", ".join(modules))
    assert len(modules) > 20
    assert not loaded & (HEAVY | {"numpy"})


def test_the_command_line_starts_without_the_training_stack() -> None:
    loaded = loaded_by("import consentier.cli.app")
    assert not loaded & (HEAVY - {"typer", "rich"})


def test_the_public_names_are_these() -> None:
    """A name added or removed here changes what shops build on: CHANGELOG and version go with it."""
    assert consentier.__all__ == PUBLIC
    assert dir(consentier) == PUBLIC
    for name in PUBLIC:
        assert getattr(consentier, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        consentier.Recomender  # noqa: B018


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert consentier.__version__ == version("consentier")
