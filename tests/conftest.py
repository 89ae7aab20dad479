"""What holds for every test: which consentier is tested, and on what footing."""

from __future__ import annotations

import collections
import importlib.metadata
import json
import os
import sys
from pathlib import Path

# Read when the libraries are first imported, here and in every process that a test starts.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two test processes on two cores
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("_TYPER_FORCE_DISABLE_TERMINAL", "1")  # on GitHub, Typer would colour what tests read
os.environ["PYTHONSAFEPATH"] = "1"

import pytest
from compiled_once import compile_once
from hypothesis import settings
from memory_files import keep_in_memory
from mlflow_stores import migrate_once
from one_engine import open_once

ROOT = Path(__file__).resolve().parents[1]

# The folders at the repository's root are parts of consentier; from a test, `import models` must fail as it
# would in a shop. `python -m pytest` puts the working directory on the path.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

keep_in_memory(os.environ)

# Half a minute of processor time and more each; the first of them executes the notebooks.
_LONG = (
    "test_docs_site.py",
    "test_quality.py",
    "test_law_02_training_noninterference.py",
    "test_law_02_consent_worth.py",
    "test_planted_truth.py",
    "test_warehouse_sql.py",
    "test_law_08_retraining.py",
    "test_law_08_serving.py",
    "test_law_08_forgetting.py",
    "test_promote.py",
    "test_consent_worth.py",
    "test_all_laws_machine.py",
    "test_law_02_record.py",
    "test_law_09_artifacts.py",
    "test_retrain.py",
)

# A gate says the same twice; whoever works on the code, and `make explore`, look at other examples each time.
# Each profile says so: what one leaves open, Hypothesis decides otherwise where `CI` is set, as on GitHub.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("develop", deadline=None, derandomize=False)
settings.register_profile("explore", deadline=None, derandomize=False, max_examples=1000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "gate" if "CONSENTIER_TESTED" in os.environ else "develop")
)


def tested() -> str:
    """Say how the tested consentier is installed: ``"editable"`` or ``"wheel"``."""
    distribution = importlib.metadata.distribution("consentier")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    return "editable" if origin.get("dir_info", {}).get("editable") else "wheel"


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the source tree where the wheel is to be tested (`make test`)."""
    config.option.loadscopereorder = False  # pytest-xdist would begin modules of few, but long tests last
    required = os.environ.get("CONSENTIER_TESTED")
    if required is not None and required != tested():
        raise pytest.UsageError(f"consentier is installed as {tested()}, to be tested is the {required}")


def pytest_report_header() -> str:
    """Name what is tested at the top of the output."""
    return f"consentier {importlib.metadata.version('consentier')}, installed as {tested()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take long come first, then those of many tests: processes end at about the same time."""
    tests = collections.Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        long = item.path.name in _LONG
        return _LONG.index(item.path.name) if long else len(_LONG), -tests[item.path]

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What takes longer than any test that needs it, and comes to the same each time, is done once."""
    if "ibis" in sys.modules:
        compile_once()
        open_once()
    if "mlflow" in sys.modules:
        migrate_once()
