"""Packages of the repository's root that are no part of consentier, for tests: benchmarks, examples."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["import_root_package"]

ROOT = Path(__file__).resolve().parents[2]


def import_root_package(name: str) -> None:
    """Make a package importable without the repository's root on the import path."""
    folder = ROOT / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
