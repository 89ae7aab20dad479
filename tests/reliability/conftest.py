"""Makes `benchmarks` importable: the campaign's way to kill is used here too."""

from __future__ import annotations

from root_packages import import_root_package

import_root_package("benchmarks")
