"""The configuration that holds for one call of a command."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consentier.training.config import Config

__all__ = ["settings_of"]


def settings_of(config: Path | None, data: str | Path | None, cutoff: dt.datetime | None) -> Config:
    """File and environment together, and a cut-off that the command line gives above both."""
    from consentier.training.config import load_config

    settings = load_config(config, data=data, environ=os.environ)
    return settings if cutoff is None else settings.with_cutoff(cutoff)
