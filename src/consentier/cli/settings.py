"""The configuration that holds for one call of a command."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING

from consentier.cli.output import note

if TYPE_CHECKING:
    from consentier.training.config import Config

__all__ = ["settings_of"]


def settings_of(config: Path | None, data: str | Path | None, cutoff: dt.datetime | None) -> Config:
    """File and environment together, and a cut-off that the command line gives above both.

    A cut-off in the future is told, and not refused: simulated shops may have one.

    Raises
    ------
    ConfigError
        If something in them is wrong.
    """
    from consentier.training.config import load_config

    settings = load_config(config, data=data, environ=os.environ)
    if cutoff is not None:
        settings = settings.with_cutoff(cutoff)
    if settings.training.cutoff is not None and settings.training.cutoff > dt.datetime.now(dt.UTC):
        note(
            f"the cut-off {settings.training.cutoff.isoformat()} (training.cutoff, --cutoff) lies in the "
            "future: whoever withdraws until then counts as if they had not, and after its promotion none "
            "of an earlier cut-off can be promoted. Give an instant that has passed, or none for the present"
        )
    return settings
