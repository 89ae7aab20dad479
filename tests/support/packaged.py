"""The router as MLflow loads it, for tests of the packaged model."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines import bundles

from consentier.serving.pyfunc import INPUT_KEY
from consentier.training.package import write_model

__all__ = ["KEY", "loaded", "model_directory", "predicted"]

KEY = "a key for tests only"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A directory for this process, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="consentier-packaged-")


@functools.cache
def model_directory() -> Path:
    """The small bundles of all tiers as a model directory."""
    return write_model(bundles(), Path(_folder().name) / "model").path


def loaded() -> Any:
    """The model, loaded anew, under one fixed key for its digests."""
    os.environ[INPUT_KEY] = KEY
    from mlflow.pyfunc import load_model

    return load_model(str(model_directory()))


@functools.cache
def _once() -> Any:
    return loaded()


def predicted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the model says to some rows. A batch that fails is an assertion that does."""
    import pandas as pd

    try:
        table = _once().predict(pd.DataFrame(list(rows), dtype=object))
    except Exception as error:
        raise AssertionError(f"the batch failed with {type(error).__name__}: {error}") from error
    answers: list[dict[str, Any]] = table.to_dict("records")
    assert len(answers) == len(rows)
    return answers
