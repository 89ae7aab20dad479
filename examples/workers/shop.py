"""What both services have in common: one recommender a process, and what they answer with."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from consentier import Ledger, Profiles, ReloadingRecommender, Request
from consentier.serving.profile_opening import open_profiles


@functools.cache
def recommender() -> ReloadingRecommender:
    """The recommender of this process, or of the one that forked it; `gunicorn_conf.py` starts its thread."""
    state = Path(os.environ.get("SHOP_STATE", "state")).absolute()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    crm = open_profiles(os.environ.get("SHOP_CRM_PROFILES", str(state / "crm.db")))
    online = open_profiles(os.environ.get("SHOP_ONLINE_PROFILES", str(state / "online.db")))
    return ReloadingRecommender(
        os.environ.get("SHOP_BUNDLES", "bundles"),
        every=float(os.environ.get("SHOP_RELOAD_SECONDS", "60")),
        ledger=Ledger.open(f"sqlite:///{state / 'consents.db'}"),
        profiles=Profiles(online=online, crm=crm, attributes=crm.attributes),
    )


def request_of(session: list[str], visitor_id: str | None) -> Request:
    """A question: what was looked at in this visit, and the shop's own cookie."""
    return Request(session=session, visitor_id=visitor_id, n=10)


def health() -> dict[str, Any]:
    """Which process answers, and from which bundles."""
    current = recommender().current
    bundles = {str(tier): scorer.digest for tier, scorer in current.scorers.items()}
    if current.popular is not None:
        bundles["popular"] = current.popular.digest
    return {"worker": os.getpid(), "bundles": bundles}
