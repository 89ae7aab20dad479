"""Makes `examples` importable."""

from __future__ import annotations

from root_packages import import_root_package

import_root_package("examples")
